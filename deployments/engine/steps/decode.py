"""Decodes latents to image files off the denoising loop: one thread decodes small batches, a few compress images."""

import copy
import io
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from deployments.engine.conditioning.compositing import composite
from deployments.engine.device.errors import convert_device_errors, is_out_of_memory, raise_if_sticky
from deployments.engine.heartbeat import Heartbeat
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import DoesNotFit, EngineError, GenerationFailed, NumericalFailure
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.params import OutputFormat
from deployments.engine.protocol.request import Request
from deployments.engine.row import Row
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.memory_plan import MemoryPlan

log = logging.getLogger(__name__)

IDLE_S: Final = 1.0
"""How often the decoder's heartbeat is renewed while there is nothing to decode."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An encoded image of `row`, or the error instead of it. `preview_step` is None for the finished image.

    `milliseconds` is the time of a whole VAE call of `batch_size` images; `was_retried` says that the image was decoded
    again in fp32.
    """

    row: Row
    result: bytes | EngineError = field(repr=False)
    milliseconds: float
    preview_step: int | None = None
    batch_size: int = 1
    was_retried: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    row: Row
    model: LoadedModel
    latents: Tensor
    preview_step: int | None

    def fits_beside(self, other: "_Job") -> bool:
        return self.model is other.model and self.latents.shape == other.latents.shape


@dataclass(frozen=True, slots=True)
class _Pixels:
    """The result of a VAE call for one job."""

    job: _Job
    result: Tensor | EngineError
    batch_size: int = 1
    was_retried: bool = False


