"""Reads what Hugging Face's inference clients send: a prompt or a picture as `inputs`, and parameters beside it."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.parsing.base64_pictures import decode_picture, is_data_url
from serve_app.api.parsing.validation import read_params
from serve_app.api.problems import Fault, Problem, pointer_to

INPUTS: Final = "inputs"
PARAMETERS: Final = "parameters"
TARGET_SIZE: Final = "target_size"

# How the files that can be changed begin; no prompt in base64's alphabet does.
_BEGINNINGS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")

_RENAMED: Final = {"scheduler": "sampler"}

# The path says the model, and the answer is one image.
_NOT_HERE: Final = ("prompt", "model_name", "num_images", "controls", "guess_mode")


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request as it was understood."""

    params: GenerationParams
    uploads: Uploads | None = None


def read_inference_body(body: Mapping[str, Any], model: str) -> InferenceRequest:
    """Returns the request in a JSON body. Raises InvalidParameter, and Problem 422."""
    unknown = [name for name in body if name not in (INPUTS, PARAMETERS)]
    if unknown:
        message = f"the body has {INPUTS} and {PARAMETERS}, and nothing else"
        raise Problem(422, "unknown_field", message, faults=(Fault(pointer_to(None), "unknown_field", message),))
    inputs, parameters = body.get(INPUTS), body.get(PARAMETERS) or {}
    if not isinstance(inputs, str):
        raise InvalidParameter(INPUTS, "must be a text: the prompt, or a picture in base64")
    if not isinstance(parameters, dict):
        raise InvalidParameter(PARAMETERS, "must be an object")
    if "prompt" not in parameters and not _is_picture(inputs):
        return InferenceRequest(_read_parameters(parameters, inputs, model))
    prompt = parameters.get("prompt") or ""
    uploads = Uploads(image=decode_picture(inputs, INPUTS), image_field=INPUTS)
    return InferenceRequest(_read_parameters(parameters, prompt, model), uploads)


def read_picture(data: bytes, model: str) -> InferenceRequest:
    """Returns the request of a body that is a picture and nothing else, which is changed without a prompt."""
    if not data:
        raise InvalidParameter(INPUTS, "is an empty picture")
    params = read_params({"prompt": "", "model_name": model})
    return InferenceRequest(params, Uploads(image=data, image_field=INPUTS))


def _read_parameters(parameters: Mapping[str, Any], prompt: Any, model: str) -> GenerationParams:
    given = {name: value for name, value in parameters.items() if name != "prompt" and value is not None}
    for name in _NOT_HERE:
        if name in given:
            raise InvalidParameter(f"{PARAMETERS}/{name}", "is not for these endpoints; the path names the model")
    size = given.pop(TARGET_SIZE, None)
    if size is not None:
        given |= _read_size(size)
    for theirs, ours in _RENAMED.items():
        if theirs in given:
            given[ours] = given.pop(theirs)
    try:
        return read_params({**given, "prompt": prompt, "model_name": model})
    except Problem as problem:
        raise problem.relocate(PARAMETERS) from None


def _read_size(size: Any) -> dict[str, Any]:
    if not isinstance(size, dict) or set(size) - {"width", "height"}:
        raise InvalidParameter(f"{PARAMETERS}/{TARGET_SIZE}", "must be an object of width and height")
    return {name: value for name, value in size.items() if value is not None}


def _is_picture(text: str) -> bool:
    """Returns True if `text` is the base64 of a picture's file, also as a data URL."""
    if is_data_url(text):
        return True
    try:
        begin = base64.b64decode(text[:16], validate=True)
    except (binascii.Error, ValueError):
        return False
    return begin.startswith(_BEGINNINGS)
