"""A request that the engine has accepted and not finished: what its rows share, and its clock."""

import time
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from deployments.engine.conditioning.controlnet import Control
from deployments.engine.conditioning.cross_attention import EncodedPrompt
from deployments.engine.conditioning.image_encoder import Posterior
from deployments.engine.protocol.events import Timings
from deployments.engine.protocol.request import Request
from deployments.engine.sampling.samplers import Schedule

NEWS_EVERY_S: Final = 1.0
"""A queue of hundreds that moves several times a second would have more to tell than to make."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedInputs:
    """A request's pictures as the networks see them. `masked` is the picture without what is painted anew.

    `mask` is [1, h, w], 1 where latents are made anew.
    """

    picture: Posterior | None = None
    masked: Posterior | None = None
    mask: Tensor | None = None
    controls: tuple[Control, ...] = ()


@dataclass(slots=True, eq=False)
class RequestState:
    """Times are `time.perf_counter` seconds: when it `arrived`, when its preparation had `begun`, and so on."""

    request: Request
    schedule: Schedule
    prompt: EncodedPrompt = field(repr=False)
    negative: EncodedPrompt | None = field(repr=False)
    given: EncodedInputs = field(repr=False)
    arrived: float
    begun: float
    encoded: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    last_denoised: float | None = None
    position: int = -1
    told: float = float("-inf")
    images_settled: int = 0
    decode_ms: float = 0.0

    def rows_admitted(self) -> None:
        """A row of the request got its place; the first one ends the wait."""
        if self.admitted is None:
            self.admitted = time.perf_counter()

    def moved_to(self, position: int) -> bool:
        """The request's place in the queue is `position`. True if that is news, and the last news is not too new."""
        now = time.perf_counter()
        if position == self.position or now - self.told < NEWS_EVERY_S:
            return False
        self.position, self.told = position, now
        return True

    def denoised(self) -> None:
        """A row of the request had its last step."""
        self.last_denoised = time.perf_counter()

    def settled(self, decode_ms: float) -> bool:
        """One image is done or failed. True if it was the last."""
        self.images_settled += 1
        self.decode_ms += decode_ms
        return self.images_settled == self.request.params.num_images

    def timings(self) -> Timings:
        now = time.perf_counter()
        admitted = self.admitted or now
        denoised = self.last_denoised or now
        return Timings(
            queued_ms=_ms(self.begun - self.arrived + admitted - self.encoded),
            encode_ms=_ms(self.encoded - self.begun),
            denoise_ms=_ms(denoised - admitted),
            decode_ms=round(self.decode_ms, 2),
            total_ms=_ms(now - self.arrived),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
