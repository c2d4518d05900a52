"""The endpoint that tells what a picture carries: who signed it, whether a machine made it, and how."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Request

# pydantic refuses `typing.TypedDict` before Python 3.12.
from typing_extensions import TypedDict

from deployments.uploads.image_files import read_header
from serve_app.api.dependencies import VerifierDep
from serve_app.api.middleware.rate_limiting import charge_pixels
from serve_app.api.parsing.forms import Form, read_form
from serve_app.api.parsing.validation import MAX_FAULTS, fault_of, problem_of_faults
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.openapi import PICTURE, answers
from serve_app.labels.parameters_text import parse_parameters
from serve_app.labels.reading import FoundLabels

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])

_FILE: Final = "image"


class ManifestAnswer(TypedDict):
    """The C2PA manifest. `state` is `valid` (unchanged since it was signed, by whomever), `invalid` (changed since, or
    never right), `unreadable`, or `none`.
    """

    state: str
    signer: str | None
    signed_by_this_server: bool
    generator: str | None
    source_types: list[str]
    actions: list[str]
    ingredients: int


class WatermarkAnswer(TypedDict):
    """The mark in the pixels; `payload` is in hexadecimal digits. `marked_by_this_server` is null for the default
    payload, which many servers have.
    """

    found: bool
    payload: str | None
    score: float | None
    marked_by_this_server: bool | None


class ParametersAnswer(TypedDict):
    """How the picture was made, as its file says in A1111's words; anybody can write that."""

    text: str
    fields: dict[str, str]


class VerifyAnswer(TypedDict):
    """What was found. `ai_made`: something in the file says that a model made the picture, or part of it."""

    ai_made: bool
    format: str
    width: int
    height: int
    c2pa: ManifestAnswer
    digital_source_type: str | None
    watermark: WatermarkAnswer
    parameters: ParametersAnswer | None


def _request_body() -> dict[str, Any]:
    schema = {"type": "object", "properties": {_FILE: PICTURE}, "required": [_FILE]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


_ANSWERS: Final = {code: answer for code, answer in answers().items() if code not in (200, 404, 406, 409, 499, 504)}


@router.post("/verify", openapi_extra={"requestBody": _request_body()}, responses=_ANSWERS)
async def verify(request: Request, verifier: VerifierDep) -> VerifyAnswer:
    """Tells what a picture carries: its C2PA manifest, IPTC's source type, a watermark, and how it was made.

    That nothing is found does not mean that no machine made it: labels can be lost, or taken away. It costs what
    enlarging a picture of that size does. A disconnect ends it.
    """
    form = await read_form(request, request.app.state.max_upload_bytes, (_FILE,), ())
    _refuse_fields(form)
    file = form.require_file(_FILE)
    header = await asyncio.to_thread(read_header, file, _FILE)
    await charge_pixels(request, header.width * header.height)
    return _answer_of(await run_until_disconnect(request.receive, verifier.verify(file, _FILE)))


def _refuse_fields(form: Form) -> None:
    """Raises Problem 422 if the form has anything besides the picture."""
    names = list(form.parameters)
    if names:
        faults = (fault_of({"type": "extra_forbidden", "loc": (name,)}, known=(_FILE,)) for name in names[:MAX_FAULTS])
        raise problem_of_faults(tuple(faults), len(names))


def _answer_of(found: FoundLabels) -> VerifyAnswer:
    manifest, mark, text = found.manifest, found.mark, found.texts.parameters
    return VerifyAnswer(
        ai_made=found.is_ai_made,
        format=found.header.format.lower(),
        width=found.header.width,
        height=found.header.height,
        c2pa=ManifestAnswer(
            state=manifest.state,
            signer=manifest.signer,
            signed_by_this_server=found.signed_here,
            generator=manifest.generator,
            source_types=list(manifest.source_types),
            actions=list(manifest.actions),
            ingredients=manifest.ingredients,
        ),
        digital_source_type=found.source_type,
        watermark=WatermarkAnswer(
            found=mark is not None,
            payload=None if mark is None else mark.payload.hex(),
            score=None if mark is None else mark.score,
            marked_by_this_server=found.marked_here,
        ),
        parameters=None if text is None else ParametersAnswer(text=text, fields=parse_parameters(text)),
    )
