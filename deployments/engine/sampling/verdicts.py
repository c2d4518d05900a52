"""Keeps which samplers are refused with one scheduler's settings, and why: each is checked once, by whoever asks first.

Checking one takes tens of milliseconds, all of them seconds. Verdicts outlive the process in `KeptFiles`; they hold for
the same settings and versions only.
"""

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.calibration.conditions import digest, versions
from deployments.engine.calibration.kept_files import NOTHING_KEPT, KeptFiles
from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS, SamplerNotLinear

KIND: Final = "samplers"

Reason = Annotated[str, Field(min_length=1, max_length=2**16)]


class KeptVerdicts(BaseModel):
    """Sampler -> why it is refused; None for one that is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdicts: Mapping[str, Reason | None] = Field(max_length=200)


class SamplerVerdicts:
    """The verdicts for one scheduler's settings. Safe from any thread: a caller waits for no check but its own."""

    def __init__(self, described: Mapping[str, Any], kept: KeptFiles = NOTHING_KEPT) -> None:
        """`described` is everything that the verdicts depend on, besides versions."""
        self._kept = kept
        self._conditions = {"scheduler": digest(described), "versions": versions()}
        found = kept.read(KIND, self._conditions, KeptVerdicts)
        known = {CHECKPOINT, *SAMPLERS}
        self._found: dict[str, SamplerNotLinear | None] = {
            name: None if reason is None else SamplerNotLinear("sampler", reason)
            for name, reason in (found.verdicts if found is not None else {}).items()
            if name in known
        }
        self._saved = len(self._found)
        self._lock = Lock()
        self._checks: dict[str, Lock] = {}

    def is_known(self, sampler: str) -> bool:
        """Returns True if `of` would answer at once."""
        return sampler in self._found

    def of(self, sampler: str, check: Callable[[], SamplerNotLinear | None]) -> SamplerNotLinear | None:
        """Returns why `sampler` is refused; None if it is not. Calls `check` where that is not known yet."""
        if sampler not in self._found:
            with self._lock:
                checking = self._checks.setdefault(sampler, Lock())
            with checking:
                if sampler not in self._found:
                    self._found[sampler] = check()
        return self._found[sampler]

    def save(self) -> None:
        """Keeps what has been found since the last time, if anything."""
        found = dict(self._found)
        if len(found) > self._saved:
            reasons = {name: None if error is None else error.message for name, error in found.items()}
            self._kept.write(KIND, self._conditions, KeptVerdicts(verdicts=reasons))
            self._saved = len(found)
