"""Whatever form a wait has, it is read; whatever has no form is none."""

import time
from email.utils import formatdate

import pytest

from serve_app.retry_after import read_retry_after


def test_seconds_and_dates_are_the_same_wait() -> None:
    assert read_retry_after(" 7 ") == 7
    assert read_retry_after(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=3)
    assert read_retry_after(formatdate(time.time() + 100)) == pytest.approx(100, abs=3)


def test_a_date_that_is_past_asks_for_no_wait() -> None:
    assert read_retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "1.5", "1e3", "٣", "9" * 4000, "Fri, 31 Dec 1999", "Fri, 31 Dec 99999 23:59:59 GMT"]
)
def test_what_is_neither_is_none(text: str) -> None:
    assert read_retry_after(text) in (None, 0)
