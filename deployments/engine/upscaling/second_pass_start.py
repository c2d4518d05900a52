"""Makes what a second pass begins from: the first one's picture, enlarged, and encoded by the VAE."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from deployments.engine.conditioning.image_encoder import Posterior
from deployments.engine.device.errors import call_again_if_full
from deployments.engine.device.metering import meter_call
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.upscaling.upscalers import Upscalers


class Enlarger:
    """Enlarges pictures and encodes them, one at a time, as the plan counts it: on its `thread`.

    The work for a request that `is_gone`, asked by its id, ends at the next tile. Records in `plan` what the VAE took
    of `device`'s memory.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        device: DeviceMemory,
        upscalers: Upscalers,
        is_gone: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._is_gone = is_gone
        self._plan, self._device, self._upscalers = plan, device, upscalers
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="enlarge")
        self._stopped = threading.Event()

    def close(self) -> None:
        """Ends the thread at its next tile, and drops what waits."""
        self._stopped.set()
        self.thread.shutdown(wait=True, cancel_futures=True)

    def encode(self, picture: ImageArray, first: Request, model: LoadedModel) -> Posterior:
        """Returns the VAE's encoding of the first pass's `picture` [H, W, 3], enlarged. Raises EngineError."""
        hires, bucket = first.params.hires, first.encoded_bucket
        assert hires is not None
        assert bucket is not None
        size = (bucket.width, bucket.height)

        def is_stopped() -> bool:
            return self._stopped.is_set() or self._is_gone(first.id)

        if hires.upscaler == "lanczos":
            enlarged = enlarge_picture(picture, size)
        else:
            enlarged = self._upscalers.enlarge_to(hires.upscaler, picture, size, is_stopped=is_stopped)
        if is_stopped():
            raise Cancelled
        return call_again_if_full(lambda: self._encode(enlarged, bucket, model), self._device.release)

    def _encode(self, enlarged: ImageArray, bucket: Bucket, model: LoadedModel) -> Posterior:
        with meter_call(self._plan, self._device, "encode", bucket, 1):
            return model.image_encoder.encode_once(enlarged)


def enlarge_picture(picture: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Returns `picture` [H, W, 3] at `size`, width and height in pixels, by Lanczos' interpolation."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), dtype=np.uint8)
