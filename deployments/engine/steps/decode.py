"""Decodes latents to image files off the denoising loop: one thread decodes small batches, a few compress images.

Between the two, finished pictures are checked, if their model has checkers: as they were decoded, before anything of
the caller's own is put around them.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from deployments.engine.conditioning.image_encoder import Posterior
from deployments.engine.device.errors import call_again_if_full, convert_device_errors, raise_if_sticky
from deployments.engine.device.metering import meter_call
from deployments.engine.device.streams import Mark, WorkStream, current_stream, new_stream
from deployments.engine.heartbeat import Heartbeat
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import Cancelled, EngineError, GenerationFailed, NumericalFailure
from deployments.engine.protocol.safety import Finding
from deployments.engine.row import Row
from deployments.engine.safety.check_queue import Check, CheckQueue
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.steps.compression import compress_picture
from deployments.engine.steps.pictures import Pictures, decode_error, decode_latents, make_in_fp32, make_pictures
from deployments.engine.upscaling.second_pass_start import Enlarger
from deployments.engine.upscaling.upscalers import NO_UPSCALERS, Upscalers

log = logging.getLogger(__name__)

IDLE_S: Final = 1.0
"""How often the decoder's heartbeat is renewed while there is nothing to decode."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An encoded image of `row`, or the error instead of it. `preview_step` is None for the finished image.

    Of the first of two passes it is the VAE's encoding of the enlarged picture. `milliseconds` is the time of a whole
    VAE call of `batch_size` images; `was_retried` says that the image was decoded again in fp32; `is_invalid` that the
    row's latents are not finite, so that there was nothing to decode. `safety` is what checkers found.
    """

    row: Row
    result: bytes | Posterior | EngineError = field(repr=False)
    milliseconds: float
    preview_step: int | None = None
    batch_size: int = 1
    was_retried: bool = False
    is_invalid: bool = False
    safety: Finding | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """Latents to be decoded: they are there from `ready` on."""

    row: Row
    model: LoadedModel
    latents: Tensor
    preview_step: int | None
    ready: Mark

    def fits_beside(self, other: "_Job") -> bool:
        is_exact = any(job.row.request.params.exact for job in (self, other))
        return not is_exact and self.model is other.model and self.latents.shape == other.latents.shape


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The result of a VAE call for one job, which began at `began`: a picture [H, W, 3] of bytes on the host."""

    job: _Job
    result: Tensor | EngineError
    began: float
    batch_size: int = 1
    was_retried: bool = False
    is_invalid: bool = False
    safety: Finding | None = None


