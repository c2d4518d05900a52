"""Counters of an engine's work."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from deployments.engine.protocol.errors import EngineError, Filtered, SafetyCheckFailed
from deployments.engine.protocol.safety import Finding


@dataclass(slots=True)
class Counters:
    """Counts the work done for one model since the engine started.

    `unet_rows` counts real rows, `padded_rows` computed ones; `batch_sizes` counts calls by their real rows.
    `row_steps` are evaluations of images, `wasted_steps` those of images that nobody got. `refused` requests were not
    accepted, `expired` ones missed their deadline; `paused` images were preempted, `retries` were made again from their
    start or decoded again in fp32, `splits` batches were halved, and memory ran out `out_of_memory` times. `filtered`
    images were kept back by the model's safety policy; of `images`, `flagged` ones were delivered all the same, and
    the checks of `unchecked` ones failed: by the policy these were delivered, or are `failures`. `continued` images
    took over `saved_steps` evaluations from others.
    """

    unet_calls: int = 0
    unet_rows: int = 0
    padded_rows: int = 0
    images: int = 0
    requests: int = 0
    failures: int = 0
    filtered: int = 0
    flagged: int = 0
    unchecked: int = 0
    cancelled: int = 0
    refused: int = 0
    expired: int = 0
    paused: int = 0
    retries: int = 0
    splits: int = 0
    out_of_memory: int = 0
    row_steps: int = 0
    wasted_steps: int = 0
    continued: int = 0
    saved_steps: int = 0
    denoise_seconds: float = 0.0
    batch_sizes: Counter[int] = field(default_factory=Counter)

    def record_image(self, safety: Finding | None, saved_steps: int = 0) -> None:
        """Counts an image, by what checkers found in it, and the evaluations that it took over from another one."""
        self.images += 1
        self.continued += saved_steps > 0
        self.saved_steps += saved_steps
        if safety is not None:
            self.flagged += safety.status == "flagged"
            self.unchecked += safety.status == "unchecked"

    def record_failure(self, error: EngineError) -> None:
        """Counts an image that nobody gets."""
        self.filtered += isinstance(error, Filtered)
        self.failures += not isinstance(error, Filtered)
        self.unchecked += isinstance(error, SafetyCheckFailed)

    def record_step(self, rows: int, unet_rows: int, padded_rows: int, seconds: float) -> None:
        """Counts one UNet call that advanced `rows` images by an evaluation."""
        self.unet_calls += 1
        self.row_steps += rows
        self.unet_rows += unet_rows
        self.padded_rows += padded_rows
        self.denoise_seconds += seconds
        self.batch_sizes[unet_rows] += 1

    def as_dict(self) -> dict[str, float]:
        """Returns all counters but the batch sizes, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "batch_sizes"}

    def copy(self) -> "Counters":
        """Returns a copy.

        Safe on any thread: the batch sizes are copied in one operation, while their owner may add to them.
        """
        return replace(self, batch_sizes=Counter(dict(self.batch_sizes)))


def sum_counters(counters: Iterable[Counters]) -> Counters:
    """Adds counters up."""
    out = Counters()
    for each in [each.copy() for each in counters]:
        for name, value in each.as_dict().items():
            setattr(out, name, getattr(out, name) + value)
        out.batch_sizes.update(each.batch_sizes)
    return out
