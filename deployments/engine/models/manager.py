"""Manages the models in memory: loads them on demand, and evicts them when others need the room."""

import gc
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from deployments.engine.calibration.kept_files import NOTHING_KEPT, KeptFiles
from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky
from deployments.engine.models.attention import AttentionChoice
from deployments.engine.models.components import Components, size_of
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import ModelLoadError, UnknownModel
from deployments.engine.protocol.spec import ModelSpec

if TYPE_CHECKING:
    from deployments.engine.openvino.runtime import OpenVinoRuntime

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelInMemory:
    """A model in memory. `bytes` includes what it shares with others."""

    name: str
    bytes: int
    load_seconds: float
    users: int


@dataclass(slots=True)
class _Held:
    model: LoadedModel
    users: int = 0
    used: int = field(default=0)


class DiffusionModelManager:
    """The models of one process, on one device in one precision. All methods may be called from any thread.

    `budget_bytes` bounds the weights in memory (None: no bound). If a model does not fit beside the others, unused ones
    are evicted, the least recently used first. A model in use is never evicted, so the budget may be exceeded while all
    are in use; that is logged. `on_load` and `on_evict` are called on every change, in order. `kept` remembers the
    checks of samplers from one start to the next.

    With `openvino` the networks of all models run on it. On CUDA they can be compiled.

    Whoever serves the models while others load sets the rest: `warm` is called with a model that has just been loaded
    and is not in use yet, and all networks of those in memory already; `wait_until_dropped` returns once every model
    that `on_evict` named has been dropped.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        device: torch.device,
        dtype: torch.dtype,
        *,
        budget_bytes: int | None = None,
        openvino: "OpenVinoRuntime | None" = None,
        kept: KeptFiles = NOTHING_KEPT,
        on_load: Callable[[LoadedModel], None] = lambda _: None,
        on_evict: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        compile_with = "inductor" if device.type == "cuda" else None
        self._parts = Components(device, dtype, kept, openvino=openvino, compile_with=compile_with)
        self._budget = budget_bytes
        self.on_load = on_load
        self.on_evict = on_evict
        self.warm: Callable[[LoadedModel, Collection[nn.Module]], object] = lambda _model, _in_use: None
        self.wait_until_dropped: Callable[[], object] = lambda: None
        self._attention: dict[str, AttentionChoice] = {}
        self._held: dict[str, _Held] = {}
        self._clock = 0
        self._lock = threading.Lock()  # held for moments
        self._loading = threading.Lock()  # held while a model loads

    def acquire(self, name: str) -> LoadedModel:
        """Returns the model, loading it if need be; it stays at least until `release`. Blocks while it loads.

        Raises UnknownModel and ModelLoadError.
        """
        if (model := self.acquire_loaded(name)) is not None:
            return model
        with self._loading:
            if (model := self.acquire_loaded(name)) is not None:
                return model
            held = _Held(self._load(name))
            with self._lock:
                self._held[name] = held
                self._use(held)
                self.on_load(held.model)
                self._make_room()
            return held.model

    def acquire_loaded(self, name: str) -> LoadedModel | None:
        """Acquires the model if it is in memory, else returns None. Never blocks for long."""
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                self._use(held)
            return held.model if held is not None else None

    def release(self, name: str) -> None:
        """Releases the model for one user. It stays in memory until its room is needed."""
        with self._lock:
            self._held[name].users -= 1
            self._make_room()

    def loaded_models(self) -> dict[str, LoadedModel]:
        """Returns the models in memory, by name."""
        with self._lock:
            return {name: held.model for name, held in self._held.items()}

    def report(self) -> list[ModelInMemory]:
        """Returns what is in memory, the most recently used first."""
        with self._lock:
            newest = sorted(self._held.items(), key=lambda item: -item[1].used)
            return [ModelInMemory(name, held.model.bytes, held.model.load_seconds, held.users) for name, held in newest]

    @property
    def bytes(self) -> int:
        """All weights in memory, shared ones counted once."""
        with self._lock:
            return self._bytes()

    def _load(self, name: str) -> LoadedModel:
        spec = self._specs.get(name)
        if spec is None:
            raise UnknownModel("model_name", "this process does not host that model")
        model = self._try_to_load(spec)
        if model is None:
            # The budget was only a guess: without the idle models it may fit. Not in a handler: the traceback would
            # keep alive what has been loaded so far.
            self._evict_idle()
            model = self._try_to_load(spec)
        if model is None:
            raise ModelLoadError(f"model {name!r} does not fit into the device's memory")
        self._attention[name] = model.attention
        self.warm(model, {network for other in self.loaded_models().values() for network in other.networks})
        return model

    def _try_to_load(self, spec: ModelSpec) -> LoadedModel | None:
        """Returns the model; None if there is not enough memory."""
        try:
            return load_model(spec, self._parts.device, self._parts.dtype, self._parts, self._attention.get(spec.name))
        except Exception as error:
            raise_if_sticky(error)
            if not is_out_of_memory(error):
                raise
            log.warning("model %s found no memory: %s", spec.name, str(error))
            return None

    def _use(self, held: _Held) -> None:
        held.users += 1
        self._clock += 1
        held.used = self._clock

    def _bytes(self) -> int:
        models = [held.model for held in self._held.values()]
        return size_of(*(network for model in models for network in (*model.networks, *model.ip_adapters.networks)))

    def _make_room(self) -> None:
        while self._budget is not None and self._bytes() > self._budget:
            idle = [name for name, held in self._held.items() if not held.users]
            if not idle:
                log.warning("models in use take %d MB, %d MB are allowed", self._bytes() / 1e6, self._budget / 1e6)
                return
            self._evict(min(idle, key=lambda name: self._held[name].used))

    def _evict_idle(self) -> None:
        with self._lock:
            for name in [name for name, held in self._held.items() if not held.users]:
                self._evict(name)
        self.wait_until_dropped()
        # Networks form reference cycles, which only the collector frees.
        gc.collect()
        torch.cuda.empty_cache()

    def _evict(self, name: str) -> None:
        log.info("model %s leaves memory: others need its room", name)
        del self._held[name]
        self.on_evict(name)
