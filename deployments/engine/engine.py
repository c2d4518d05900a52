"""The engine: admit, denoise one step, retire. Single-threaded; `worker.py` gives it a thread and a door."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky, telling_device_lost
from deployments.engine.device.memory import CpuMemory
from deployments.engine.models.components import size_of
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import powers_of_two
from deployments.engine.protocol.engine_config import DEFAULTS, EngineConfig
from deployments.engine.protocol.errors import (
    DeadlineExceeded,
    EngineError,
    GenerationFailed,
    NumericalFailure,
    Overloaded,
    UnknownModel,
)
from deployments.engine.protocol.events import Event, Failed, Preview
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.request_tracker import RequestTracker
from deployments.engine.row import Row, Ticket
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.bucket_share import BucketShare
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.running import RunningRows
from deployments.engine.steps.decode import Decoded, Decoder
from deployments.engine.steps.prepare import begin_row, check, prepare, with_model_facts
from deployments.engine.steps.previews import previews
from deployments.engine.steps.stepper import StepDone, Stepper

log = logging.getLogger(__name__)

# How long an idle engine may gather rows for a first, full call; far below what the worker takes for a standstill.
_GATHER_SECONDS = 10.0


class Engine:
    """Makes images for many requests at once, one UNet call at a time.

    `emit` receives every event, on the engine's thread. `wake` is set when a picture has been decoded, so that an idle
    driver knows when to call `step` again. `memory` says what there is; by default nobody counts.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        emit: Callable[[Event], None],
        config: EngineConfig = DEFAULTS,
        *,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.models = {model.spec.name: model for model in models}
        self.tracker = RequestTracker(emit, lambda name: name in self.models)
        self.running = RunningRows()
        self.wake = threading.Event()
        self.sizes = config.padded_sizes or powers_of_two(config.max_rows)
        decode_batch = config.decode_batch or 1
        self.admission = Admission(config.queue_limit, self.sizes, memory or CpuMemory(), decode_batch)
        self._count_weights()
        self._stepper = Stepper(self.admission.plan, self.admission.costs, self.admission.device, self.sizes)
        self._share = BucketShare()
        self._decoded: queue.SimpleQueue[Decoded] = queue.SimpleQueue()
        self._decoder = Decoder(
            self._take_decoded, self.admission.plan, self.admission.device, decode_batch, on_failure=self.wake.set
        )

    @property
    def alive(self) -> bool:
        """Whether its own threads are fit for work. Whether `step` is called, and returns, is its driver's to say."""
        return self._decoder.alive

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.tracker.ongoing) or len(self.admission.queue) > 0

    @property
    def capacity(self) -> int:
        """The UNet rows that run at once, of the first model's native size."""
        # Asked from other threads, too: the list is made in one go.
        model = next(iter(list(self.models.values())), None)
        if model is None:
            return self.sizes[-1]
        return self.admission.capacity(Bucket(model.spec.name, *model.spec.native))

    def host(self, model: LoadedModel) -> None:
        """Takes a model in."""
        self.models[model.spec.name] = model
        self._count_weights()

    def forget(self, name: str) -> None:
        """Lets go of a model that no request uses."""
        self.models.pop(name, None)
        self._count_weights()

    def _count_weights(self) -> None:
        networks = (network for model in self.models.values() for network in model.networks)
        self.admission.count_weights(size_of(*networks))

    def submit(self, request: Request) -> None:
        """Lets a request in, or refuses it with a `Failed` event. Nothing is encoded yet, so a refusal costs nothing.

        `Accepted` comes with one of the next steps; or `Failed` even then, where it cannot be prepared.
        """
        error = self._failure_of(request, lambda: self._let_in(request), "request could not be taken in")
        if error is not None:
            self.tracker.refuse(request, error)

    def cancel(self, request_id: str) -> bool:
        """Forgets a request: its rows are gone before the next step. False if it is not here (any more)."""
        request = self._let_go(request_id)
        if request is not None:
            self.tracker.tally(request).cancelled += 1
        return request is not None

    @telling_device_lost()
    def step(self) -> bool:
        """Admits what fits, denoises one bucket by one step, retires what is done. False when nothing was running.

        Raises DeviceLost, and whatever ended a thread of the engine's: nothing that it has begun can be finished then.
        """
        begun = time.perf_counter()
        self._collect()
        self._expire()
        self._prepare()
        self._admit()
        bucket = self._share.next_of(self.running.rows)
        if bucket is None:
            return False
        called = self._denoise(bucket, self.running.rows[bucket])
        self._retire(bucket)
        self.admission.estimator.record_iteration(time.perf_counter() - begun, called)
        return True

    def drain(self) -> None:
        """Steps until every request is finished. For callers without a thread of their own: warm-up, tests, benches."""
        while self.busy:
            self.wake.clear()
            if not self.step() and self.busy:
                self.wake.wait(timeout=1.0)

    def close(self) -> None:
        """Ends the engine's threads. Unfinished requests get no further event."""
        self.tracker.ongoing.clear()
        self.running.rows.clear()
        self._decoder.close()

    def _failure_of(self, request: Request, work: Callable[[], object], what: str) -> EngineError | None:
        """Does `work`, which is about this request alone; why it could not be done, or None. Raises DeviceLost."""
        try:
            work()
            return None
        except EngineError as error:
            return error
        except Exception as error:
            raise_if_sticky(error)
            # A network that does not like a shape, say: this request's trouble, not the others'.
            log.exception("the %s", what)
            full = is_out_of_memory(error)
        if not full:
            return GenerationFailed(f"the {what}")
        self.tracker.tally(request).out_of_memory += 1
        # Out of the handler: a traceback would keep alive what there was no memory for.
        self.admission.device.release()
        return Overloaded(f"the {what}: there is no memory for it now")

    def _let_in(self, request: Request) -> None:
        model = self._model_of(request)
        check(request, model)
        fitting = with_model_facts(request, model)
        self.admission.arrive(fitting, self.running)
        self.tracker.arrived(fitting)

    def _model_of(self, request: Request) -> LoadedModel:
        model = self.models.get(request.model)
        if model is None:
            raise UnknownModel("model_name", "this engine does not serve that model")
        return model

    def _let_go(self, request_id: str) -> Request | None:
        """Forgets all that there is of a request, which is returned."""
        waited, paused = self.admission.remove(request_id)
        begun = self.tracker.close(request_id)
        for row in (*paused, *self.running.drop(lambda row: row.request.id == request_id)):
            self.tracker.tally(row.request).wasted_steps += row.step
        return begun or waited

    def _expire(self) -> None:
        for request in self.tracker.overdue():
            self._let_go(request.id)
            self.tracker.tally(request).expired += 1
            self.tracker.emit(Failed(request.id, DeadlineExceeded("the deadline passed before it was finished")))

    def _prepare(self) -> None:
        """Encodes what has arrived: one request a step while rows run, since they wait for it; else a call's worth."""
        enough_at = time.perf_counter() + _GATHER_SECONDS
        while (arrival := self.admission.queue.next_arrival()) is not None:
            error = self._failure_of(arrival.request, partial(self._accept, arrival), "request could not be prepared")
            if error is not None:
                self.tracker.refuse(arrival.request, error)
            full = self.admission.queue.unet_rows >= self.sizes[-1]
            if len(self.running) or full or time.perf_counter() > enough_at:
                return

    def _accept(self, arrival: Arrival) -> None:
        request = arrival.request
        ongoing = prepare(request, self._model_of(request), arrival.at)
        self.admission.queue.add(arrival)
        waiting = [waiting.id for waiting, _ in self.admission.queue.order()]
        self.tracker.accepted(ongoing, waiting.index(request.id), self.admission.estimates(self.running)[request.id])

    def _admit(self) -> None:
        self._begin()
        if paused := self.admission.make_way(self.running):
            for ticket in paused:
                self.tracker.tally(ticket.request).paused += 1
            self._begin()
        if estimates := self.admission.forecast(self.running):
            for position, (request, _) in enumerate(self.admission.queue.order()):
                self.tracker.moved(request.id, position, estimates[request.id])

    def _begin(self) -> None:
        for ticket in self.admission.begin(self.running):
            error = self._failure_of(ticket.request, partial(self._begin_one, ticket), "image could not be begun")
            if error is not None:
                self.tracker.settle(ticket.request, ticket.index, error)

    def _begin_one(self, ticket: Ticket) -> None:
        row = self.admission.resumed(ticket)
        if row is None:
            ongoing = self.tracker.ongoing[ticket.request.id]
            ongoing.rows_admitted()
            row = begin_row(ongoing, ticket.index, self.models[ticket.request.model])
            row.due = ticket.due
        self.running.add(row)

    def _denoise(self, bucket: Bucket, rows: list[Row]) -> float:
        """The seconds that UNet calls took."""
        called = 0.0
        model, tally = self.models[bucket.model], self.tracker.tally(rows[0].request)
        for done in self._stepper.step(model, bucket, rows, tally):
            if isinstance(done, StepDone):
                called += done.seconds
                self.admission.estimator.record_call(
                    bucket, done.result.unet_rows, done.result.control_rows, done.seconds
                )
                self._share.charge(
                    bucket, done.seconds, [self.admission.queue.urgency(row.ticket) for row in done.rows]
                )
                for row, clean in previews(model, done.rows, done.result):
                    self._decoder.preview(row, model, clean)
            else:
                stuck = done.row
                self.running.drop(lambda row: row is stuck)  # noqa: B023 - used at once
                tally.wasted_steps += stuck.step
                self.tracker.settle(stuck.request, stuck.index, done.error)
        return called

    def _retire(self, bucket: Bucket) -> None:
        """Reports progress, hands finished rows to the decoder and makes room for the next ones."""
        self.tracker.stepped(self.running.of(bucket), self.admission.estimator.seconds_left)
        for row in self.running.drop(lambda row: row.done):
            error = self._failure_of(row.request, partial(self._retire_one, row), "image could not be finished")
            if error is not None:
                self.tracker.settle(row.request, row.index, error)

    def _retire_one(self, row: Row) -> None:
        self.tracker.ongoing[row.request.id].denoised()
        if bool(torch.isfinite(row.state[0]).all()):
            self._decoder.finish(row, self.models[row.request.model])
        else:
            self._start_again(row)

    def _start_again(self, row: Row) -> None:
        """An image that is not finite gets one second chance, from its noise on: not every cause comes twice."""
        tally = self.tracker.tally(row.request)
        tally.wasted_steps += row.step
        if row.restarted:
            raise NumericalFailure("the network's output for this image was not finite")
        tally.retries += 1
        anew = begin_row(self.tracker.ongoing[row.request.id], row.index, self.models[row.request.model])
        anew.due, anew.restarted = row.due, True
        self.running.add(anew)

    def _take_decoded(self, decoded: Decoded) -> None:
        """Called on the decoder's threads."""
        self._decoded.put(decoded)
        self.wake.set()

    def _collect(self) -> None:
        """Passes on what the decoder has ready; pictures of requests that have left are dropped."""
        if (failure := self._decoder.failure) is not None:
            raise_if_sticky(failure)
            raise RuntimeError("a thread of the decoder's has ended") from failure
        while not self._decoded.empty():
            decoded = self._decoded.get()
            row = decoded.row
            if row.request.id not in self.tracker.ongoing:
                continue
            if decoded.preview_step is None:
                self.tracker.tally(row.request).retries += decoded.retried
                self.admission.costs.decoded(row.request.bucket, decoded.milliseconds / 1000 / decoded.pictures)
                self.tracker.settle(row.request, row.index, decoded.result, decoded.milliseconds)
            elif isinstance(decoded.result, bytes):
                self.tracker.emit(Preview(row.request.id, row.index, decoded.preview_step, decoded.result))
