"""Errors that name A1111's fields, and not those that they were translated to."""

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute

from deployments.engine.protocol.errors import EngineError
from serve_app.api.problems import Fault, Problem, pointer_to, problem_of

_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "num_inference_steps": "steps",
        "guidance_scale": "cfg_scale",
        "sampler": "sampler_name",
        "strength": "denoising_strength",
        "num_images": "batch_size",
        "model_name": "override_settings/sd_model_checkpoint",
        "clip_skip": "override_settings/CLIP_stop_at_last_layers",
        "mask_alpha": "mask",
        "mask_feather": "mask_blur",
        "padding_mask_crop": "inpaint_full_res_padding",
        "control_image": "alwayson_scripts",
        "controlnet_type": "alwayson_scripts",
        "preprocess": "alwayson_scripts",
        "controls": "alwayson_scripts",
        "reference": "alwayson_scripts",
        "reference_images": "alwayson_scripts",
        "loras": "prompt",
    }
)


class A1111Route(APIRoute):
    """A route whose errors name A1111's fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's own handler."""
        handle = super().get_route_handler()

        async def handle_and_translate(request: Request) -> Response:
            with a1111_errors():
                return await handle(request)

        return handle_and_translate


@contextmanager
def a1111_errors() -> Iterator[None]:
    """Raises the caller's mistakes with A1111's names of the fields. Other errors pass as they are."""
    try:
        yield
    except (EngineError, Problem) as error:
        problem = problem_of(error) if isinstance(error, EngineError) else error
        if problem.status >= 500:
            raise
        raise _translate(problem) from None


def _translate(problem: Problem) -> Problem:
    """Returns `problem` with A1111's names; one that has them already, as it is."""
    translated = Problem(
        problem.status,
        problem.code,
        problem.message,
        param=None if problem.param is None else _FIELDS.get(problem.param, problem.param),
        faults=tuple(_translate_fault(fault) for fault in problem.faults),
        headers=problem.headers,
    )
    translated.retryable = problem.retryable
    return translated


def _translate_fault(fault: Fault) -> Fault:
    name = fault.pointer.removeprefix("#/")
    return replace(fault, pointer=pointer_to(_FIELDS[name])) if name in _FIELDS else fault