class Decoder:
    """Decodes latents, and calls `on_done` from its own threads. Records in `plan` what that took of `device`'s memory.

    At most `decode_batch` latents of one shape share a VAE call. At 1 an image's bits cannot depend on what else
    finishes at the same moment. When one of its threads fails, `failure` holds the error and `on_failure` is called:
    the jobs that wait will never be done.
    """

    def __init__(
        self,
        on_done: Callable[[DecodedImage], None],
        plan: MemoryPlan,
        device: DeviceMemory,
        decode_batch: int = 1,
        encoder_threads: int = 2,
        on_failure: Callable[[], object] = lambda: None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._on_done, self._plan, self._device = on_done, plan, device
        self._on_failure = on_failure
        self._heartbeat = heartbeat or Heartbeat()
        self._decode_batch = decode_batch
        self.failure: BaseException | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._set_aside: _Job | None = None
        self._encoders = ThreadPoolExecutor(encoder_threads, thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._run_guarded, args=(self._run,), name="decode", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while its jobs will be done: its threads run, and none takes far longer than ever before."""
        return self.failure is None and self._thread.is_alive() and not self._heartbeat.is_stalled

    def decode_image(self, row: Row, model: LoadedModel) -> None:
        """Queues the finished latents of `row`."""
        self._jobs.put(_Job(row, model, row.state[0], None))

    def decode_preview(self, row: Row, model: LoadedModel, latents: Tensor) -> None:
        """Queues predicted clean latents [C, h, w], which may be smaller than the row's own."""
        self._jobs.put(_Job(row, model, latents, row.step))

    def close(self) -> None:
        """Ends the threads, and drops what still waits."""
        self._jobs.put(None)
        self._thread.join(timeout=10)
        self._encoders.shutdown(wait=True, cancel_futures=True)

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
        self._heartbeat.begin()
        started = time.perf_counter()
        for pixels in self._decode(self._gather(job)):
            self._encoders.submit(self._run_guarded, self._encode, pixels, started)
        self._heartbeat.end()
        return True

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

    def _decode(self, batch: list[_Job]) -> Iterator[_Pixels]:
        """Yields pixels per job; if a batch fails, each job is tried alone, so that only the culprit fails."""
        try:
            pixels = self._decode_metered(batch)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("decoding failed for %d image(s)", len(batch))
            failure = _decode_error(error)
        else:
            for job, image in zip(batch, pixels, strict=True):
                is_good = job.preview_step is not None or is_valid_image(image)
                yield _Pixels(job, image, len(batch)) if is_good else self._decode_again_in_fp32(job)
            return
        self._device.release()
        if len(batch) == 1:
            yield _Pixels(batch[0], failure)
            return
        for job in batch:
            yield from self._decode([job])

    def _decode_metered(self, batch: list[_Job]) -> Tensor:
        """Returns the pixels [B, H, W, 3] of finished images or previews.

        Meters a batch size that has not been measured.
        """
        latents, bucket = torch.stack([job.latents for job in batch]), batch[0].row.request.bucket
        if batch[0].preview_step is not None or self._plan.has_measured("decode", bucket, len(batch)):
            return decode_latents(batch[0].model, latents)
        with self._device.meter() as meter:
            pixels = decode_latents(batch[0].model, latents)
        self._plan.record_peak("decode", bucket, len(batch), meter.peak)
        return pixels

    def _decode_again_in_fp32(self, job: _Job) -> _Pixels:
        """Decodes once more in full precision: SD's VAE is known to overflow in half precision."""
        log.warning("a decoded picture was black or not finite; it is decoded again in fp32")
        try:
            pixels = decode_in_fp32(job.model, job.latents[None])[0]
        except Exception as error:
            raise_if_sticky(error)
            log.exception("decoding in fp32 failed")
            failure = _decode_error(error)
        else:
            if is_valid_image(pixels):
                return _Pixels(job, pixels, was_retried=True)
            return _Pixels(job, NumericalFailure("the decoded image was black or not finite"), was_retried=True)
        self._device.release()
        return _Pixels(job, failure, was_retried=True)

    def _encode(self, pixels: _Pixels, started: float) -> None:
        result, job = pixels.result, pixels.job
        encoded = _encode_pixels(job, result) if isinstance(result, Tensor) else result
        milliseconds = (time.perf_counter() - started) * 1000
        self._on_done(
            DecodedImage(job.row, encoded, milliseconds, job.preview_step, pixels.batch_size, pixels.was_retried)
        )


@torch.inference_mode()
def decode_latents(model: LoadedModel, latents: Tensor) -> Tensor:
    """Returns pixels [B, H, W, 3] in 0..1 (fp32, CPU) of latents [B, C, h, w]; NaN where the network answers NaN."""
    scaled = latents.to(model.dtype) / model.vae.config.scaling_factor
    image: Tensor = model.vae.decode(scaled, return_dict=False)[0]
    return (image.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def decode_in_fp32(model: LoadedModel, latents: Tensor) -> Tensor:
    """Decodes as `decode_latents` does, with a copy of the VAE in full precision that is dropped afterwards."""
    if model.dtype == torch.float32:
        return decode_latents(model, latents)
    return decode_latents(replace(model, vae=copy.deepcopy(model.vae).float(), dtype=torch.float32), latents)


def is_valid_image(pixels: Tensor) -> bool:
    """Returns True if `pixels` (0..1) are finite, and not all of them black."""
    return bool(torch.isfinite(pixels).all()) and float(pixels.max()) >= 0.5 / 255


def encode_image(image: ImageArray, output_format: OutputFormat) -> bytes:
    """Encodes `image` [H, W, 3] as a PNG (lossless), WebP or JPEG file."""
    canvas = Image.fromarray(image)
    buffer = io.BytesIO()
    if output_format == "png":
        canvas.save(buffer, "PNG", compress_level=4)
    else:
        canvas.save(buffer, output_format.upper(), quality=92)
    return buffer.getvalue()


def _decode_error(error: Exception) -> EngineError:
    if is_out_of_memory(error):
        return DoesNotFit("an image of this size does not fit into the memory that there is")
    return GenerationFailed("the image could not be decoded")


def _encode_pixels(job: _Job, pixels: Tensor) -> bytes | EngineError:
    try:
        made: ImageArray = (pixels.nan_to_num() * 255).round().to(torch.uint8).numpy()
        if job.preview_step is not None:
            return encode_image(made, "jpeg")
        return encode_image(_restore_outside_mask(job.row.request, made), job.row.request.params.output_format)
    except Exception as error:
        raise_if_sticky(error)
        log.exception("encoding failed")
        return GenerationFailed("the image could not be encoded")


def _restore_outside_mask(request: Request, made: ImageArray) -> ImageArray:
    """Restores an inpaint request's own image outside its mask: the VAE changes every pixel a little."""
    image, mask = request.inputs.image, request.inputs.mask
    if image is None or mask is None:
        return made
    return composite(made, image, mask, request.params.mask_feather)
