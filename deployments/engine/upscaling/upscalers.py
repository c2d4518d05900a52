"""Enlarges pictures by networks, one tile at a time, beside what the device does for the engine."""

import logging
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from PIL import Image

from deployments.engine.conditioning.image_encoder import to_unit_pixels
from deployments.engine.device.errors import DeviceLost, convert_device_errors, is_out_of_memory, raise_if_sticky
from deployments.engine.device.streams import WorkStream, copy_to_device, new_stream
from deployments.engine.models.components import size_of
from deployments.engine.protocol.errors import (
    Cancelled,
    EngineLost,
    EngineStopped,
    InvalidParameter,
    NumericalFailure,
    Overloaded,
)
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.spec import UpscalerSpec
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.upscaling.tiles import enlarge_in_tiles
from deployments.engine.upscaling.weights import UpscalerNetwork, load_upscaler

log = logging.getLogger(__name__)

SIDES: Final = (256, 192, 128, 96, 64)
"""The tiles' sides in pixels, the largest first."""

_LARGEST_ON_CPU: Final = 192
_MEASURED: Final = 64
_SHARE: Final = 1 / 16
"""The most of the device's memory that a tile may take."""

MAX_PASSES: Final = 3
MAX_PIXELS: Final = 2**26
"""The most pixels that a network may make on the way to a smaller picture."""


class Upscalers:
    """The upscalers of one process, by name. `start` loads them; until then there are none to use.

    Safe on any thread: pictures that are enlarged at the same time take turns, tile by tile.
    """

    def __init__(self, specs: Sequence[UpscalerSpec] = (), on_device_lost: Callable[[], object] = lambda: None) -> None:
        """`on_device_lost` is called when this process cannot use the device any more."""
        self._specs = tuple(specs)
        self._on_device_lost = on_device_lost
        self._networks: Mapping[str, UpscalerNetwork] = MappingProxyType({})
        self._device = torch.device("cpu")
        self._dtype = torch.float32
        self._memory: DeviceMemory | None = None
        self._stream: WorkStream = new_stream(self._device)
        self._turn = Lock()
        self._side = SIDES[-1]
        self.tile_bytes = 0

    def start(self, device: torch.device, dtype: torch.dtype, memory: DeviceMemory) -> None:
        """Loads the networks, and measures what a tile takes of `memory`. Raises ModelLoadError."""
        if not self._specs:
            return
        self._device, self._dtype, self._memory = device, dtype, memory
        self._stream = new_stream(device)
        networks = {spec.name: load_upscaler(spec, device, dtype) for spec in self._specs}
        peak = max(self._measure_tile(network, memory) for network in networks.values())
        self._side = _choose_side(peak, device, memory.budget)
        self.tile_bytes = round(peak * (self._side / _MEASURED) ** 2)
        self._networks = networks
        log.info("upscalers: tiles of %d pixels, which take %.0f MB", self._side, self.tile_bytes / 1e6)

    @property
    def bytes(self) -> int:
        """The bytes that the networks take."""
        return size_of(*self._networks.values())

    def check(self, name: str, width: int, height: int, size: tuple[int, int]) -> None:
        """Raises EngineError if the upscaler `name` cannot enlarge a picture of `width` x `height` to `size`."""
        network = self._find(name)
        for number in range(MAX_PASSES):
            if _is_large_enough(network, number, width, height, size):
                return
            _check_pixels(network, width, height)
            width, height = width * network.scale, height * network.scale

    def enlarge_to(
        self,
        name: str,
        picture: ImageArray,
        size: tuple[int, int],
        *,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> ImageArray:
        """Returns `picture` [H, W, 3] at `size` (width and height), enlarged by the upscaler `name`.

        The network runs until its result is as large, at most MAX_PASSES times; Lanczos makes the rest of the way,
        up or down. Raises EngineError: Cancelled once `is_stopped`, Overloaded where there is no memory for a tile.
        """
        try:
            with convert_device_errors():
                return self._enlarge_to(self._find(name), picture, size, is_stopped)
        except DeviceLost as error:
            log.critical("the device is lost to this process", exc_info=True)
            self._on_device_lost()
            raise EngineLost("the device was lost while the picture was enlarged") from error

    def _enlarge_to(
        self, network: UpscalerNetwork, picture: ImageArray, size: tuple[int, int], is_stopped: Callable[[], bool]
    ) -> ImageArray:
        for number in range(MAX_PASSES):
            height, width = picture.shape[:2]
            if _is_large_enough(network, number, width, height, size):
                break
            _check_pixels(network, width, height)
            picture = self._enlarge(network, picture, is_stopped)
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), dtype=np.uint8)

    def _find(self, name: str) -> UpscalerNetwork:
        if name in self._networks:
            return self._networks[name]
        if any(spec.name == name for spec in self._specs):
            raise EngineStopped("the upscalers are not loaded")
        known = ", ".join(self._networks) or "none"
        raise InvalidParameter("upscaler", f"there is no such upscaler; there is: {known}")

    def _enlarge(self, network: UpscalerNetwork, picture: ImageArray, is_stopped: Callable[[], bool]) -> ImageArray:
        def enlarge(tile: ImageArray) -> ImageArray:
            if is_stopped():
                raise Cancelled
            with self._turn:
                return self._run(network, tile)

        for side in (side for side in SIDES if side <= self._side):
            try:
                return enlarge_in_tiles(picture, network.scale, side, enlarge)
            except Exception as error:
                raise_if_sticky(error)
                if not is_out_of_memory(error):
                    raise
                log.warning("a tile of %d pixels does not fit into the memory that there is now", side)
            # Outside the handler: the traceback would keep the failed call's tensors alive.
            assert self._memory is not None
            self._memory.release()
        raise Overloaded("the picture could not be enlarged: there is no memory for it now")

    @torch.inference_mode()
    def _run(self, network: UpscalerNetwork, tile: ImageArray) -> ImageArray:
        with self._stream.run_after(()):
            pixels = copy_to_device(to_unit_pixels(tile)[None], self._device).to(self._dtype)
            enlarged = network(pixels)[0].float()
            if not bool(torch.isfinite(enlarged).all()):
                raise NumericalFailure("the upscaler's output was not finite")
            made = (enlarged.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
        return np.asarray(made.numpy(), dtype=np.uint8)

    def _measure_tile(self, network: UpscalerNetwork, memory: DeviceMemory) -> int:
        with memory.meter() as meter:
            self._run(network, np.zeros((_MEASURED, _MEASURED, 3), np.uint8))
        return meter.peak


NO_UPSCALERS: Final = Upscalers()


def _is_large_enough(network: UpscalerNetwork, passes: int, width: int, height: int, size: tuple[int, int]) -> bool:
    """Returns True if the network need not run again; one that does not enlarge runs once, whatever the size."""
    if network.scale == 1:
        return passes > 0
    return width >= size[0] and height >= size[1]


def _check_pixels(network: UpscalerNetwork, width: int, height: int) -> None:
    if height * width * network.scale**2 > MAX_PIXELS:
        raise InvalidParameter("upscaler", f"makes {network.scale} times as much, which is too large here")


def _choose_side(peak: int, device: torch.device, budget: int | None) -> int:
    """Returns the largest side of a tile that takes no more than its share; `peak` bytes are a small one's."""
    sides = [side for side in SIDES if device.type != "cpu" or side <= _LARGEST_ON_CPU]
    most = float("inf") if budget is None else budget * _SHARE
    return next((side for side in sides if peak * (side / _MEASURED) ** 2 <= most), sides[-1])
