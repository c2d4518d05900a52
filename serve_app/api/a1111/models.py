"""The names under which A1111's clients ask for models."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from deployments.engine.protocol.errors import UnknownModel
from deployments.engine.protocol.spec import ModelSpec
from serve_app.generation.prepare import default_model, find_model

# A1111 writes a checkpoint as its file's name, and after it the first digits of its hash.
_FILE_ENDING: Final = re.compile(r"(\.safetensors|\.ckpt)?(\s+\[[0-9a-f]{6,64}\])?\Z")


def choose_model(models: Sequence[ModelSpec], asked: str, kept: str = "", *, inpaints: bool) -> ModelSpec:
    """Returns the model that is `asked` for; else the one `kept` among a caller's options; else the default one.

    Raises UnknownModel for what is asked. What was kept and has left the configuration since counts as not there. The
    default for inpainting is a model that is made for it, where there is one.
    """
    if asked:
        return _find(models, asked)
    if kept:
        with suppress(UnknownModel):
            return _find(models, kept)
    made_for_it = next((spec for spec in models if spec.inpaints_only), None) if inpaints else None
    return made_for_it or default_model(models)


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """Returns a model as A1111 lists it. Its title is what options and requests call it."""
    return {
        "title": spec.name,
        "model_name": spec.name,
        "hash": None,
        "sha256": None,
        "filename": spec.name,
        "config": None,
    }


def _find(models: Sequence[ModelSpec], name: str) -> ModelSpec:
    return find_model(models, name if _is_known(models, name) else _FILE_ENDING.sub("", name[:300]))


def _is_known(models: Sequence[ModelSpec], name: str) -> bool:
    return any(spec.has_name(name) for spec in models)
