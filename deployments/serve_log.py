"""The way from our loggers to Ray Serve's log files. Without it, what a replica says is lost, warnings apart."""

import logging
from typing import Final

SERVE_LOGGER: Final = "ray.serve"


class ServeLogHandler(logging.Handler):
    """Hands records to Serve's own logger, whose handlers know the file, the encoding and which replica this is.

    Looked up anew for each record: Serve replaces its handlers when its configuration changes.
    """

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(SERVE_LOGGER).handle(record)


def log_through_serve(*names: str, level: str = "INFO") -> None:
    """From now on the loggers `names` are heard. To be called in a process that Serve runs; calling again is free."""
    for name in names:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(handler, ServeLogHandler) for handler in logger.handlers):
            logger.addHandler(ServeLogHandler())
