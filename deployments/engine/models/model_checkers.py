"""Loads the safety checkers of a model: from the model's own source, from another, or from a class."""

from pathlib import Path

from deployments.engine.models.components import Components
from deployments.engine.models.hub import locate
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.safety import CHECKER_PARTS, CheckerSpec
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.safety.checkers import NO_CHECKERS, Checkers, SafetyChecker, load_class


def load_checkers(spec: ModelSpec, parts: Components) -> Checkers:
    """Loads what checks the images of `spec`, if its policy is not off. Raises ModelLoadError."""

    def load(checker: CheckerSpec) -> SafetyChecker:
        title = _title(spec, checker)
        if checker.class_path:
            return load_class(title, checker)
        root = _locate(spec, checker, half=parts.is_half)
        return parts.concept_checker(title, _source(spec, checker)[0], root)

    if not spec.safety.is_on:
        return NO_CHECKERS
    return Checkers(spec.safety, {checker.name: load(checker) for checker in spec.safety.checkers})


def fetch_checkers(spec: ModelSpec, *, half: bool) -> None:
    """Fetches all files that `load_checkers` would read. Raises ModelLoadError."""
    for checker in spec.safety.checkers if spec.safety.is_on else ():
        if not checker.class_path:
            _locate(spec, checker, half=half)


def _locate(spec: ModelSpec, checker: CheckerSpec, *, half: bool) -> Path:
    title, (source, revision) = _title(spec, checker), _source(spec, checker)
    if Path(source).is_file():
        raise ModelLoadError(f"{title}: {source!r} is one file, which holds no checker; give the checker a `source`")
    return locate(title, source, revision, CHECKER_PARTS, half=half)


def _source(spec: ModelSpec, checker: CheckerSpec) -> tuple[str, str | None]:
    return (spec.source, spec.revision) if checker.source is None else (checker.source, checker.revision)


def _title(spec: ModelSpec, checker: CheckerSpec) -> str:
    return f"model {spec.name!r}: its safety checker {checker.name!r}"
