"""Makes the hints of segmentation ControlNets: each pixel's class, in ADE20K's colours."""

from typing import Final

import cv2
import numpy as np
import torch
from transformers import AutoModelForSemanticSegmentation

from deployments.annotators.networks import WORKING_PIXELS, Network, load_network, shrink_to
from deployments.annotators.palette import ADE20K
from deployments.annotators.spec import SegmentationSpec
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import ImageArray

_TITLE: Final = "annotator 'segmentation'"


class SegmentationAnnotator:
    """Segments an image. Not thread-safe."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._colours = np.asarray(ADE20K, dtype=np.uint8)

    @classmethod
    def load(cls, spec: SegmentationSpec, device: torch.device) -> "SegmentationAnnotator":
        """Loads the network. Raises ModelLoadError, also for one of other labels."""
        network = load_network(_TITLE, spec.weights, AutoModelForSemanticSegmentation, device)
        labels = network.model.config.num_labels
        if labels != len(ADE20K):
            raise ModelLoadError(f"{_TITLE}: {spec.weights.source!r} has {labels} labels, ADE20K has {len(ADE20K)}")
        return cls(network)

    def __call__(self, image: ImageArray) -> ImageArray:
        """Converts [H, W, 3] to [H, W, 3], every pixel one of `ADE20K`."""
        seen = shrink_to(image, WORKING_PIXELS)
        answer = self._network(seen)
        # 150 maps of the size asked for: at the working size they take a third of a gigabyte.
        (labels,) = self._network.processor.post_process_semantic_segmentation(answer, target_sizes=[seen.shape[:2]])
        hint = self._colours[labels.cpu().numpy()]
        height, width = image.shape[:2]
        return np.asarray(cv2.resize(hint, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
