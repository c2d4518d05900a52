"""Reads what Hugging Face's inference clients send: a prompt or a picture as `inputs`, and parameters beside it."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.huggingface.errors import INPUTS, PARAMETERS, inference_errors
from serve_app.api.parsing.base64_pictures import decode_picture, is_data_url
from serve_app.api.parsing.validation import read_params
from serve_app.api.problems import Fault, Problem, pointer_to

TARGET_SIZE: Final = "target_size"

# How the files that can be changed begin; no prompt in base64's alphabet does.
_BEGINNINGS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")

PROMPT: Final = "prompt"
SCHEDULER: Final = "scheduler"
_SAMPLER: Final = "sampler"
_SIDES: Final = ("width", "height")

NOT_HERE: Final = ("model_name", "num_images", "controls", "guess_mode", "reference")
"""Of our own parameters: the path says the model, and the answer is one image."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request as it was understood. `places` are where its fields were, of those that were not where ours are."""

    params: GenerationParams
    uploads: Uploads | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def read_inference_body(body: Mapping[str, Any], model: str) -> InferenceRequest:
    """Returns the request in a JSON body. Raises InvalidParameter, and Problem 422."""
    unknown = [name for name in body if name not in (INPUTS, PARAMETERS)]
    if unknown:
        message = f"the body has {INPUTS} and {PARAMETERS}, and nothing else"
        raise Problem(422, "unknown_field", message, faults=(Fault(pointer_to(None), "unknown_field", message),))
    inputs, parameters = body.get(INPUTS), body.get(PARAMETERS)
    if parameters is None:
        parameters = {}
    if not isinstance(inputs, str):
        raise InvalidParameter(INPUTS, "must be a text: the prompt, or a picture in base64")
    if not isinstance(parameters, dict):
        raise InvalidParameter(PARAMETERS, "must be an object")
    places = _places_of(parameters)
    if PROMPT not in parameters and not _is_picture(inputs):
        places[PROMPT] = INPUTS
        return InferenceRequest(_read_parameters(parameters, inputs, model, places), places=places)
    prompt = "" if parameters.get(PROMPT) is None else parameters[PROMPT]
    uploads = Uploads(image=decode_picture(inputs, INPUTS), image_field=INPUTS)
    return InferenceRequest(_read_parameters(parameters, prompt, model, places), uploads, places)


def read_picture(data: bytes, model: str) -> InferenceRequest:
    """Returns the request of a body that is a picture and nothing else, which is changed without a prompt."""
    if not data:
        raise InvalidParameter(INPUTS, "is an empty picture")
    params = read_params({"prompt": "", "model_name": model})
    return InferenceRequest(params, Uploads(image=data, image_field=INPUTS))


def _places_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Returns the places in the body of what is there under another name than ours."""
    places = {}
    if parameters.get(SCHEDULER) is not None:
        places[_SAMPLER] = f"{PARAMETERS}/{SCHEDULER}"
    if parameters.get(TARGET_SIZE) is not None:
        places |= {side: f"{PARAMETERS}/{TARGET_SIZE}/{side}" for side in _SIDES}
    return places


def _read_parameters(
    parameters: Mapping[str, Any], prompt: Any, model: str, places: Mapping[str, str]
) -> GenerationParams:
    given = {name: value for name, value in parameters.items() if name != PROMPT and value is not None}
    for name in NOT_HERE:
        if name in given:
            raise InvalidParameter(f"{PARAMETERS}/{name}", "is not for these endpoints; the path names the model")
    size = given.pop(TARGET_SIZE, None)
    if size is not None:
        given |= _read_size(size)
    if SCHEDULER in given:
        given[_SAMPLER] = given.pop(SCHEDULER)
    with inference_errors(places):
        return read_params({**given, PROMPT: prompt, "model_name": model})


def _read_size(size: Any) -> dict[str, Any]:
    if not isinstance(size, dict) or set(size) - set(_SIDES):
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
