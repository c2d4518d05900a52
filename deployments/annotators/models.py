"""The annotators' models that this project knows: one row each, by the name that configurations use."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from deployments.annotators.spec import (
    AnnotatorSpec,
    AnnotatorSpecs,
    DepthSpec,
    PoseSpec,
    SegmentationSpec,
    Weights,
    sources,
)
from deployments.engine.errors import ModelLoadError
from deployments.registry import UNPINNED

_DEMO: Final = Path(__file__).parents[1] / "demo_models" / "demo-annotators"

ANNOTATORS: Mapping[str, AnnotatorSpec] = MappingProxyType(
    {
        "depth-anything-v2-small": DepthSpec(
            Weights("depth-anything/Depth-Anything-V2-Small-hf", UNPINNED, "Apache-2.0")
        ),
        "dpt-large": DepthSpec(Weights("Intel/dpt-large", UNPINNED, "Apache-2.0")),
        "vitpose-base": PoseSpec(
            Weights("usyd-community/vitpose-base-simple", UNPINNED, "Apache-2.0"),
            detector=Weights("PekingU/rtdetr_r50vd_coco_o365", UNPINNED, "Apache-2.0"),
        ),
        "segformer-b0": SegmentationSpec(
            Weights(
                "nvidia/segformer-b0-finetuned-ade-512-512", UNPINNED, "NVIDIA, non-commercial (see the repository)"
            )
        ),
        "upernet-convnext-small": SegmentationSpec(Weights("openmmlab/upernet-convnext-small", UNPINNED, "MIT")),
        # Trained here, on the demo models' world only: photographs mean nothing to them.
        "demo-depth": DepthSpec(Weights(str(_DEMO / "depth"), licence="Apache-2.0"), near_is_large=False),
        "demo-pose": PoseSpec(Weights(str(_DEMO / "pose"), licence="Apache-2.0")),
        "demo-segmentation": SegmentationSpec(Weights(str(_DEMO / "segmentation"), licence="Apache-2.0")),
    }
)

DEMO_ANNOTATORS: AnnotatorSpecs = MappingProxyType(
    {kind: ANNOTATORS[f"demo-{kind}"] for kind in ("depth", "pose", "segmentation")}
)


def check_annotator(kind: str, spec: AnnotatorSpec) -> None:
    """Raises ModelLoadError where one of its networks cannot be loaded for certain, as `registry.check_source` does."""
    for place, weights in sources(spec).items():
        if Path(weights.source).is_dir() or weights.revision is not UNPINNED:
            continue
        title = f"annotator {kind!r}"
        if Path(weights.source).is_absolute() or weights.source.startswith("."):
            raise ModelLoadError(f"{title}: there is no folder {weights.source!r}")
        setting = ": ".join(part for part in ("annotators", kind, place, "revision") if part)
        raise ModelLoadError(
            f"{title}: pin `{setting}` to a commit of {weights.source!r} in the configuration, or set `source` there "
            "to a local folder"
        )
