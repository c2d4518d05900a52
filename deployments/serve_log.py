"""Sends our loggers' records to Ray Serve's log files; otherwise those of a replica are lost, warnings apart."""

import logging
from typing import Final

SERVE_LOGGER: Final = "ray.serve"


class ServeLogHandler(logging.Handler):
    """Passes records to Serve's own logger, whose handlers know the file, the encoding and which replica this is.

    Looked up for each record: Serve replaces its handlers when its configuration changes.
    """

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(SERVE_LOGGER).handle(record)


def log_through_serve(*names: str, level: str = "INFO") -> None:
    """Sends the records of the loggers `names` through Serve. For processes that Serve runs; safe to call again."""
    for name in names:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(handler, ServeLogHandler) for handler in logger.handlers):
            logger.addHandler(ServeLogHandler())
