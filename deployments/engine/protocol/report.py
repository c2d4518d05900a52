"""An engine's reports: plain data without torch, because it crosses process boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.latencies import Durations, Phase
from deployments.engine.protocol.params import Priority


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The work done for one model, and how long its finished requests took."""

    counters: Counters = field(default_factory=Counters)
    durations: Mapping[Phase, Durations] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """Images `waiting`, by priority, and `running`; `capacity` is in UNet rows of one call.

    In seconds of a device whose calls are at the knee: `worked` is what all steps so far were worth, `backlog` what
    waits.
    """

    waiting: Mapping[Priority, int] = field(default_factory=dict)
    running: int = 0
    capacity: int = 0
    worked: float = 0.0
    backlog: float = 0.0

    @property
    def images_waiting(self) -> int:
        return sum(self.waiting.values())


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How long a prompt is for a model: its `tokens`, in chunks that hold `chunk_tokens` each, at most `max_chunks`."""

    tokens: int
    chunks: int
    chunk_tokens: int
    max_chunks: int


@dataclass(frozen=True, slots=True)
class CallReport:
    """A measured kind of call: its seconds (UNet calls only), the bytes it took, and the bytes that were planned."""

    kind: str
    model: str
    width: int
    height: int
    rows: int
    seconds: float | None = None
    measured_bytes: int | None = None
    planned_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """`budget_bytes` is None without a limit; `held_bytes` are in use between calls, `planned_bytes` at most."""

    budget_bytes: int | None = None
    held_bytes: int = 0
    planned_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """The LoRAs in memory: how many, their bytes, and the bytes that they may take (None: no bound).

    Since the engine started: `hits` were in memory when a request came for them, `reads` took `read_seconds` in all,
    and `evictions` made room for others.
    """

    loaded: int = 0
    held_bytes: int = 0
    budget_bytes: int | None = None
    hits: int = 0
    reads: int = 0
    evictions: int = 0
    read_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SharingReport:
    """The early states of images that replicas share through Redis, since this one started.

    It `sent` its own there, and `received` others'. It `dropped` its own that were too large, or came faster than they
    could be sent, or while Redis was away; `damaged` ones were found there and not used. `failures` are calls that
    Redis did not answer as it should; `is_well` is False until it answers again.
    """

    sent: int = 0
    received: int = 0
    dropped: int = 0
    damaged: int = 0
    failures: int = 0
    is_well: bool = True


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One engine's state. `models` are all that it has worked for; "" stands for requests that named no model of it.

    By model, `knees` are the UNet rows beyond which more only add latency, and `backends` what runs the networks:
    torch, openvino, or both. `attention` is, by model and shape of layer, the kernel that was chosen on a GPU,
    and `compiled` the networks that run compiled there. `adapters` are its LoRAs.
    `sharing` is None where its states are its own. `id` tells whose counters these are: each engine begins at 0, under
    an id of its own; "" has counted nothing yet.
    """

    ready: bool = False
    device: str = ""
    loaded_models: tuple[str, ...] = ()
    models: Mapping[str, ModelReport] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    memory: MemoryReport = field(default_factory=MemoryReport)
    knees: Mapping[str, int] = field(default_factory=dict)
    calls: tuple[CallReport, ...] = ()
    backends: Mapping[str, str] = field(default_factory=dict)
    attention: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    compiled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    adapters: AdapterReport = field(default_factory=AdapterReport)
    sharing: SharingReport | None = None
    id: str = ""
