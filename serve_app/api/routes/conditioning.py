"""The endpoints that tell how a model reads what it is given: a prompt's tokens, and the hint from a photo."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.report import TokenCount
from deployments.engine.protocol.settings import ControlSettings
from serve_app.api.dependencies import ServiceDep
from serve_app.api.middleware.rate_limiting import charge_pixels
from serve_app.api.parsing.forms import read_form
from serve_app.api.parsing.picture_options import FIT, read_fit
from serve_app.api.parsing.reference_images import read_text_request
from serve_app.api.principal import principal_of
from serve_app.api.responses import openapi
from serve_app.api.responses.disconnect import run_until_disconnect

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])


_HINT_FIELDS: Final = ("width", "height", "model_name")


class TokenCountAnswer(TypedDict):
    """A prompt's `tokens`, and the chunks that they fill; with more of either than the maximum it is refused."""

    tokens: int
    chunks: int
    max_tokens: int
    max_chunks: int


class TokensAnswer(TypedDict):
    """The tokens of both prompts for `model`; the prompt's style is counted, too."""

    model: str
    prompt: TokenCountAnswer
    negative_prompt: TokenCountAnswer


@router.post(
    "/tokens",
    response_model=TokensAnswer,
    openapi_extra={"requestBody": openapi.text_body()},
    responses=openapi.errors(400, 401, 404, 408, 413, 415, 422, 429, 500, 503),
)
async def count_tokens(request: Request, service: ServiceDep) -> dict[str, Any]:
    """Counts the tokens of a request's prompts with the model's own tokenizer, and makes no image.

    The body is that of text-to-image. 503 if the model is not in memory: none is loaded to count.
    """
    params, uploads = await read_text_request(request)
    prepared = await service.prepare(params, uploads=uploads, tenant=principal_of(request).tenant, for_images=False)
    prompt, negative = await service.count_tokens(prepared)
    return {
        "model": prepared.request.model,
        "prompt": _count_answer(prompt),
        "negative_prompt": _count_answer(negative),
    }


@router.post(
    "/hint",
    response_class=Response,
    openapi_extra={"requestBody": openapi.hint_body(_HINT_FIELDS)},
    responses=openapi.errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)
    | {200: {"description": "The hint.", "content": {"image/png": {"schema": openapi.PICTURE}}}},
)
async def make_hint(request: Request, service: ServiceDep) -> Response:
    """Makes the hint that `controlnet` with `preprocess` would make from this photo, as a PNG.

    It costs what enlarging a picture to its size does. A disconnect ends it.
    """
    form = await read_form(request, request.app.state.max_upload_bytes, ("control_image",), (FIT, "controlnet_type"))
    kind = form.get_option("controlnet_type")
    if kind is None:
        raise InvalidParameter("controlnet_type", "is required")
    photo = form.require_file("control_image")
    for name in form.parameters:
        if name not in _HINT_FIELDS:
            raise InvalidParameter(name[:64], f"is not a field here; the fields are {', '.join(_HINT_FIELDS)}")
    uploads = Uploads(hints=(photo,), preprocess=True, fit=read_fit(form))
    params = form.read_params(prompt="", controls=(ControlSettings(type=kind[:64]),))
    prepared = await service.prepare(params, uploads=uploads, tenant=principal_of(request).tenant)
    bucket = prepared.request.bucket
    await charge_pixels(request, bucket.width * bucket.height)
    (hint,) = await run_until_disconnect(request.receive, service.make_hints(prepared))
    return Response(hint, media_type="image/png", headers={"Cache-Control": "no-store"})


def _count_answer(count: TokenCount) -> TokenCountAnswer:
    return TokenCountAnswer(
        tokens=count.tokens,
        chunks=count.chunks,
        max_tokens=count.chunk_tokens * count.max_chunks,
        max_chunks=count.max_chunks,
    )
