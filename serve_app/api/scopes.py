"""The access that each route needs where keys are configured: none, any key, or a key with a scope."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from starlette.routing import Match, Route
from starlette.types import Scope

Need = Literal["nothing", "key", "generate", "train", "operate"]

_ADS: Final = "/ads/v2/diffusion"
_SDAPI: Final = "/sdapi/v1"
_SDAPI_WORK: Final = ("txt2img", "img2img", "extra-single-image", "extra-batch-images", "png-info")
_SDAPI_LISTS: Final = (
    "cmd-flags",
    "embeddings",
    "face-restorers",
    "hypernetworks",
    "interrupt",
    "latent-upscale-modes",
    "loras",
    "memory",
    "options",
    "progress",
    "prompt-styles",
    "realesrgan-models",
    "refresh-checkpoints",
    "samplers",
    "schedulers",
    "scripts",
    "sd-models",
    "sd-modules",
    "sd-vae",
    "skip",
    "upscalers",
)
_CONTROLNET_LISTS: Final = ("control_types", "model_list", "module_list", "settings", "version")

RULES: Final[Mapping[str, Need]] = MappingProxyType(
    {
        # Orchestrators and load balancers have no keys, and these answers are no secret.
        "/livez": "nothing",
        "/readyz": "nothing",
        f"{_ADS}/health": "nothing",
        # The same for every server of this version; a browser could not give a key to see them.
        # Signed, and for programs that fetch an image without knowing where it came from.
        "/results/{file_id}": "nothing",
        "/docs": "nothing",
        "/docs/{name}": "nothing",
        "/openapi.json": "nothing",
        "/": "nothing",
        "/playground/{name}": "nothing",
        f"{_ADS}/models": "key",
        f"{_ADS}/samplers": "key",
        f"{_ADS}/styles": "key",
        f"{_ADS}/ad-formats": "key",
        f"{_ADS}/templates": "key",
        f"{_ADS}/embeddings": "key",
        f"{_ADS}/upscalers": "key",
        f"{_ADS}/loras": "key",
        f"{_ADS}/tokens": "key",
        f"{_ADS}/hint": "generate",
        f"{_ADS}/text-to-image": "generate",
        f"{_ADS}/image-to-image": "generate",
        f"{_ADS}/inpaint": "generate",
        f"{_ADS}/controlnet": "generate",
        f"{_ADS}/batch-generate": "generate",
        f"{_ADS}/style-transfers": "generate",
        f"{_ADS}/upscale": "generate",
        f"{_ADS}/verify": "generate",
        f"{_ADS}/jobs": "generate",
        f"{_ADS}/jobs/{{job_id}}": "generate",
        f"{_ADS}/jobs/{{job_id}}/events": "generate",
        f"{_ADS}/jobs/{{job_id}}/images/{{entry}}/{{image}}": "generate",
        f"{_ADS}/requests/{{request_id}}": "generate",
        f"{_ADS}/trainings": "train",
        f"{_ADS}/trainings/{{training_id}}": "train",
        f"{_ADS}/trainings/{{training_id}}/events": "train",
        f"{_ADS}/trainings/{{training_id}}/resume": "train",
        f"{_ADS}/trainings/{{training_id}}/register": "train",
        f"{_ADS}/trainings/{{training_id}}/pictures/{{name}}": "train",
        "/v1/models": "key",
        "/v1/models/{model:path}": "key",
        "/v1/images/generations": "generate",
        "/v1/images/edits": "generate",
        **dict.fromkeys((f"{_SDAPI}/{name}" for name in _SDAPI_LISTS), "key"),
        **dict.fromkeys((f"{_SDAPI}/{name}" for name in _SDAPI_WORK), "generate"),
        **dict.fromkeys((f"/controlnet/{name}" for name in _CONTROLNET_LISTS), "key"),
        "/controlnet/detect": "generate",
        "/config": "key",
        "/hf/{model}": "generate",
        "/hf/{owner}/{model}": "generate",
        f"{_ADS}/stats": "operate",
        f"{_ADS}/cache": "operate",
        "/metrics": "operate",
    }
)
"""By path, for every method. A route without a rule is a mistake; a test finds it."""


async def _never_called(_: Any) -> None:
    """Stands in for endpoints: these routes only match paths, exactly as the router will."""


_ROUTES: Final = tuple((Route(path, _never_called), need) for path, need in RULES.items())


_TOKENS: Final = Route(f"{_ADS}/tokens", _never_called)


def need_of(scope: Scope) -> Need:
    """The access that the request with that ASGI scope needs. Unknown paths need a key: only key holders get a 404."""
    for route, need in _ROUTES:
        if route.matches(scope)[0] is not Match.NONE:
            return need
    return "key"


def counts_tokens(scope: Scope) -> bool:
    """Whether the request has an engine count a prompt's tokens: little work, but work."""
    return scope["type"] == "http" and scope["method"] == "POST" and _TOKENS.matches(scope)[0] is not Match.NONE


def asks_for_work(scope: Scope) -> bool:
    """Whether the request asks for images."""
    return scope["type"] == "http" and scope["method"] == "POST" and need_of(scope) == "generate"
