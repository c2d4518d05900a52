"""From latents to encoded pictures, off the denoising loop: one thread decodes small batches, a few compress images."""

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
from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky, telling_device_lost
from deployments.engine.heartbeat import Heartbeat
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import DoesNotFit, EngineError, GenerationFailed, NumericalFailure
from deployments.engine.protocol.inputs import Picture
from deployments.engine.protocol.params import OutputFormat
from deployments.engine.protocol.request import Request
from deployments.engine.row import Row
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.memory_plan import MemoryPlan

log = logging.getLogger(__name__)

IDLE_S: Final = 1.0
"""How often the decoder's heart beats while there is nothing to decode."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An encoded picture of `row`, or why there is none. `preview_step` is None for the finished picture.

    `milliseconds` went by for all the `pictures` of one VAE call; `retried` says that it was decoded again in fp32.
    """

    row: Row
    result: bytes | EngineError = field(repr=False)
    milliseconds: float
    preview_step: int | None = None
    pictures: int = 1
    retried: bool = False


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
    """What a VAE call made of one job."""

    job: _Job
    result: Tensor | EngineError
    pictures: int = 1
    retried: bool = False


class Decoder:
    """Decodes what it is handed, and calls `on_done` from its own threads. Tells `plan` what it took of `device`.

    At most `batch` latents of one shape share a VAE call. With `batch` = 1 a picture's bits cannot depend on what
    else finishes at the same moment. When one of its threads cannot go on, `failure` says why and `on_failure` is
    called: what it was handed is never going to be done then.
    """

    def __init__(
        self,
        on_done: Callable[[Decoded], None],
        plan: MemoryPlan,
        device: DeviceMemory,
        batch: int = 1,
        encoder_threads: int = 2,
        on_failure: Callable[[], object] = lambda: None,
        heart: Heartbeat | None = None,
    ) -> None:
        self._on_done, self._plan, self._device = on_done, plan, device
        self._on_failure = on_failure
        self._heart = heart or Heartbeat()
        self._batch = batch
        self.failure: BaseException | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: _Job | None = None
        self._encoders = ThreadPoolExecutor(encoder_threads, thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._guarded, args=(self._run,), name="decode", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what it is handed is going to be done: its threads run, and none takes far longer than ever."""
        return self.failure is None and self._thread.is_alive() and not self._heart.stalled

    def finish(self, row: Row, model: LoadedModel) -> None:
        """Decodes the finished latents of `row`."""
        self._jobs.put(_Job(row, model, row.state[0], None))

    def preview(self, row: Row, model: LoadedModel, latents: Tensor) -> None:
        """Decodes predicted clean latents [C, h, w], which may be smaller than the row's own."""
        self._jobs.put(_Job(row, model, latents, row.step))

    def close(self) -> None:
        """Ends the threads; what is still waiting is dropped."""
        self._jobs.put(None)
        self._thread.join(timeout=10)
        self._encoders.shutdown(wait=True, cancel_futures=True)

    def _guarded(self, work: Callable[..., object], *given: object) -> None:
        """`work`, on a thread of ours: whatever ends it is told, for nobody would ever ask the thread."""
        try:
            with telling_device_lost():
                work(*given)
        except BaseException as error:
            log.exception("the decoder's thread %r ended", threading.current_thread().name)
            self.failure = self.failure or error
            self._on_failure()

    def _run(self) -> None:
        # Nothing of a job is kept in a variable here: that would hold its model while there is nothing to do.
        while self._turn(self._next()):
            pass

    def _next(self) -> _Job | None:
        self._heart.begin()
        while self._held is None:
            try:
                return self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                self._heart.begin()
        job, self._held = self._held, None
        return job

    def _turn(self, job: _Job | None) -> bool:
        """Decodes `job` and what fits beside it. False when it is the end."""
        if job is None:
            return False
        self._heart.begin()
        started = time.perf_counter()
        for made in self._decode(self._gather(job)):
            self._encoders.submit(self._guarded, self._encode, made, started)
        self._heart.end()
        return True

    def _gather(self, first: _Job) -> list[_Job]:
        """`first` and what fits beside it of the jobs that wait behind it, in order."""
        batch = [first]
        while len(batch) < self._batch and not self._jobs.empty():
            job = self._jobs.get()
            if job is None or not job.fits_beside(first):
                self._held = job
                if job is None:
                    self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _decode(self, batch: list[_Job]) -> Iterator[_Pixels]:
        """Pixels per job; when a batch fails, each job is tried alone, so that only the culprit fails."""
        try:
            pixels = self._metered(batch)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("decoding failed for %d image(s)", len(batch))
            failure = _failure_of(error)
        else:
            for job, picture in zip(batch, pixels, strict=True):
                good = job.preview_step is not None or is_a_picture(picture)
                yield _Pixels(job, picture, len(batch)) if good else self._in_fp32(job)
            return
        self._device.release()
        if len(batch) == 1:
            yield _Pixels(batch[0], failure)
            return
        for job in batch:
            yield from self._decode([job])

    def _metered(self, batch: list[_Job]) -> Tensor:
        """Pixels [B, H, W, 3] of finished pictures or previews."""
        latents, bucket = torch.stack([job.latents for job in batch]), batch[0].row.request.bucket
        if batch[0].preview_step is not None or self._plan.knows("decode", bucket, len(batch)):
            return decode_latents(batch[0].model, latents)
        with self._device.metered() as meter:
            pixels = decode_latents(batch[0].model, latents)
        self._plan.took("decode", bucket, len(batch), meter.peak)
        return pixels

    def _in_fp32(self, job: _Job) -> _Pixels:
        """Once more, where half precision may have overflowed: SD's VAE is known for that."""
        log.warning("a decoded picture was black or not finite; it is decoded again in fp32")
        try:
            pixels = decode_in_fp32(job.model, job.latents[None])[0]
        except Exception as error:
            raise_if_sticky(error)
            log.exception("decoding in fp32 failed")
            failure = _failure_of(error)
        else:
            if is_a_picture(pixels):
                return _Pixels(job, pixels, retried=True)
            return _Pixels(job, NumericalFailure("the decoded image was black or not finite"), retried=True)
        self._device.release()
        return _Pixels(job, failure, retried=True)

    def _encode(self, made: _Pixels, started: float) -> None:
        result = _encoded(made.job, made.result) if isinstance(made.result, Tensor) else made.result
        milliseconds = (time.perf_counter() - started) * 1000
        job = made.job
        self._on_done(Decoded(job.row, result, milliseconds, job.preview_step, made.pictures, made.retried))


@torch.inference_mode()
def decode_latents(model: LoadedModel, latents: Tensor) -> Tensor:
    """Pixels [B, H, W, 3] in 0..1 (fp32, CPU) from latents [B, C, h, w]; NaN where the network's answer was NaN."""
    scaled = latents.to(model.dtype) / model.vae.config.scaling_factor
    image: Tensor = model.vae.decode(scaled, return_dict=False)[0]
    return (image.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def decode_in_fp32(model: LoadedModel, latents: Tensor) -> Tensor:
    """As `decode_latents`, with a VAE of full precision that is gone again afterwards."""
    if model.dtype == torch.float32:
        return decode_latents(model, latents)
    return decode_latents(replace(model, vae=copy.deepcopy(model.vae).float(), dtype=torch.float32), latents)


def is_a_picture(pixels: Tensor) -> bool:
    """Whether `pixels` (0..1) are finite, and not all of them black."""
    return bool(torch.isfinite(pixels).all()) and float(pixels.max()) >= 0.5 / 255


def encode_image(picture: Picture, output_format: OutputFormat) -> bytes:
    """`picture` [H, W, 3] as a PNG (lossless), WebP or JPEG file."""
    image = Image.fromarray(picture)
    buffer = io.BytesIO()
    if output_format == "png":
        image.save(buffer, "PNG", compress_level=4)
    else:
        image.save(buffer, output_format.upper(), quality=92)
    return buffer.getvalue()


def _failure_of(error: Exception) -> EngineError:
    if is_out_of_memory(error):
        return DoesNotFit("an image of this size does not fit into the memory that there is")
    return GenerationFailed("the image could not be decoded")


def _encoded(job: _Job, pixels: Tensor) -> bytes | EngineError:
    try:
        picture: Picture = (pixels.nan_to_num() * 255).round().to(torch.uint8).numpy()
        if job.preview_step is not None:
            return encode_image(picture, "jpeg")
        return encode_image(_kept_outside(job.row.request, picture), job.row.request.params.output_format)
    except Exception as error:
        raise_if_sticky(error)
        log.exception("encoding failed")
        return GenerationFailed("the image could not be encoded")


def _kept_outside(request: Request, picture: Picture) -> Picture:
    """`picture`, in an inpaint request only where its mask says so: the VAE changes every pixel a little."""
    image, mask = request.inputs.image, request.inputs.mask
    if image is None or mask is None:
        return picture
    return composite(picture, image, mask, request.params.mask_feather)
