"""Takes requests into the engine: queues and prepares them, and accepts or refuses them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from deployments.engine.lora.rows.adapter_cache import AdapterCache
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import EngineError, UnknownModel
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.request_tracker import RequestTracker
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.forecast import Forecast
from deployments.engine.scheduling.forecaster import Forecaster
from deployments.engine.scheduling.running import RunningRows
from deployments.engine.similar.state_reuse import StateReuse
from deployments.engine.steps.prepare import check_request, with_model_facts
from deployments.engine.steps.preparer import Preparation, Preparer
from deployments.engine.steps.second_pass import check_second_pass
from deployments.engine.upscaling.upscalers import Upscalers


class Attempt(Protocol):
    """Runs what concerns one request alone, and returns its error, if any."""

    def __call__(self, request: Request, action: Callable[[], object], failure: str) -> EngineError | None: ...


class RequestIntake:
    """Brings requests into the queue of `admission`, on the engine's thread; what takes long, other threads do.

    `wake` is called when one of them is done. `sizes` are those of the engine's calls: so many rows are prepared ahead.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        admission: Admission,
        tracker: RequestTracker,
        running: RunningRows,
        adapters: AdapterCache,
        reuse: StateReuse,
        upscalers: Upscalers,
        sizes: Sequence[int],
        attempt: Attempt,
        wake: Callable[[], object],
    ) -> None:
        self._models, self._admission, self._tracker, self._running = models, admission, tracker, running
        self._attempt = attempt
        self._most_ahead = sizes[-1]
        self._adapters, self._reuse, self._upscalers = adapters, reuse, upscalers
        self._preparer = Preparer(wake, tuple(sizes), self._prepared_of, adapters, reuse)
        self._forecaster = Forecaster(admission, wake)

    @property
    def is_alive(self) -> bool:
        """True unless a preparation takes far longer than any before."""
        return self._preparer.is_alive

    @property
    def is_preparing(self) -> bool:
        """True while a preparation is under way that has not ended."""
        return self._preparer.is_busy

    def take_in(self, request: Request) -> None:
        """Queues a request, or refuses it."""
        error = self._attempt(request, partial(self._enqueue, request), "request could not be taken in")
        if error is not None:
            self._tracker.refuse(request, error)

    def refuse_late(self) -> None:
        """Refuses what has been found unable to meet its deadline."""
        for request, error in self._forecaster.find_late():
            self._admission.queue.remove(request.id)
            self._tracker.refuse(request, error)

    def begin_preparations(self) -> None:
        """Has arrivals prepared, a full call's worth ahead: first those that have waited for their adapters."""
        queue, forecast = self._admission.queue, None
        while self._preparer.unet_rows + queue.unet_rows < self._most_ahead:
            if self._preparer.begin_read(queue.holds):
                continue
            if (arrival := queue.pop_arrival()) is None:
                return
            forecast = forecast or self._forecaster.foresee(self._running)
            self._run_preparation(arrival.request, partial(self._begin_preparation, arrival, forecast))

    def accept_prepared(self, *, wait: bool, is_called: Callable[[], bool]) -> None:
        """Accepts what has been prepared; with `wait` also what still is, until the engine `is_called`."""
        for preparation in self._preparer.collect(wait=wait, is_called=is_called):
            self._run_preparation(preparation.arrival.request, partial(self._accept, preparation))
            self.begin_preparations()

    def report_positions(self) -> None:
        """Tells waiting requests their positions, whenever there is a new forecast."""
        for position, (request, estimate) in enumerate(self._forecaster.update(self._running)):
            self._tracker.report_position(request.id, position, estimate)

    def close(self) -> None:
        """Ends the threads."""
        self._preparer.close()
        self._forecaster.close()

    def _enqueue(self, request: Request) -> None:
        model = self._model_of(request)
        check_request(request, model)
        check_second_pass(request, model, self._upscalers)
        if request.loras:
            self._adapters.check_readable()
        self._reuse.check(request)
        complete = with_model_facts(request, model)
        arrival = self._admission.enqueue(complete)
        self._tracker.record_arrival(complete)
        # Adapters are read while the request waits.
        self._adapters.prefetch(complete.model, complete.loras)
        if complete.params.reference is not None:
            model.ip_adapters.begin(model.ip_adapters.resolve(complete.params.reference))
        if complete.params.deadline_ms is not None:
            self._forecaster.check_deadline(arrival, self._running)

    def _model_of(self, request: Request) -> LoadedModel:
        model = self._models.get(request.model)
        if model is None:
            raise UnknownModel("model_name", "this engine does not serve that model")
        return model

    def _prepared_of(self, bucket: Bucket) -> tuple[Sequence[Request], int]:
        """Returns the prepared requests of a bucket, and how many rows of it may run at once. From any thread."""
        running = {row.request.id: row.request for row in self._running if row.request.bucket == bucket}
        waiting = [each for each in self._admission.queue.prepared() if each.bucket == bucket]
        prepared = running | {request.id: request for request in waiting}
        return list(prepared.values()), self._admission.capacity(bucket)

    def _begin_preparation(self, arrival: Arrival, forecast: Future[Forecast]) -> None:
        self._preparer.begin(arrival, self._model_of(arrival.request), forecast)

    def _run_preparation(self, request: Request, action: Callable[[], object]) -> None:
        """Runs a part of a request's preparation; if it fails, the request is refused."""
        error = self._attempt(request, action, "request could not be prepared")
        if error is not None and self._admission.queue.remove(request.id) is not None:
            self._tracker.refuse(request, error)

    def _accept(self, preparation: Preparation) -> None:
        arrival, request_state = preparation.arrival, preparation.future.result()
        # Its deadline was checked before its forecast was made.
        self.refuse_late()
        if self._admission.queue.add(arrival):
            self._tracker.accept(request_state, *self._forecaster.place_of(arrival, preparation.forecast.result()))
