"""The state of an accepted, unfinished request: what its rows share, and its timings."""

import time
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from deployments.engine.conditioning.controlnet import Control
from deployments.engine.conditioning.cross_attention import EncodedPrompt
from deployments.engine.conditioning.image_encoder import Posterior
from deployments.engine.ip_adapter.reference import Reference
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.protocol.events import Timings
from deployments.engine.protocol.request import Request
from deployments.engine.sampling.samplers import Schedule
from deployments.engine.similar.saved_states import Neighbour

POSITION_EVERY_S: Final = 1.0
"""The least seconds between two reports of a position: a queue of hundreds moves several times a second."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedInputs:
    """A request's images as the networks see them. `masked_image` is the image without what is repainted.

    `mask` is [1, h, w], 1 where latents are repainted.
    """

    image: Posterior | None = None
    masked_image: Posterior | None = None
    mask: Tensor | None = None
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SecondPass:
    """A request's second pass, over its enlarged images: its own `request`, of their size."""

    request: Request
    schedule: Schedule
    controls: tuple[Control, ...] = ()


@dataclass(slots=True, eq=False)
class RequestState:
    """An accepted request. Times are `time.perf_counter` seconds: when it `arrived`, when its preparation had `begun`,
    and so on. `continued` are the states that its images begin from, by their indices; the others begin from noise.
    `epoch` is that of the saved states when it began.
    """

    request: Request
    schedule: Schedule
    prompt: EncodedPrompt = field(repr=False)
    negative: EncodedPrompt | None = field(repr=False)
    inputs: EncodedInputs = field(repr=False)
    arrived: float
    begun: float
    loras: LoraSet | None = field(default=None, repr=False)
    reference: Reference | None = field(default=None, repr=False)
    second_pass: SecondPass | None = None
    continued: dict[int, Neighbour] = field(default_factory=dict)
    epoch: int = 0
    encoded: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    last_denoised: float | None = None
    position: int = -1
    position_sent_at: float = float("-inf")
    images_finished: int = 0
    progress: int = 0
    decode_ms: float = 0.0

    @property
    def bytes(self) -> int:
        """The device's bytes that are its own before its rows begin: the hints of its ControlNets."""
        later = () if self.second_pass is None else self.second_pass.controls
        return sum(control.hint.nbytes for control in (*self.inputs.controls, *later))

    @property
    def steps(self) -> int:
        """The evaluations of one image, of both its passes."""
        return len(self.schedule) + (0 if self.second_pass is None else len(self.second_pass.schedule))

    def record_admission(self) -> None:
        """Records that a row got its place; the first one ends the wait."""
        if self.admitted is None:
            self.admitted = time.perf_counter()

    def update_position(self, position: int) -> bool:
        """Sets the place in the queue. Returns True if it changed, and the last report is not too recent."""
        now = time.perf_counter()
        if position == self.position or now - self.position_sent_at < POSITION_EVERY_S:
            return False
        self.position, self.position_sent_at = position, now
        return True

    def record_denoised(self) -> None:
        """Records that a row had its last step."""
        self.last_denoised = time.perf_counter()

    def finish_image(self, decode_ms: float) -> bool:
        """Counts an image as done or failed. Returns True if it was the last."""
        self.images_finished += 1
        self.decode_ms += decode_ms
        return self.images_finished == self.request.params.num_images

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
