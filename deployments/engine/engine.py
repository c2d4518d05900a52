"""The engine: admit, denoise one step, retire. Single-threaded; `worker.py` gives it a thread and a door."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from deployments.engine.counters import Counters
from deployments.engine.decode import Decoded, Decoder
from deployments.engine.denoise import StepResult, denoise_step
from deployments.engine.errors import EngineError, GenerationFailed, NumericalFailure, UnknownModel
from deployments.engine.events import (
    Accepted,
    Event,
    Finished,
    ImageDone,
    ImageFailed,
    Preview,
    Progress,
    Refused,
)
from deployments.engine.latents import predicted_original
from deployments.engine.models import LoadedModel
from deployments.engine.ongoing import Ongoing
from deployments.engine.padding import powers_of_two
from deployments.engine.prepare import begin_row, check, prepare
from deployments.engine.queue import Arrival, Queue, Ticket
from deployments.engine.row import Bucket, Request, Row
from deployments.engine.running import Running
from deployments.engine.share import DeviceShare

log = logging.getLogger(__name__)

_NOT_FINITE = "the network's output for this image was not finite"

# How long an idle engine may gather rows for a first, full call; far below what the worker takes for a standstill.
_GATHER_SECONDS = 10.0


class Engine:
    """Makes images for many requests at once, one UNet call at a time.

    `emit` receives every event, on the engine's thread. `wake` is set when a picture has been decoded, so that an idle
    driver knows when to call `step` again. `max_rows` bounds the UNet rows of one call (a power of two is well used);
    `padded_sizes` are the batch sizes that calls are padded to, by default the powers of two up to `max_rows`.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        emit: Callable[[Event], None],
        *,
        max_rows: int = 16,
        padded_sizes: tuple[int, ...] | None = None,
        queue_limit: int = 256,
        decode_batch: int = 1,
    ) -> None:
        if max_rows < 2:
            raise ValueError("max_rows must be at least 2: a guided image takes two rows of a UNet call")
        self.models = {model.spec.name: model for model in models}
        self.counters = Counters()
        self.queue = Queue(queue_limit)
        self.running = Running()
        self.wake = threading.Event()
        self.max_rows = max_rows
        self._sizes = padded_sizes or powers_of_two(max_rows)
        self.emit = emit
        self._ongoing: dict[str, Ongoing] = {}
        self._share = DeviceShare()
        self._decoded: queue.SimpleQueue[Decoded] = queue.SimpleQueue()
        self._decoder = Decoder(self._take_decoded, decode_batch)

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._ongoing) or len(self.queue) > 0

    def host(self, model: LoadedModel) -> None:
        """Takes a model in."""
        self.models[model.spec.name] = model

    def forget(self, name: str) -> None:
        """Lets go of a model that no request uses."""
        self.models.pop(name, None)

    def submit(self, request: Request) -> None:
        """Lets a request in, or refuses it with a `Refused` event. Nothing is encoded yet, so a refusal costs nothing.

        `Accepted` comes with one of the next steps; or `Refused` even then, where it cannot be prepared.
        """
        with self._refusing(request):
            check(request, self._model_of(request))
            self.queue.arrive(request)

    def cancel(self, request_id: str) -> bool:
        """Forgets a request: its rows are gone before the next step. False if it is not here (any more)."""
        waited = self.queue.remove(request_id)
        if self._ongoing.pop(request_id, None) is None and not waited:
            return False
        self.running.drop(lambda row: row.request.id == request_id)
        self.counters.cancelled += 1
        return True

    def step(self) -> bool:
        """Admits what fits, denoises one bucket by one step, retires what is done. False when nothing was running."""
        self._collect()
        self._prepare()
        self._admit()
        bucket = self._share.next_of(self.running.rows)
        if bucket is None:
            return False
        self._denoise(bucket, self.running.rows[bucket])
        self._retire(bucket)
        return True

    def drain(self) -> None:
        """Steps until every request is finished. For callers without a thread of their own: warm-up, tests, benches."""
        while self.busy:
            self.wake.clear()
            if not self.step() and self.busy:
                self.wake.wait(timeout=1.0)

    def close(self) -> None:
        """Ends the engine's threads. Unfinished requests get no further event."""
        self._ongoing.clear()
        self.running.rows.clear()
        self._decoder.close()

    @contextmanager
    def _refusing(self, request: Request) -> Iterator[None]:
        """Whatever is raised inside refuses `request`, and ends there."""
        try:
            yield
        except EngineError as error:
            self._refuse(request, error)
        except Exception:
            # A device out of memory, a network that does not like a shape: this request's trouble, not the others'.
            log.exception("a request could not be prepared")
            self._refuse(request, GenerationFailed("the request could not be prepared"))

    def _refuse(self, request: Request, error: EngineError) -> None:
        self.counters.refused += 1
        self.emit(Refused(request.id, error))

    def _model_of(self, request: Request) -> LoadedModel:
        model = self.models.get(request.model)
        if model is None:
            raise UnknownModel("model_name", "this engine does not serve that model")
        return model

    def _prepare(self) -> None:
        """Encodes what has arrived: one request a step while rows run, since they wait for it; else a call's worth."""
        enough_at = time.perf_counter() + _GATHER_SECONDS
        while (arrival := self.queue.next_arrival()) is not None:
            with self._refusing(arrival.request):
                self._accept(arrival)
            full = self.queue.unet_rows >= self.max_rows
            if len(self.running) or full or time.perf_counter() > enough_at:
                return

    def _accept(self, arrival: Arrival) -> None:
        request = arrival.request
        self._ongoing[request.id] = prepare(request, self._model_of(request), arrival.at)
        self.counters.requests += 1
        self.emit(Accepted(request.id, self.queue.add(request)))

    def _admit(self) -> None:
        for ticket in self.queue.take(lambda bucket: self.max_rows - self.running.unet_rows(bucket)):
            try:
                self.running.add(self._row(ticket))
            except Exception:
                log.exception("an image could not be begun")
                self._settle(ticket.request, ticket.index, GenerationFailed("the image could not be begun"), 0.0)
        for request_id, position in self.queue.positions():
            ongoing = self._ongoing[request_id]
            if ongoing.admitted is None and ongoing.moved_to(position):
                self.emit(Progress(request_id, 0, len(ongoing.schedule), position + 1))

    def _row(self, ticket: Ticket) -> Row:
        request, model = ticket.request, self.models[ticket.request.model]
        ongoing = self._ongoing[request.id]
        ongoing.rows_admitted()
        return begin_row(ongoing, ticket.index, model)

    def _denoise(self, bucket: Bucket, rows: list[Row]) -> None:
        """One step of `rows`. When it raises, the halves are tried, so that only a row that fails alone fails."""
        started = time.perf_counter()
        try:
            result = denoise_step(self.models[bucket.model], rows, self._sizes)
        except Exception:
            log.exception("a step of %d row(s) failed", len(rows))
            self._denoise_halves(bucket, rows)
            return
        self._account(bucket, len(rows), result, time.perf_counter() - started)
        self._preview(rows, result)

    def _denoise_halves(self, bucket: Bucket, rows: list[Row]) -> None:
        if len(rows) == 1:
            self.running.drop(lambda row: row is rows[0])
            self._settle(rows[0].request, rows[0].index, GenerationFailed("the image could not be made"), 0.0)
            return
        middle = len(rows) // 2
        self._denoise(bucket, rows[:middle])
        self._denoise(bucket, rows[middle:])

    def _account(self, bucket: Bucket, rows: int, result: StepResult, seconds: float) -> None:
        self._share.charge(bucket, seconds, rows)
        self.counters.unet_calls += 1
        self.counters.unet_rows += result.unet_rows
        self.counters.padded_rows += result.padded_rows
        self.counters.denoise_seconds += seconds

    def _preview(self, rows: list[Row], result: StepResult) -> None:
        for row, scaled, out in zip(rows, result.scaled, result.out, strict=True):
            if row.previews_now():
                try:
                    self._look_at(row, scaled, out)
                except Exception:
                    log.exception("a preview is left out")

    def _look_at(self, row: Row, scaled: Tensor, out: Tensor) -> None:
        model = self.models[row.request.model]
        timestep = float(row.schedule.timesteps[row.step - 1])
        clean = predicted_original(scaled, out, timestep, model.alphas_cumprod, model.prediction_type)
        self._decoder.preview(row, model, clean)

    def _retire(self, bucket: Bucket) -> None:
        """Reports progress, hands finished rows to the decoder and makes room for the next ones."""
        rows = self.running.rows.get(bucket, [])
        slowest: dict[str, Row] = {}
        for row in rows:
            slowest[row.request.id] = min(slowest.get(row.request.id, row), row, key=lambda r: r.step)
        for request_id, row in slowest.items():
            self.emit(Progress(request_id, row.step, len(row.schedule)))
        for row in self.running.drop(lambda row: row.done):
            self._ongoing[row.request.id].denoised()
            if bool(torch.isfinite(row.state[0]).all()):
                self._decoder.finish(row, self.models[bucket.model])
            else:
                self._settle(row.request, row.index, NumericalFailure(_NOT_FINITE), 0.0)

    def _take_decoded(self, decoded: Decoded) -> None:
        """Called on the decoder's threads."""
        self._decoded.put(decoded)
        self.wake.set()

    def _collect(self) -> None:
        """Passes on what the decoder has ready; pictures of requests that have left are dropped."""
        while not self._decoded.empty():
            decoded = self._decoded.get()
            if decoded.row.request.id not in self._ongoing:
                continue
            if decoded.preview_step is None:
                self._settle(decoded.row.request, decoded.row.index, decoded.result, decoded.milliseconds)
            elif isinstance(decoded.result, bytes):
                row = decoded.row
                self.emit(Preview(row.request.id, row.index, decoded.preview_step, decoded.result))

    def _settle(self, request: Request, index: int, result: bytes | EngineError, decode_ms: float) -> None:
        """One image is done or failed; with the last one the request is finished."""
        ongoing = self._ongoing[request.id]
        if isinstance(result, EngineError):
            self.counters.failures += 1
            self.emit(ImageFailed(request.id, index, result))
        else:
            self.counters.images += 1
            self.emit(_image_done(request, index, result))
        if ongoing.settled(decode_ms):
            del self._ongoing[request.id]
            self.emit(Finished(request.id, ongoing.timings()))


def _image_done(request: Request, index: int, data: bytes) -> ImageDone:
    bucket = request.bucket
    return ImageDone(
        request.id,
        index,
        request.seed_of(index),
        request.params.output_format,
        bucket.width,
        bucket.height,
        data,
    )
