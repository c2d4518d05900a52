"""The engine: admit, denoise one step, retire. Single-threaded; `engine_worker.py` runs it on a thread for asyncio."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from deployments.engine.conditioning.image_encoder import Posterior
from deployments.engine.device.errors import convert_device_errors, is_out_of_memory, raise_if_sticky
from deployments.engine.device.memory import CpuMemory
from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.rows.adapter_cache import AdapterCache, share_for_loras
from deployments.engine.models.adaptation import KeptAdapters, adapted_base
from deployments.engine.models.components import size_of
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import powers_of_two
from deployments.engine.protocol.engine_config import DEFAULTS, EngineConfig
from deployments.engine.protocol.errors import EngineError, GenerationFailed, NumericalFailure, Overloaded
from deployments.engine.protocol.events import Event, Preview
from deployments.engine.protocol.files.loras import LoraFile
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.request_intake import RequestIntake
from deployments.engine.request_tracker import RequestTracker
from deployments.engine.row import Row, Ticket
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.bucket_share import BucketShare
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.running import RunningRows
from deployments.engine.similar.state_reuse import StateReuse
from deployments.engine.step_recorder import StepRecorder
from deployments.engine.steps.decode import DecodedImage, Decoder
from deployments.engine.steps.prepare import begin_row, restart_row
from deployments.engine.steps.previews import predict_previews
from deployments.engine.steps.second_pass import begin_second_pass
from deployments.engine.steps.stepper import StepDone, StepFailed, StepIssued, Stepper
from deployments.engine.upscaling.upscalers import NO_UPSCALERS, Upscalers

log = logging.getLogger(__name__)


class Engine:
    """Makes images for many requests at once, one UNet call at a time.

    `emit` receives every event, on the engine's thread. `wake` is set when an image has been decoded, so that an idle
    driver knows when to call `step` again. `memory` is the device's; by default it has no budget. `read_adapter` reads
    LoRAs, on any thread, and raises EngineError; without it requests for them are refused. `upscalers` enlarge pictures
    between two passes.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        emit: Callable[[Event], None],
        config: EngineConfig = DEFAULTS,
        *,
        memory: DeviceMemory | None = None,
        read_adapter: Callable[[LoraFile], Adapter] | None = None,
        upscalers: Upscalers = NO_UPSCALERS,
    ) -> None:
        self.models = {model.spec.name: model for model in models}
        self.tracker = RequestTracker(emit, lambda name: name in self.models)
        self.running = RunningRows()
        self.wake = threading.Event()
        self.sizes = config.padded_sizes or powers_of_two(config.max_rows)
        decode_batch = config.decode_batch or 1
        memory = memory or CpuMemory()
        room = share_for_loras(config.lora_memory_bytes, memory.budget)
        self.adapters = AdapterCache(
            read_adapter, lambda name: adapted_base(self.models[name]), self.tracker.loras_in_use, room
        )
        kept = KeptAdapters(self.adapters, self.models, self.tracker.requests, self.tracker.prepared_bytes)
        self.admission = Admission(config.queue_limit, self.sizes, memory, decode_batch, adapters=kept)
        self._upscalers = upscalers
        self.admission.plan.set_aside(upscalers.tile_bytes)
        self._measure_weights()
        self._share = BucketShare()
        self._recorder = StepRecorder(self.admission, self._share, self.tracker)
        self.reuse = StateReuse(config.similar_memory_bytes, config.similar_distance)
        parts = (self.models, self.admission, self.tracker, self.running, self.adapters, self.reuse, upscalers)
        self._intake = RequestIntake(*parts, self.sizes, self._attempt, self.wake.set)
        self._decoded: queue.SimpleQueue[DecodedImage] = queue.SimpleQueue()
        plan = self.admission.plan
        self.stepper = Stepper(plan, self.admission.costs, memory, self.sizes)
        decoder_for = partial(Decoder, on_failure=self.wake.set, is_gone=self.tracker.is_gone)
        self._decoder = decoder_for(self._put_decoded, plan, memory, decode_batch, upscalers)

    @property
    def is_alive(self) -> bool:
        """True while the engine's own threads work. Only its driver knows whether `step` is called and returns."""
        return self._decoder.is_alive and self._intake.is_alive

    @property
    def is_busy(self) -> bool:
        """True while any request is unfinished."""
        return bool(self.tracker.requests) or len(self.admission.queue) > 0

    @property
    def capacity(self) -> int:
        """The UNet rows that can run at once at the first model's native size."""
        # Other threads read this too: the list is copied in one operation.
        natives = [Bucket(model.spec.name, *model.spec.native) for model in list(self.models.values())]
        return self.admission.capacity(natives[0]) if natives else self.sizes[-1]

    def add_model(self, model: LoadedModel) -> None:
        """Starts to serve `model`."""
        self.models[model.spec.name] = model
        self._measure_weights()

    def remove_model(self, name: str) -> None:
        """Drops a model that no request uses."""
        self.settle()
        self.models.pop(name, None)
        self.stepper.release_unused(name)
        self.adapters.drop(name)
        self._measure_weights()

    def _measure_weights(self) -> None:
        networks = (network for model in self.models.values() for network in model.networks)
        self.admission.set_weight_bytes(size_of(*networks) + self._upscalers.bytes)
        self.admission.plan.set_tiles({name: m.tile**2 for name, m in self.models.items() if m.tile is not None})

    def submit(self, request: Request) -> None:
        """Queues a request, or refuses it with a `Failed` event. Nothing is encoded yet, so a refusal is cheap.

        One of the next steps emits `Accepted`, or `Failed` if the request cannot be prepared or meet its deadline.
        """
        self._intake.take_in(request)

    def cancel(self, request_id: str) -> bool:
        """Drops a request; its rows are gone before the next step. Returns False if the engine does not have it."""
        request = self._remove(request_id)
        if request is not None:
            self.tracker.counters_of(request).cancelled += 1
        return request is not None

    @convert_device_errors()
    def step(self, has_messages: Callable[[], bool] | None = None) -> bool:
        """Admits what fits, denoises one bucket by one step, retires what is done. Returns False if nothing ran.

        Where nothing runs it waits for what is being prepared; if its driver says whether it `has_messages`, until it
        has, or until there is a decoded image to pass on. On CUDA it may return before that step is done. Raises
        DeviceLost, and any error that ended one of the engine's threads: running requests cannot finish then.
        """
        begun = time.perf_counter()
        self._collect()
        self._intake.refuse_late()
        self._expire()
        self._intake.begin_preparations()
        self._intake.accept_prepared(
            wait=not len(self.running),
            is_called=lambda: has_messages is not None and (has_messages() or not self._decoded.empty()),
        )
        self._admit()
        self._intake.report_positions()
        bucket = self._share.choose(self.running.rows)
        if bucket is None:
            self.settle()
            return False
        called = self._denoise(bucket, self.running.rows[bucket])
        self._retire()
        self.admission.estimator.record_iteration(time.perf_counter() - begun, called)
        return True

    def drain(self) -> None:
        """Steps until every request is finished, for callers without a thread of their own: warm-up, tests, benches."""
        while self.is_busy:
            self.wake.clear()
            if not self.step() and self.is_busy:
                self.wake.wait(timeout=1.0)

    def settle(self) -> None:
        """Waits until the device is done with all steps that it was given, and records them."""
        self._recorder.record_done(self.stepper.finish())

    def close(self) -> None:
        """Ends the engine's threads. Unfinished requests get no further event."""
        self.tracker.requests.clear()
        self.running.rows.clear()
        self._intake.close()
        self._decoder.close()
        self.adapters.close()
        self.reuse.close()

    def _attempt(self, request: Request, action: Callable[[], object], failure: str) -> EngineError | None:
        """Runs `action`, which concerns this request alone, and returns its error, if any. Raises DeviceLost."""
        try:
            action()
            return None
        except EngineError as error:
            return error
        except Exception as error:
            raise_if_sticky(error)
            # For example a network that rejects a shape: it must not fail the other requests.
            log.exception("the %s", failure)
            full = is_out_of_memory(error)
        if not full:
            return GenerationFailed(f"the {failure}")
        self.tracker.counters_of(request).out_of_memory += 1
        # Outside the handler: the traceback would keep the failed call's tensors alive.
        self.admission.device.release()
        return Overloaded(f"the {failure}: there is no memory for it now")

    def _remove(self, request_id: str) -> Request | None:
        """Drops everything that belongs to a request, and returns the request."""
        waiting, paused = self.admission.remove(request_id)
        accepted = self.tracker.forget(request_id)
        for row in (*paused, *self.running.drop(lambda row: row.request.id == request_id)):
            self.tracker.counters_of(row.request).wasted_steps += row.own_steps
        return accepted or waiting

    def _expire(self) -> None:
        for request in self.tracker.find_overdue():
            self._remove(request.id)
            self.tracker.expire(request)

    def _admit(self) -> None:
        self._start_rows()
        if paused := self.admission.preempt(self.running):
            for ticket in paused:
                self.tracker.counters_of(ticket.request).paused += 1
            self._start_rows()

    def _start_rows(self) -> None:
        for ticket in self.admission.admit(self.running):
            error = self._attempt(ticket.request, partial(self._start_row, ticket), "image could not be begun")
            if error is not None:
                self.tracker.finish_image(ticket.request, ticket.index, error)

    def _start_row(self, ticket: Ticket) -> None:
        row = self.admission.resume(ticket)
        if row is None:
            request_state = self.tracker.requests[ticket.request.id]
            request_state.record_admission()
            row = begin_row(request_state, ticket.index, self.models[ticket.request.model])
            row.due = ticket.due
        self.running.add(row)

    def _denoise(self, bucket: Bucket, rows: list[Row]) -> float:
        """Steps `rows`, and returns the seconds of the UNet calls that were found done meanwhile."""
        called = 0.0
        model, counters = self.models[bucket.model], self.tracker.counters_of(rows[0].request)
        for outcome in self.stepper.step(model, bucket, rows, counters):
            match outcome:
                case StepIssued():
                    self._recorder.record_issued(bucket, outcome, self.running.of(bucket))
                    self.reuse.save(outcome.rows)
                    for row, clean in predict_previews(model, outcome.rows, outcome.result):
                        self._decoder.decode_preview(row, model, clean)
                case StepDone():
                    called += self._recorder.record_done([outcome])
                case StepFailed(failed, error):
                    self.running.drop(lambda row: row is failed)
                    counters.wasted_steps += failed.own_steps
                    self.tracker.finish_image(failed.request, failed.index, error)
        return called

    def _retire(self) -> None:
        """Hands finished rows to the decoder, or lets their second pass begin from their latents."""
        for row in self.running.drop(lambda row: row.is_done):
            if row.request.params.hires is not None and row.request.params.hires.upscaler == "latent":
                self._run_for_image(row, partial(self._begin_second_pass, row), "second pass could not be begun")
            else:
                self.admission.begin_decoding(row)
                self._decoder.decode_image(row, self.models[row.request.model])

    def _begin_second_pass(self, row: Row, posterior: Posterior | None = None) -> None:
        request_state, model = self.tracker.requests[row.request.id], self.models[row.request.model]
        self.admission.requeue(begin_second_pass(row, request_state, model, posterior))

    def _run_for_image(self, row: Row, action: Callable[[], object], failure: str) -> None:
        """Runs `action`, which concerns the image of `row` alone; if it fails, the image does."""
        error = self._attempt(row.request, action, failure)
        if error is not None:
            self.tracker.finish_image(row.request, row.index, error)

    def _restart_row(self, row: Row) -> None:
        """Makes an image that is not finite once more, from its noise on: the cause may have been transient."""
        counters = self.tracker.counters_of(row.request)
        counters.wasted_steps += row.own_steps
        if row.was_restarted:
            raise NumericalFailure("the network's output for this image was not finite")
        counters.retries += 1
        self.admission.requeue(restart_row(row, self.tracker.requests[row.request.id], self.models[row.request.model]))

    def _put_decoded(self, decoded: DecodedImage) -> None:
        """Passes an image from the decoder's threads to the engine's."""
        self._decoded.put(decoded)
        self.wake.set()

    def _collect(self) -> None:
        """Passes on what the decoder has finished, and drops images of requests that are gone."""
        if (failure := self._decoder.failure) is not None:
            raise_if_sticky(failure)
            raise RuntimeError("a thread of the decoder's has ended") from failure
        while not self._decoded.empty():
            decoded = self._decoded.get()
            # What was decoded has had its steps: they are recorded before it is passed on.
            self._recorder.record_done(self.stepper.finish_done())
            row = decoded.row
            if decoded.preview_step is None:
                self.admission.end_decoding(row)
            if row.request.id not in self.tracker.requests:
                continue
            if decoded.is_invalid:
                self._run_for_image(row, partial(self._restart_row, row), "image could not be begun again")
            elif isinstance(decoded.result, Posterior):
                begin = partial(self._begin_second_pass, row, decoded.result)
                self._run_for_image(row, begin, "second pass could not be begun")
            elif decoded.preview_step is None:
                self.tracker.counters_of(row.request).retries += decoded.was_retried
                self.admission.costs.record_decode(row.request.bucket, decoded.milliseconds / 1000 / decoded.batch_size)
                finished = decoded.milliseconds, decoded.safety
                self.tracker.finish_image(row.request, row.index, decoded.result, *finished)
            elif isinstance(decoded.result, bytes):
                self.tracker.emit(Preview(row.request.id, row.index, decoded.preview_step, decoded.result))
