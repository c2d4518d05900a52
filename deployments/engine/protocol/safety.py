"""Says how a model's finished images are checked before anybody gets them, and what such a check finds. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

SafetyPolicy = Literal["off", "report", "required"]
"""With `report` images are delivered with what was found; with `required` none is that did not pass."""

SafetyStatus = Literal["passed", "flagged", "unchecked"]

CHECKER_PARTS: Final = ("safety_checker", "feature_extractor")
"""The subfolders of a checker's source that are read."""


@dataclass(frozen=True, slots=True)
class CheckerSpec:
    """One checker, by the `name` that findings tell.

    Without `class_path` it is Stable Diffusion's own network: `source` is a folder, or a repository on the hub at
    `revision`, with CHECKER_PARTS; None takes the model's own source. `class_path`, as `package.module:Class`, names a
    class that is made with `settings` as keyword arguments (see `SafetyChecker`).
    """

    name: str
    source: str | None = None
    revision: str | None = None
    class_path: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.class_path and (self.source or self.revision):
            raise ValueError(f"checker {self.name!r}: `class_path` and `source` exclude each other")
        if self.settings and not self.class_path:
            raise ValueError(f"checker {self.name!r}: `settings` are for a class, which `class_path` names")
        if self.revision is not None and self.source is None:
            raise ValueError(f"checker {self.name!r}: a `revision` belongs to a `source`")


@dataclass(frozen=True, slots=True)
class SafetySpec:
    """How the images of one model are checked. A check of more than `timeout_s` seconds counts as failed."""

    policy: SafetyPolicy = "off"
    checkers: tuple[CheckerSpec, ...] = ()
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        names = [checker.name for checker in self.checkers]
        if self.policy != "off" and not names:
            raise ValueError(f"safety: the policy {self.policy!r} needs at least one checker")
        if len(set(names)) < len(names):
            raise ValueError("safety: each checker needs a name of its own")

    @property
    def is_on(self) -> bool:
        """True if images are checked."""
        return self.policy != "off"


UNCHECKED_MODEL: Final = SafetySpec()


@dataclass(frozen=True, slots=True)
class SafetyVerdict:
    """What one checker says of one image. `category` names what was found; a higher `score` means more of it."""

    flagged: bool
    category: str = ""
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What all checkers together say of one image: the first verdict that flags it, else the highest score.

    `category` is the checker's name where it gives none. An image is `unchecked` if a check failed.
    """

    status: SafetyStatus
    category: str = ""
    score: float = 0.0
