"""Makes the hints of pose ControlNets: detects people, then their keypoints (ViTPose, Xu et al.

2022), and draws them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForObjectDetection, VitPoseForPoseEstimation

from deployments.annotators.networks import Network, load_network
from deployments.annotators.skeleton import JOINTS, THRESHOLD, Person, draw_skeleton
from deployments.annotators.spec import PoseSpec
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import ImageArray

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels, as COCO has it."""

Detector = Callable[[ImageArray], Sequence[Box]]
"""Returns the boxes of the people in an image [H, W, 3]."""

KEYPOINTS: Final = (
    "nose",
    "left eye",
    "right eye",
    "left ear",
    "right ear",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
    "left knee",
    "right knee",
    "left ankle",
    "right ankle",
)
"""COCO's keypoints, in its order."""

MOST_PEOPLE: Final = 16
_DETECTED_FROM: Final = 0.3
_TITLE: Final = "annotator 'pose'"
_NECK: Final = JOINTS.index("neck")
_KEPT: Final = [KEYPOINTS.index(joint) for joint in JOINTS if joint != "neck"]
_SHOULDERS: Final = [KEYPOINTS.index("left shoulder"), KEYPOINTS.index("right shoulder")]


class PoseAnnotator:
    """Finds people and draws their skeletons. Not thread-safe."""

    def __init__(self, network: Network, detector: Detector | None = None, threshold: float = THRESHOLD) -> None:
        """Without a `detector` an image is taken for one person from edge to edge."""
        self._network = network
        self._detector = detector
        self._threshold = threshold

    @classmethod
    def load(cls, spec: PoseSpec, device: torch.device) -> "PoseAnnotator":
        """Loads the networks. Raises ModelLoadError, also for one of other keypoints, or without a label for people."""
        network = load_network(_TITLE, spec.weights, VitPoseForPoseEstimation, device)
        if network.model.config.num_labels != len(KEYPOINTS):
            raise ModelLoadError(f"{_TITLE}: {spec.weights.source!r} does not find COCO's {len(KEYPOINTS)} keypoints")
        detector: Detector | None = None
        if spec.detector is not None:
            detector = PersonDetector(
                load_network(f"{_TITLE}: its detector", spec.detector, AutoModelForObjectDetection, device)
            )
        return cls(network, detector, spec.threshold)

    def __call__(self, image: ImageArray) -> ImageArray:
        """Converts [H, W, 3] to skeletons on black, [H, W, 3]; all black if nobody is seen."""
        height, width = image.shape[:2]
        boxes = [(0.0, 0.0, float(width), float(height))] if self._detector is None else self._detector(image)
        return draw_skeleton(self._people(image, boxes), width, height, self._threshold)

    def _people(self, image: ImageArray, boxes: Sequence[Box]) -> list[Person]:
        if not boxes:
            return []
        nested = [[list(box) for box in boxes]]
        answer = self._network(image, {"boxes": nested}, **self._dataset(len(boxes)))
        (found,) = self._network.processor.post_process_pose_estimation(answer, boxes=nested)
        return [
            to_openpose(np.concatenate([person["keypoints"].numpy(), person["scores"].numpy()[:, None]], axis=1))
            for person in found
        ]

    def _dataset(self, people: int) -> dict[str, torch.Tensor]:
        """Selects COCO's experts: ViTPose+ has experts for several datasets, of which COCO is the first."""
        if self._network.model.config.backbone_config.num_experts == 1:
            return {}
        return {"dataset_index": torch.zeros(people, dtype=torch.long, device=self._network.device)}


class PersonDetector:
    """Detects the people in an image."""

    def __init__(self, network: Network) -> None:
        """Raises ModelLoadError if the network has no label for people."""
        self._network = network
        labels: dict[int, str] = network.model.config.id2label
        people = [label for label, name in labels.items() if name.lower() == "person"]
        if not people:
            raise ModelLoadError(f"{_TITLE}: its detector has no label `person`")
        self._label = people[0]

    def __call__(self, image: ImageArray) -> list[Box]:
        """Returns at most `MOST_PEOPLE` boxes, the surest first."""
        answer = self._network(image)
        (found,) = self._network.processor.post_process_object_detection(
            answer, threshold=_DETECTED_FROM, target_sizes=[image.shape[:2]]
        )
        mine = found["labels"] == self._label
        surest = found["scores"][mine].argsort(descending=True)[:MOST_PEOPLE]
        corners: list[list[float]] = found["boxes"][mine][surest].tolist()
        boxes = [(left, top, right - left, bottom - top) for left, top, right, bottom in corners]
        return [box for box in boxes if min(box[2:]) >= 1]


def to_openpose(person: NDArray[np.floating[Any]]) -> Person:
    """Converts COCO's keypoints [17, 3] to OpenPose's joints [18, 3]: the neck is between the shoulders, seen if both
    are.
    """
    shoulders = person[_SHOULDERS]
    neck = [*shoulders[:, :2].mean(axis=0), shoulders[:, 2].min()]
    return np.insert(person[_KEPT], _NECK, neck, axis=0)
