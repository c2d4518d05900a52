"""Loads the checkers of a model's images, and asks all of them together."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol

from torch import nn

from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.protocol.errors import EngineError, Filtered, ModelLoadError, SafetyCheckFailed
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.safety import UNCHECKED_MODEL, CheckerSpec, Finding, SafetySpec, SafetyVerdict

log = logging.getLogger(__name__)

LONGEST_CATEGORY: Final = 64


class SafetyChecker(Protocol):
    """A class that a configuration may name. One thread uses an object of it, which is made once per model.

    If it has an attribute `networks`, a sequence of torch modules, their weights count as the model's own.
    """

    def check(self, images: Sequence[ImageArray]) -> Sequence[SafetyVerdict]:
        """Returns a verdict for each of `images`, uint8 [H, W, 3], all of one size. Whatever it raises fails the check
        of all of them.
        """


@dataclass(frozen=True, eq=False)
class Checkers:
    """All checkers of one model, by name, and the policy that says what follows from what they find."""

    spec: SafetySpec
    by_name: Mapping[str, SafetyChecker]

    @property
    def is_required(self) -> bool:
        """True if no image is delivered that did not pass."""
        return self.spec.policy == "required"

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that the checkers say they have."""
        return tuple(network for checker in self.by_name.values() for network in getattr(checker, "networks", ()))

    def check(self, images: Sequence[ImageArray]) -> list[Finding]:
        """Returns what is found in each of `images`. Raises whatever a checker raises, and TypeError or ValueError for
        an answer that is not a verdict for each image.
        """
        answers = [
            [_with_category(verdict, name) for verdict in _read_verdicts(name, checker.check(images), len(images))]
            for name, checker in self.by_name.items()
        ]
        return [_sum_up(verdicts) for verdicts in zip(*answers, strict=True)]

    def judge(self, finding: Finding) -> Finding | EngineError:
        """Returns what becomes of an image by the policy: what is told of it, or the error instead of it."""
        if not self.is_required or finding.status == "passed":
            return finding
        return Filtered(finding.category) if finding.status == "flagged" else SafetyCheckFailed()


NO_CHECKERS: Final = Checkers(UNCHECKED_MODEL, {})


def load_class(title: str, spec: CheckerSpec) -> SafetyChecker:
    """Makes an object of the class that `spec` names. Raises ModelLoadError, which begins with `title`."""
    module, _, name = spec.class_path.partition(":")
    try:
        kind: Callable[..., Any] = getattr(import_module(module), name)
        checker = kind(**spec.settings)
    except Exception as error:  # it is the operator's own code, which may raise anything
        raise_if_sticky(error)
        raise ModelLoadError(
            f"{title}: {spec.class_path!r} names no class, as package.module:Class, that its `settings` make"
        ) from error
    if not callable(getattr(checker, "check", None)):
        raise ModelLoadError(f"{title}: {spec.class_path!r} has no method `check`")
    found: SafetyChecker = checker
    return found


def _read_verdicts(name: str, answer: Sequence[SafetyVerdict], count: int) -> list[SafetyVerdict]:
    verdicts = list(answer)
    if len(verdicts) != count:
        raise ValueError(f"checker {name!r} gave {len(verdicts)} verdicts for {count} images")
    for verdict in verdicts:
        if not isinstance(verdict, SafetyVerdict) or not isinstance(verdict.flagged, bool):
            raise TypeError(
                f"checker {name!r} must answer with SafetyVerdict(flagged: bool, category: str, score: float)"
            )
        if not math.isfinite(verdict.score):
            raise ValueError(f"checker {name!r} gave a score that is not finite")
    return verdicts


def _with_category(verdict: SafetyVerdict, name: str) -> SafetyVerdict:
    category = str(verdict.category) or name
    return SafetyVerdict(verdict.flagged, category[:LONGEST_CATEGORY], float(verdict.score))


def _sum_up(verdicts: Sequence[SafetyVerdict]) -> Finding:
    flagged = next((verdict for verdict in verdicts if verdict.flagged), None)
    if flagged is not None:
        return Finding("flagged", flagged.category, flagged.score)
    highest = max(verdicts, key=lambda verdict: verdict.score)
    return Finding("passed", highest.category, highest.score)