class Decoder:
    """Decodes latents, and calls `on_done` from its own threads. Records in `plan` what that took of `device`'s memory.

    At most `decode_batch` latents of one shape share a VAE call. At 1 an image's bits cannot depend on what else
    finishes at the same moment. When one of its threads fails, `failure` holds the error and `on_failure` is called:
    the jobs that wait will never be done. Nothing more is made for a request that `is_gone`, asked by its id from any
    thread: `on_done` gets Cancelled.
    """

    def __init__(
        self,
        on_done: Callable[[DecodedImage], None],
        plan: MemoryPlan,
        device: DeviceMemory,
        decode_batch: int = 1,
        upscalers: Upscalers = NO_UPSCALERS,
        encoder_threads: int = 2,
        on_failure: Callable[[], object] = lambda: None,
        heartbeat: Heartbeat | None = None,
        is_gone: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._on_done, self._plan, self._device = on_done, plan, device
        self._on_failure = on_failure
        self._heartbeat = heartbeat or Heartbeat()
        self._decode_batch = decode_batch
        self.failure: BaseException | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._set_aside: _Job | None = None
        self._is_gone = is_gone
        self._enlarger = Enlarger(plan, device, upscalers, is_gone)
        self._streams: dict[torch.device, WorkStream] = {}
        self._encoders = ThreadPoolExecutor(encoder_threads, thread_name_prefix="encode")
        self._checks = CheckQueue(plan, device, self._run_guarded)
        self._thread = threading.Thread(target=self._run_guarded, args=(self._run,), name="decode", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while its jobs will be done: its threads run, and none takes far longer than ever before."""
        are_alive = self._thread.is_alive() and self._checks.is_alive
        return self.failure is None and are_alive and not self._heartbeat.is_stalled

    def decode_image(self, row: Row, model: LoadedModel) -> None:
        """Queues the finished latents of `row`."""
        self._put(row, model, row.state[0], None)

    def decode_preview(self, row: Row, model: LoadedModel, latents: Tensor) -> None:
        """Queues predicted clean latents [C, h, w], which may be smaller than the row's own."""
        self._put(row, model, latents, row.step)

    def _put(self, row: Row, model: LoadedModel, latents: Tensor, preview_step: int | None) -> None:
        # The device may still be at work on the latents: the mark is behind that.
        self._jobs.put(_Job(row, model, latents, preview_step, current_stream(latents.device).mark()))

    def close(self) -> None:
        """Ends the threads, and drops what still waits."""
        self._jobs.put(None)
        self._thread.join(timeout=10)
        self._checks.close()
        self._encoders.shutdown(wait=True, cancel_futures=True)
        self._enlarger.close()

    def _run_guarded(self, action: Callable[..., object], *arguments: object) -> None:
        """Runs `action` on one of the decoder's threads, and records the error that ends it."""
        try:
            with convert_device_errors():
                action(*arguments)
        except BaseException as error:
            log.exception("the decoder's thread %r ended", threading.current_thread().name)
            self.failure = self.failure or error
            self._on_failure()

    def _run(self) -> None:
        # No job is kept in a variable here: it would keep its model in memory while there is nothing to do.
        while self._run_job(self._next()):
            pass

    def _next(self) -> _Job | None:
        self._heartbeat.begin()
        while self._set_aside is None:
            try:
                return self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                self._heartbeat.begin()
        job, self._set_aside = self._set_aside, None
        return job

    def _run_job(self, job: _Job | None) -> bool:
        """Decodes `job` and the jobs that fit beside it. Returns False at the end, which is None."""
        if job is None:
            return False
        if self._is_gone(job.row.request.id):
            self._encode(_Outcome(job, Cancelled(), time.perf_counter()))
            return True
        self._heartbeat.begin()
        for outcome in self._decode(self._gather(job)):
            self._pass_on(outcome)
        self._heartbeat.end()
        return True

    def _pass_on(self, outcome: _Outcome) -> None:
        """Has a picture that is to be delivered checked, if its model has checkers, and then compressed."""
        job, checkers, result = outcome.job, outcome.job.model.checkers, outcome.result
        is_on_the_way = job.preview_step is not None or job.row.request.params.hires is not None
        if not checkers.spec.is_on or is_on_the_way or not isinstance(result, Tensor):
            # A network may enlarge for a minute, and finished images must not wait for that.
            enlarges = job.preview_step is None and job.row.request.params.hires is not None
            threads = self._enlarger.thread if enlarges else self._encoders
            threads.submit(self._run_guarded, self._encode, outcome)
            return

        def on_checked(checked: Finding | EngineError) -> None:
            change = {"safety": checked} if isinstance(checked, Finding) else {"result": checked}
            self._encoders.submit(self._run_guarded, self._encode, replace(outcome, **change))

        self._checks.put(Check(result.numpy(), job.row.request.bucket, checkers, on_checked))

    def _gather(self, first: _Job) -> list[_Job]:
        """Returns `first` and the jobs behind it that fit beside it, in order."""
        batch = [first]
        while len(batch) < self._decode_batch and not self._jobs.empty():
            job = self._jobs.get()
            if job is None or not job.fits_beside(first):
                self._set_aside = job
                if job is None:
                    self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _decode(self, batch: list[_Job]) -> Iterator[_Outcome]:
        """Yields what becomes of each job; if a batch fails, each is tried alone, so that only the culprit fails."""
        stream = self._stream_of(batch[0].latents.device)
        with stream.run_after(job.ready for job in batch):
            yield from self._decode_in(stream, batch)

    def _stream_of(self, device: torch.device) -> WorkStream:
        """Returns the decoder's own stream: what is decoded waits for its own steps only, and steps do not wait."""
        if device not in self._streams:
            self._streams[device] = new_stream(device)
        return self._streams[device]

    def _decode_in(self, stream: WorkStream, batch: list[_Job]) -> Iterator[_Outcome]:
        began = time.perf_counter()
        try:
            make = partial(self._make_pictures, stream, batch)
            pictures, began = make() if len(batch) > 1 else call_again_if_full(make, self._device.release)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("decoding failed for %d image(s)", len(batch))
            failure = decode_error(error)
        else:
            for index, job in enumerate(batch):
                yield self._check(stream, job, pictures, index, began)
            return
        self._device.release()
        if len(batch) == 1:
            yield _Outcome(batch[0], failure, began)
            return
        for job in batch:
            yield from self._decode_in(stream, [job])

    def _make_pictures(self, stream: WorkStream, batch: list[_Job]) -> tuple[Pictures, float]:
        """Returns the pictures of finished images or previews on the host, and when the device began with them."""
        latents, first = torch.stack([job.latents for job in batch]), batch[0]
        is_final, bucket = first.preview_step is None, first.row.request.bucket
        stopwatch = stream.start_stopwatch()
        with meter_call(self._plan, self._device, "decode", bucket, len(batch), is_typical=is_final):
            made = make_pictures(decode_latents(first.model, latents), latents)
        pictures = made.copy_to_host(stream)
        stopwatch.stop()
        seconds = stopwatch.wait()
        return pictures, time.perf_counter() - seconds

    def _check(self, stream: WorkStream, job: _Job, pictures: Pictures, index: int, began: float) -> _Outcome:
        """Returns the picture of a job if it is one.

        Otherwise it is decoded once more in full precision: SD's VAE is known to overflow in half precision.
        """
        if job.preview_step is not None or bool(pictures.are_valid[index]):
            return _Outcome(job, pictures.values[index], began, len(pictures.values))
        if not bool(pictures.were_finite[index]):
            return _Outcome(job, NumericalFailure("the network's output was not finite"), began, is_invalid=True)
        log.warning("a decoded picture was black or not finite; it is decoded again in fp32")
        try:
            make = partial(make_in_fp32, job.model, job.latents, stream)
            again = call_again_if_full(make, self._device.release)
            if bool(again.are_valid[0]):
                return _Outcome(job, again.values[0], began, was_retried=True)
            failure: EngineError = NumericalFailure("the decoded image was black or not finite")
            return _Outcome(job, failure, began, was_retried=True)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("decoding again failed")
            failure = decode_error(error)
        self._device.release()
        return _Outcome(job, failure, began, was_retried=True)

    def _encode(self, outcome: _Outcome) -> None:
        result, job = outcome.result, outcome.job
        encoded = self._finish(job, result) if isinstance(result, Tensor) else result
        milliseconds = (time.perf_counter() - outcome.began) * 1000
        how = outcome.batch_size, outcome.was_retried, outcome.is_invalid, outcome.safety
        self._on_done(DecodedImage(job.row, encoded, milliseconds, job.preview_step, *how))

    def _finish(self, job: _Job, picture: Tensor) -> bytes | Posterior | EngineError:
        """Returns the file of a picture; of the first of two passes, what the second begins from."""
        request = job.row.request
        if request.params.hires is not None and job.preview_step is None:
            return self._encode_enlarged(job, picture)
        try:
            return compress_picture(picture.numpy(), request, is_preview=job.preview_step is not None)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("encoding failed")
            return GenerationFailed("the image could not be encoded")

    def _encode_enlarged(self, job: _Job, picture: Tensor) -> Posterior | EngineError:
        try:
            return self._enlarger.encode(picture.numpy(), job.row.request, job.model)
        except EngineError as error:
            return error
        except Exception as error:
            raise_if_sticky(error)
            log.exception("encoding an enlarged picture failed")
            failure = decode_error(error)
        # Outside the handler: the traceback would keep the failed call's tensors alive.
        self._device.release()
        return failure
