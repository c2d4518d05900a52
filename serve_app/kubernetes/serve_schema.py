"""Checks that Ray Serve, and our own application builder, accept what the manifests pass to them."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from serve_app.config.errors import describe_errors
from serve_app.config.server import AppConfig
from serve_app.kubernetes.manifests import Manifests


def find_application_faults(manifests: Manifests) -> Iterator[str]:
    """Checks `serveConfigV2`: Serve's schema, keys that it would silently drop, the builder, and its arguments."""
    # Imported here because it is slow, and only this needs it.
    from ray.serve.schema import ServeDeploySchema

    document = manifests.application
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            yield f"serveConfigV2 {'/'.join(map(str, detail['loc']))}: {detail['msg']}"
        return
    for path in _find_unknown_fields(ServeDeploySchema, document):
        yield f"serveConfigV2 {path}: Ray Serve knows no such field"
    for application in document["applications"]:
        yield from _check_builder(str(application["import_path"]))
        yield from _check_arguments(application.get("args", {}))


def configuration_of(manifests: Manifests) -> AppConfig:
    """The configuration that the application is built from. Raises ValidationError."""
    return AppConfig.model_validate(manifests.application["applications"][0].get("args", {}))


def _check_builder(import_path: str) -> Iterator[str]:
    module, _, name = import_path.partition(":")
    try:
        builder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        yield f"serveConfigV2 import_path: there is no {import_path!r}"
        return
    if not callable(builder):
        yield f"serveConfigV2 import_path: {import_path!r} builds nothing"


def _check_arguments(arguments: Any) -> Iterator[str]:
    try:
        AppConfig.model_validate(arguments)
    except ValidationError as error:
        yield from (f"serveConfigV2 args: {line}" for line in describe_errors(error))


def _find_unknown_fields(model: type[BaseModel], document: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields the paths of fields in `document` that `model`, or a model nested in it, does not have."""
    for name, value in document.items():
        field = model.model_fields.get(name)
        if field is None:
            yield f"{path}{name}"
            continue
        for inner in _models_in(field.annotation):
            values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            for each in values:
                if isinstance(each, Mapping):
                    yield from _find_unknown_fields(inner, each, f"{path}{name}/")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field may hold, itself or as items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (dict, Mapping):
        return []
    return [model for part in get_args(annotation) for model in _models_in(part)]
