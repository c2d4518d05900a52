"""Limits on batches that contradict each other are refused."""

import pytest
from pydantic import ValidationError

from serve_app.config.sections import JobsConfig


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most max_images"):
        JobsConfig(max_images=10)
