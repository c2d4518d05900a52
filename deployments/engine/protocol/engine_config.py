"""The settings of an engine, from the configuration down to the engine itself. A new setting is one field here."""

from dataclasses import asdict, dataclass
from typing import Final, TypedDict, cast


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig` as keyword arguments."""

    device: str
    dtype: str
    max_rows: int
    queue_limit: int
    threads: int | None
    model_memory_bytes: int | None
    device_memory_bytes: int | None
    padded_sizes: tuple[int, ...] | None
    decode_batch: int | None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The settings of an engine.

    `device` is auto, cpu, cuda or cuda:0; `dtype` auto, float32, float16 or bfloat16. `max_rows` bounds the UNet rows
    of one call (a power of two is well used); `padded_sizes` are the ascending batch sizes that calls are padded to, by
    default the powers of two up to `max_rows`. `queue_limit` bounds the waiting requests: further ones are refused.
    `threads` are torch's on a CPU, by default its own choice. `model_memory_bytes` bounds the weights in memory: unused
    models are evicted, and loaded again when asked for. `device_memory_bytes` bounds weights and work together, by
    default to what is free at the start on CUDA; on a CPU there is no default bound. `decode_batch` is how many images
    a VAE call decodes, by default 4 on CUDA and 1 on a CPU. Raises ValueError for a `max_rows` below 2.
    """

    device: str = "auto"
    dtype: str = "auto"
    max_rows: int = 16
    queue_limit: int = 128
    threads: int | None = None
    model_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    padded_sizes: tuple[int, ...] | None = None
    decode_batch: int | None = None

    def __post_init__(self) -> None:
        if self.max_rows < 2:
            raise ValueError("max_rows must be at least 2: a guided image takes two rows of a UNet call")

    @property
    def options(self) -> EngineOptions:
        """The settings as keyword arguments."""
        return cast(EngineOptions, asdict(self))


DEFAULTS: Final = EngineConfig()
