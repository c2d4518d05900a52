"""Log output of Darkroom's loggers: one JSON object per line, or Ray Serve's log files if Serve runs this process."""

import json
import logging
from datetime import UTC, datetime
from typing import Final, TextIO

from serve_app.config.sections import LoggingConfig

LOGGERS: Final = ("serve_app", "deployments")

_STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, then its `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if _is_extra(name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII only, so that no terminal or collector can misread a character.
        return json.dumps(line, default=str)


def _is_extra(name: str) -> bool:
    # Libraries add private attributes to records; Ray, with a record class of its own, to every one.
    return name not in _STANDARD_ATTRIBUTES and not name.startswith("_")


def silence_parsers() -> None:
    """Silences libraries that parse what callers send: we report ourselves what we refuse."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def log_to(stream: TextIO, config: LoggingConfig) -> None:
    """Has our loggers, and Python's warnings, write to `stream`: for processes that Ray Serve does not run."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if config.encoding == "json" else logging.Formatter(logging.BASIC_FORMAT))
    silence_parsers()
    logging.captureWarnings(True)
    for name in (*LOGGERS, "py.warnings"):
        logger = logging.getLogger(name)
        logger.setLevel(config.level)
        logger.addHandler(handler)
