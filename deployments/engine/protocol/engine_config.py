"""The settings of an engine, from the configuration down to the engine itself. A new setting is one field here."""

from dataclasses import asdict, dataclass, replace
from typing import Final, TypedDict, cast

from deployments.engine.padding import even_numbers

BACKENDS: Final = ("auto", "openvino", "torch")
"""What may run an engine's networks."""


_DECODE_BATCH_ON_CUDA: Final = 4


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
    cache_dir: str | None
    backend: str
    lora_memory_bytes: int
    similar_memory_bytes: int
    similar_distance: float


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The settings of an engine.

    `device` is auto, cpu, cuda or cuda:0; `dtype` auto, float32, float16 or bfloat16. `max_rows` bounds the UNet rows
    of one call; `padded_sizes` are the ascending batch sizes that calls are padded to, the last of them `max_rows`: by
    default the powers of two, for an `EngineWorker` on CUDA the even numbers. `queue_limit` bounds the waiting
    requests: further ones are refused. `threads` are torch's on a CPU, by default its own choice. `model_memory_bytes`
    bounds the weights in memory: unused models are evicted, and loaded again when asked for. `device_memory_bytes`
    bounds weights and work together, by default to what is free at the start on CUDA; on a CPU there is no default
    bound. `decode_batch` is how many images a VAE call decodes, by default 1; an `EngineWorker` takes 4 on CUDA.
    `cache_dir` is the folder that keeps for the next start what this one has made (docs/cold-start.md); auto is
    `darkroom` in the user's cache, "" and None keep nothing. `backend` is what runs the networks: torch, openvino,
    which needs a CPU and fp32, or auto: openvino wherever it can. `lora_memory_bytes` bounds the LoRAs that are kept in
    memory, beside the weights; they never take more than a quarter of `device_memory_bytes`. `similar_memory_bytes` of
    main memory keep the early states of images for requests with `cache: similar`, 0 switches these off; they continue
    states whose prompts are no farther than the cosine distance `similar_distance`.

    Raises ValueError for a `max_rows` below 2, for sizes that do not ascend to it, and for another `backend`.
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
    cache_dir: str | None = "auto"
    backend: str = "auto"
    lora_memory_bytes: int = 2 * 2**30
    similar_memory_bytes: int = 2**28
    similar_distance: float = 0.1

    def __post_init__(self) -> None:
        if self.max_rows < 2:
            raise ValueError("max_rows must be at least 2: a guided image takes two rows of a UNet call")
        sizes = self.padded_sizes
        if sizes is not None and (sizes[-1:] != (self.max_rows,) or sizes[0] < 1 or list(sizes) != sorted(set(sizes))):
            raise ValueError(f"padded_sizes must ascend from at least 1 to max_rows, {self.max_rows}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")

    def complete(self, device_type: str) -> "EngineConfig":
        """Returns the settings with those filled in whose defaults depend on the device: `cpu` or `cuda`."""
        if device_type != "cuda":
            return self
        sizes = self.padded_sizes or even_numbers(self.max_rows)
        return replace(self, decode_batch=self.decode_batch or _DECODE_BATCH_ON_CUDA, padded_sizes=sizes)

    @property
    def options(self) -> EngineOptions:
        """The settings as keyword arguments."""
        return cast(EngineOptions, asdict(self))


DEFAULTS: Final = EngineConfig()
