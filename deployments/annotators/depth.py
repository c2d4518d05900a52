"""Makes the hints of depth ControlNets: the nearer, the brighter."""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForDepthEstimation

from deployments.annotators.networks import WORKING_PIXELS, Network, load_network, shrink_to
from deployments.annotators.spec import DepthSpec
from deployments.engine.protocol.errors import NumericalFailure
from deployments.engine.protocol.inputs import ImageArray


class DepthAnnotator:
    """Estimates depth from one image. Not thread-safe."""

    def __init__(self, network: Network, *, near_is_large: bool) -> None:
        self.network = network
        self._near_is_large = near_is_large

    @classmethod
    def load(cls, spec: DepthSpec, device: torch.device) -> "DepthAnnotator":
        """Loads the network. Raises ModelLoadError."""
        network = load_network("annotator 'depth'", spec.weights, AutoModelForDepthEstimation, device)
        return cls(network, near_is_large=spec.near_is_large)

    def __call__(self, image: ImageArray) -> ImageArray:
        """Converts [H, W, 3] to grey [H, W, 3]: the nearest is 255, the farthest 0, linear in the network's answer
        between.

        Raises NumericalFailure.
        """
        answer = self.network(shrink_to(image, WORKING_PIXELS))
        height, width = image.shape[:2]
        (found,) = self.network.processor.post_process_depth_estimation(answer, target_sizes=[(height, width)])
        values = found["predicted_depth"].cpu().numpy()
        grey = stretch(values if self._near_is_large else -values)
        return np.repeat(grey[:, :, None], 3, axis=2)


def stretch(nearness: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretches [H, W] to 0 to 255; 0 if all is equally near. Raises NumericalFailure."""
    low, high = nearness.min(), nearness.max()
    if not np.isfinite(high - low):
        raise NumericalFailure("the depth of the control image could not be estimated")
    if high == low:
        return np.zeros(nearness.shape, dtype=np.uint8)
    return np.asarray(((nearness - low) / (high - low) * 255).round(), dtype=np.uint8)
