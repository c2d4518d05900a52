"""Describes an annotator's networks before they are loaded. The rows are in `models.py`. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from deployments.annotators.skeleton import THRESHOLD
from deployments.engine.protocol.spec import PartSpec


@dataclass(frozen=True, slots=True)
class DepthSpec:
    """A network of `AutoModelForDepthEstimation`.

    `near_is_large` says what its answers mean: inverse depth (Depth Anything, DPT) is large where things are near,
    metric depth (GLPN) is small there.
    """

    weights: PartSpec
    near_is_large: bool = True


@dataclass(frozen=True, slots=True)
class PoseSpec:
    """A `VitPoseForPoseEstimation` of COCO's 17 keypoints.

    `detector` is a network of `AutoModelForObjectDetection` with a label `person`; without one the whole image is
    taken for one person. Keypoints with a score below `threshold` are not drawn.
    """

    weights: PartSpec
    detector: PartSpec | None = None
    threshold: float = THRESHOLD


@dataclass(frozen=True, slots=True)
class SegmentationSpec:
    """A network of `AutoModelForSemanticSegmentation` with ADE20K's 150 labels."""

    weights: PartSpec


AnnotatorSpec = DepthSpec | PoseSpec | SegmentationSpec

AnnotatorSpecs = Mapping[str, AnnotatorSpec]
"""Annotators by the ControlNet type whose hints they make."""


def network_sources(spec: AnnotatorSpec) -> Mapping[str, PartSpec]:
    """Returns all networks of `spec`, by their place in the configuration; "" is the annotator's own."""
    detector = {"detector": spec.detector} if isinstance(spec, PoseSpec) and spec.detector is not None else {}
    return {"": spec.weights} | detector
