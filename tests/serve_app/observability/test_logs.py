"""Log output: one line per record, whatever is in it; under Serve, through Serve's handlers."""

import io
import json
import logging
from datetime import datetime

from deployments.serve_log import SERVE_LOGGER, ServeLogHandler, log_through_serve
from serve_app.config.sections import LoggingConfig
from serve_app.observability.logs import log_to


def spoken(config: LoggingConfig) -> str:
    stream = io.StringIO()
    log_to(stream, config)
    log = logging.getLogger("serve_app.some.place")
    log.debug("not heard")
    log.info("POST %s", "/a\nERROR:forged", extra={"request_id": "mine-1", "prompt": "\u2028SECRET\x1b[31m\n{}"})
    try:
        raise RuntimeError("why")
    except RuntimeError:
        log.exception("something broke")
    return stream.getvalue()


def test_a_record_is_one_line_of_json_whatever_it_holds() -> None:
    first, second = map(json.loads, spoken(LoggingConfig()).splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo
    assert first == {
        "level": "INFO",
        "logger": "serve_app.some.place",
        "message": "POST /a\nERROR:forged",
        "request_id": "mine-1",
        "prompt": "\u2028SECRET\x1b[31m\n{}",
    }
    assert "RuntimeError: why" in second["exception"]


def test_it_can_be_text_and_less() -> None:
    assert "ERROR:serve_app.some.place:something broke" in spoken(LoggingConfig(encoding="text"))
    assert "POST" not in spoken(LoggingConfig(level="WARNING"))


def test_under_serve_records_go_where_serves_go() -> None:
    stream = io.StringIO()
    for _ in range(2):
        log_through_serve("deployments", level="INFO")
    # Serve changes its handlers when it is reconfigured.
    logging.getLogger(SERVE_LOGGER).handlers[:] = [logging.StreamHandler(stream)]
    logging.getLogger("deployments.engine").info("a step")
    assert stream.getvalue() == "a step\n"
    assert sum(isinstance(handler, ServeLogHandler) for handler in logging.getLogger("deployments").handlers) == 1


def test_serve_can_read_what_we_configure() -> None:
    from ray.serve.schema import LoggingConfig as Serves

    assert Serves(**LoggingConfig(level="WARNING").serve_options()).encoding == "JSON"
    assert Serves(**LoggingConfig(encoding="text").serve_options()).encoding == "TEXT"


def test_there_are_no_prompts_unless_somebody_asks_for_them() -> None:
    assert not LoggingConfig().prompts
