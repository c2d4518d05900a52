"""Errors in OpenAI's words: their names of fields, their codes, and 400 where the other endpoints say 422."""

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from deployments.engine.protocol.errors import EngineError
from serve_app.api.problems import Fault, Problem, pointer_to, problem_of

RENAMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "num_images": "n",
        "width": "size",
        "height": "size",
        "model_name": "model",
        "output_quality": "output_compression",
    }
)
"""Parameters that have another name here."""

_FIELDS: Final = MappingProxyType(
    {
        **RENAMED,
        "control_image": "image",
        "controlnet_type": "controls",
        "mask_alpha": "mask",
        "reference_images": "image",
    }
)
_MODERATED: Final = "moderation_blocked"

_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unknown_field": "unknown_parameter",
        "not_allowed": "unsupported_value",
        "rate_limited": "rate_limit_exceeded",
        "content_filtered": _MODERATED,
        "prompt_blocked": _MODERATED,
    }
)

_REFUSED_NAMES: Final = ("unknown_field", "unknown_parameter")

# The engine has been told that what is transparent is painted anew, which our own endpoint leaves to the caller.
_OPAQUE_MASK: Final = (
    "must be transparent where the image is to be painted anew, and this one is not transparent anywhere; "
    "/ads/v2/diffusion/inpaint takes masks in white and black"
)


class OpenAIRoute(APIRoute):
    """A route whose errors, the caller's own mistakes, are in OpenAI's words."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's own handler."""
        handle = super().get_route_handler()

        async def handle_and_translate(request: Request) -> Response:
            with openai_errors():
                return await handle(request)

        return handle_and_translate


@contextmanager
def openai_errors() -> Iterator[None]:
    """Raises the caller's mistakes as OpenAI would describe them. Other errors pass as they are."""
    try:
        yield
    except RequestValidationError:
        # A path that is no name of a model.
        raise Problem(404, "model_not_found", "there is no such model", param="model") from None
    except (EngineError, Problem) as error:
        problem = problem_of(error) if isinstance(error, EngineError) else error
        if problem.status >= 500:
            raise
        raise translate(problem) from None


def translate(problem: Problem) -> Problem:
    """Returns `problem` in OpenAI's words; one that is translated already, as it is."""
    faults = tuple(dict.fromkeys(translate_fault(fault) for fault in problem.faults))
    message = problem.message
    if problem.param == "mask_alpha" and faults:
        message = faults[0].message
    translated = Problem(
        400 if problem.status == 422 else problem.status,
        _CODES.get(problem.code, problem.code),
        message,
        param=_translate_field(problem.param, problem.code),
        faults=faults,
        headers=problem.headers,
    )
    translated.retryable = problem.retryable
    if translated.code == _MODERATED:
        translated.kind = "image_generation_user_error"
    return translated


def translate_fault(fault: Fault) -> Fault:
    """Returns `fault` in OpenAI's words; one that is translated already, as it is."""
    name = fault.pointer.removeprefix("#/")
    return replace(
        fault,
        pointer=pointer_to(_translate_field(name, fault.code)) if name in _FIELDS else fault.pointer,
        code=_CODES.get(fault.code, fault.code),
        message=_OPAQUE_MASK if name == "mask_alpha" else fault.message,
    )


def _translate_field(name: str | None, code: str) -> str | None:
    """A field's name here, unless it is the name itself that is refused."""
    return name if name is None or code in _REFUSED_NAMES else _FIELDS.get(name, name)
