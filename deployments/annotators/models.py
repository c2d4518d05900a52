"""The table of annotator models: one row each, by the name that configurations use."""

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
    network_sources,
)
from deployments.engine.models.hub import locate
from deployments.engine.protocol.spec import PartSpec
from deployments.pins import pin_part
from deployments.source_checks import check_part

_DEMO: Final = Path(__file__).parents[1] / "demo_models" / "demo-annotators"

ANNOTATORS: Mapping[str, AnnotatorSpec] = MappingProxyType(
    {
        "depth-anything-v2-small": DepthSpec(pin_part("depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0")),
        "dpt-large": DepthSpec(pin_part("Intel/dpt-large", "Apache-2.0")),
        "vitpose-base": PoseSpec(
            pin_part("usyd-community/vitpose-base-simple", "Apache-2.0"),
            detector=pin_part("PekingU/rtdetr_r50vd_coco_o365", "Apache-2.0"),
        ),
        "segformer-b0": SegmentationSpec(
            pin_part("nvidia/segformer-b0-finetuned-ade-512-512", "NVIDIA, non-commercial (see the repository)")
        ),
        # Pickled weights only: it loads from the folder that `darkroom convert` makes of it.
        "upernet-convnext-small": SegmentationSpec(pin_part("openmmlab/upernet-convnext-small", "MIT")),
        # Trained here, on the demo models' world only: photographs mean nothing to them.
        "demo-depth": DepthSpec(PartSpec(str(_DEMO / "depth"), licence="Apache-2.0"), near_is_large=False),
        "demo-pose": PoseSpec(PartSpec(str(_DEMO / "pose"), licence="Apache-2.0")),
        "demo-segmentation": SegmentationSpec(PartSpec(str(_DEMO / "segmentation"), licence="Apache-2.0")),
    }
)

DEMO_ANNOTATORS: AnnotatorSpecs = MappingProxyType(
    {kind: ANNOTATORS[f"demo-{kind}"] for kind in ("depth", "pose", "segmentation")}
)


def check_annotator(kind: str, spec: AnnotatorSpec) -> None:
    """Raises ModelLoadError if one of its networks certainly cannot be loaded, as `source_checks.check_source` does."""
    for place, part in network_sources(spec).items():
        setting = ": ".join(step for step in ("annotators", kind, place, "revision") if step)
        check_part(f"annotator {kind!r}", f"`{setting}`", part)


def fetch_annotator(kind: str, spec: AnnotatorSpec) -> None:
    """Fetches its networks' files to this machine, without loading them. Raises ModelLoadError."""
    for place, part in network_sources(spec).items():
        title = ": its ".join(step for step in (f"annotator {kind!r}", place) if step)
        locate(title, part.source, part.revision, ("",), half=False)
