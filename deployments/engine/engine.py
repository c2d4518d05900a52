"""The engine: admit, denoise one step, retire. Single-threaded; `worker.py` gives it a thread and a door."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from deployments.engine.admission import Admission
from deployments.engine.decode import Decoded, Decoder
from deployments.engine.device_errors import DeviceLost, is_out_of_memory, raise_if_sticky
from deployments.engine.device_memory import CpuMemory, DeviceMemory
from deployments.engine.errors import (
    DeadlineExceeded,
    EngineError,
    GenerationFailed,
    NumericalFailure,
    Overloaded,
    UnknownModel,
)
from deployments.engine.events import Event, Preview, Refused
from deployments.engine.ledger import Ledger
from deployments.engine.models import LoadedModel
from deployments.engine.padding import powers_of_two
from deployments.engine.prepare import begin_row, check, fitted, prepare
from deployments.engine.previews import previews
from deployments.engine.queue import Arrival
from deployments.engine.row import Bucket, Request, Row, Ticket
from deployments.engine.running import Running
from deployments.engine.share import DeviceShare
from deployments.engine.stepper import Moved, Stepper

log = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 128

# How long an idle engine may gather rows for a first, full call; far below what the worker takes for a standstill.
_GATHER_SECONDS = 10.0


class Engine:
    """Makes images for many requests at once, one UNet call at a time.

    `emit` receives every event, on the engine's thread. `wake` is set when a picture has been decoded, so that an idle
    driver knows when to call `step` again. `max_rows` bounds the UNet rows of one call (a power of two is well used),
    `queue_limit` the requests that wait; `padded_sizes` are the batch sizes that calls are padded to, by default the
    powers of two up to `max_rows`. `memory` says what there is; by default nobody counts.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        emit: Callable[[Event], None],
        *,
        max_rows: int = 16,
        padded_sizes: tuple[int, ...] | None = None,
        queue_limit: int = QUEUE_LIMIT,
        decode_batch: int = 1,
        memory: DeviceMemory | None = None,
    ) -> None:
        if max_rows < 2:
            raise ValueError("max_rows must be at least 2: a guided image takes two rows of a UNet call")
        self.models = {model.spec.name: model for model in models}
        self.ledger = Ledger(emit, lambda name: name in self.models)
        self.running = Running()
        self.wake = threading.Event()
        self.sizes = padded_sizes or powers_of_two(max_rows)
        self.admission = Admission(queue_limit, self.sizes, memory or CpuMemory(), decode_batch)
        self.admission.hosts(models)
        self._stepper = Stepper(self.admission, self.sizes)
        self._share = DeviceShare()
        self._decoded: queue.SimpleQueue[Decoded] = queue.SimpleQueue()
        self._decoder = Decoder(self._take_decoded, self.admission.plan, self.admission.device, decode_batch)

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.ledger.ongoing) or len(self.admission.queue) > 0

    @property
    def capacity(self) -> int:
        """The UNet rows that run at once, of the first model's native size."""
        model = next(iter(self.models.values()), None)
        if model is None:
            return self.sizes[-1]
        return self.admission.capacity(Bucket(model.spec.name, *model.spec.native))

    def host(self, model: LoadedModel) -> None:
        """Takes a model in."""
        self.models[model.spec.name] = model
        self.admission.hosts(self.models.values())

    def forget(self, name: str) -> None:
        """Lets go of a model that no request uses."""
        self.models.pop(name, None)
        self.admission.hosts(self.models.values())

    def submit(self, request: Request) -> None:
        """Lets a request in, or refuses it with a `Refused` event. Nothing is encoded yet, so a refusal costs nothing.

        `Accepted` comes with one of the next steps; or `Refused` even then, where it cannot be prepared.
        """
        with self._refusing(request):
            model = self._model_of(request)
            check(request, model)
            request = fitted(request, model)
            self.admission.arrive(request, self.running)
            self.ledger.arrived(request)

    def cancel(self, request_id: str) -> bool:
        """Forgets a request: its rows are gone before the next step. False if it is not here (any more)."""
        request = self._let_go(request_id)
        if request is not None:
            self.ledger.tally(request).cancelled += 1
        return request is not None

    def step(self) -> bool:
        """Admits what fits, denoises one bucket by one step, retires what is done. False when nothing was running."""
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
        self.admission.turned(time.perf_counter() - begun, called)
        return True

    def drain(self) -> None:
        """Steps until every request is finished. For callers without a thread of their own: warm-up, tests, benches."""
        while self.busy:
            self.wake.clear()
            if not self.step() and self.busy:
                self.wake.wait(timeout=1.0)

    def close(self) -> None:
        """Ends the engine's threads. Unfinished requests get no further event."""
        self.ledger.ongoing.clear()
        self.running.rows.clear()
        self._decoder.close()

    @contextmanager
    def _refusing(self, request: Request) -> Iterator[None]:
        """Whatever is raised inside refuses `request`, and ends there."""
        try:
            yield
        except EngineError as error:
            self.ledger.refuse(request, error)
        except Exception as error:
            raise_if_sticky(error)
            # A network that does not like a shape: this request's trouble, not the others'.
            log.exception("a request could not be prepared")
            if is_out_of_memory(error):
                self.ledger.tally(request).out_of_memory += 1
                self.admission.device.release()
                self.ledger.refuse(request, Overloaded("there is no memory to prepare this request now"))
            else:
                self.ledger.refuse(request, GenerationFailed("the request could not be prepared"))

    def _model_of(self, request: Request) -> LoadedModel:
        model = self.models.get(request.model)
        if model is None:
            raise UnknownModel("model_name", "this engine does not serve that model")
        return model

    def _let_go(self, request_id: str) -> Request | None:
        """Forgets all that there is of a request, which is returned."""
        waited, paused = self.admission.remove(request_id)
        begun = self.ledger.close(request_id)
        for row in (*paused, *self.running.drop(lambda row: row.request.id == request_id)):
            self.ledger.tally(row.request).wasted_steps += row.step
        return begun or waited

    def _expire(self) -> None:
        for request in self.ledger.overdue():
            self._let_go(request.id)
            self.ledger.tally(request).expired += 1
            self.ledger.emit(Refused(request.id, DeadlineExceeded("the deadline passed before it was finished")))

    def _prepare(self) -> None:
        """Encodes what has arrived: one request a step while rows run, since they wait for it; else a call's worth."""
        enough_at = time.perf_counter() + _GATHER_SECONDS
        while (arrival := self.admission.queue.next_arrival()) is not None:
            with self._refusing(arrival.request):
                self._accept(arrival)
            full = self.admission.queue.unet_rows >= self.sizes[-1]
            if len(self.running) or full or time.perf_counter() > enough_at:
                return

    def _accept(self, arrival: Arrival) -> None:
        request = arrival.request
        ongoing = prepare(request, self._model_of(request), arrival.at)
        self.admission.queue.add(arrival)
        waiting = [waiting.id for waiting, _ in self.admission.queue.order()]
        self.ledger.accepted(ongoing, waiting.index(request.id), self.admission.estimates(self.running)[request.id])

    def _admit(self) -> None:
        self._begin()
        if paused := self.admission.make_way(self.running):
            for ticket in paused:
                self.ledger.tally(ticket.request).paused += 1
            self._begin()
        if estimates := self.admission.foretell(self.running):
            for position, (request, _) in enumerate(self.admission.queue.order()):
                self.ledger.moved(request.id, position, estimates[request.id])

    def _begin(self) -> None:
        for ticket in self.admission.begin(self.running):
            try:
                self.running.add(self._row(ticket))
            except Exception as error:
                raise_if_sticky(error)
                log.exception("an image could not be begun")
                self.ledger.settle(ticket.request, ticket.index, GenerationFailed("the image could not be begun"))

    def _row(self, ticket: Ticket) -> Row:
        paused = self.admission.resumed(ticket)
        if paused is not None:
            return paused
        ongoing = self.ledger.ongoing[ticket.request.id]
        ongoing.rows_admitted()
        row = begin_row(ongoing, ticket.index, self.models[ticket.request.model])
        row.rank = ticket.rank
        return row

    def _denoise(self, bucket: Bucket, rows: list[Row]) -> float:
        """The seconds that UNet calls took."""
        called = 0.0
        model, tally = self.models[bucket.model], self.ledger.tally(rows[0].request)
        for done in self._stepper.step(model, bucket, rows, tally):
            if isinstance(done, Moved):
                called += done.seconds
                self.admission.stepped(bucket, done.result.unet_rows, done.result.control_rows, done.seconds)
                self._share.charge(bucket, done.seconds, [row.request.params.priority for row in done.rows])
                for row, clean in previews(model, done.rows, done.result):
                    self._decoder.preview(row, model, clean)
            else:
                stuck = done.row
                self.running.drop(lambda row: row is stuck)  # noqa: B023 - used at once
                tally.wasted_steps += stuck.step
                self.ledger.settle(stuck.request, stuck.index, done.error)
        return called

    def _retire(self, bucket: Bucket) -> None:
        """Reports progress, hands finished rows to the decoder and makes room for the next ones."""
        self.ledger.stepped(self.running.of(bucket), self.admission.seconds_left)
        for row in self.running.drop(lambda row: row.done):
            self.ledger.ongoing[row.request.id].denoised()
            if bool(torch.isfinite(row.state[0]).all()):
                self._decoder.finish(row, self.models[bucket.model])
            else:
                self._start_again(row)

    def _start_again(self, row: Row) -> None:
        """An image that is not finite gets one second chance, from its noise on: not every cause comes twice."""
        tally = self.ledger.tally(row.request)
        tally.wasted_steps += row.step
        if row.restarted:
            error = NumericalFailure("the network's output for this image was not finite")
            self.ledger.settle(row.request, row.index, error)
            return
        tally.retries += 1
        anew = begin_row(self.ledger.ongoing[row.request.id], row.index, self.models[row.request.model])
        anew.rank, anew.restarted = row.rank, True
        self.running.add(anew)

    def _take_decoded(self, decoded: Decoded) -> None:
        """Called on the decoder's threads."""
        self._decoded.put(decoded)
        self.wake.set()

    def _collect(self) -> None:
        """Passes on what the decoder has ready; pictures of requests that have left are dropped."""
        while not self._decoded.empty():
            decoded = self._decoded.get()
            if isinstance(decoded.result, DeviceLost):
                raise decoded.result
            row = decoded.row
            if row.request.id not in self.ledger.ongoing:
                continue
            if decoded.preview_step is None:
                self.ledger.tally(row.request).retries += decoded.retried
                self.admission.costs.decoded(row.request.bucket, decoded.milliseconds / 1000 / decoded.pictures)
                self.ledger.settle(row.request, row.index, decoded.result, decoded.milliseconds)
            elif isinstance(decoded.result, bytes):
                self.ledger.emit(Preview(row.request.id, row.index, decoded.preview_step, decoded.result))
