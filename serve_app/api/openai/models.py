"""The endpoints that list the models, as OpenAI's clients know them."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path

from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.dependencies import ServiceDep
from serve_app.api.openai.errors import OpenAIRoute
from serve_app.api.openai.model_names import ModelNamesDep
from serve_app.api.responses.openapi import error_response

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

_OWNER: Final = "darkroom"

# When a model was made is not known here, and the field is required.
_CREATED: Final = 0

_NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {404: error_response("There is no such model.")}


Name = Annotated[str, Path(max_length=200)]


@router.get("/models")
async def list_models(names: ModelNamesDep) -> dict[str, Any]:
    """Lists the models by their own names; the first is the default. `aliases` are further names of the same model."""
    specs = [names.default, *(spec for spec in names.served if spec is not names.default)]
    described = [_describe(spec.name, spec) | {"aliases": list(spec.aliases)} for spec in specs]
    described[0]["aliases"] += [name for name in names.retired if names.resolve(name) is None]
    return {"object": "list", "data": described}


@router.get("/models/{model:path}", responses=_NOT_FOUND)
async def read_model(model: Name, service: ServiceDep, names: ModelNamesDep) -> dict[str, Any]:
    """Describes the model of that name or alias, which may have slashes; `root` is the model that serves it."""
    # The service's own default would be the first, made for inpainting or not.
    return _describe(model, names.find(model) or service.model(model))


def _describe(name: str, spec: ModelSpec) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": _OWNER, "root": spec.name}
