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

import torch
from PIL import Image
from torch import Tensor

from deployments.engine.compositing import composite
from deployments.engine.device_errors import DeviceLost, is_out_of_memory, is_sticky
from deployments.engine.device_memory import DeviceMemory
from deployments.engine.errors import DoesNotFit, EngineError, GenerationFailed, NumericalFailure
from deployments.engine.inputs import Picture
from deployments.engine.memory import MemoryPlan
from deployments.engine.models import LoadedModel
from deployments.engine.params import OutputFormat
from deployments.engine.row import Request, Row

log = logging.getLogger(__name__)

PREVIEW_SHRINK = 2


@dataclass(frozen=True, slots=True)
class Decoded:
    """An encoded picture of `row`, or why there is none. `preview_step` is None for the finished picture.

    `milliseconds` went by for all the `pictures` of one VAE call; `retried` says that it was decoded again in fp32.
    """

    row: Row
    result: bytes | EngineError | DeviceLost = field(repr=False)
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
    result: Tensor | EngineError | DeviceLost
    pictures: int = 1
    retried: bool = False


class Decoder:
    """Decodes what it is handed, and calls `on_done` from its own threads. Tells `plan` what it took of `device`.

    At most `batch` latents of one shape share a VAE call. With `batch` = 1 a picture's bits cannot depend on what
    else finishes at the same moment.
    """

    def __init__(
        self,
        on_done: Callable[[Decoded], None],
        plan: MemoryPlan,
        device: DeviceMemory,
        batch: int = 1,
        encoder_threads: int = 2,
    ) -> None:
        self._on_done, self._plan, self._device = on_done, plan, device
        self._batch = batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: _Job | None = None
        self._encoders = ThreadPoolExecutor(encoder_threads, thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def finish(self, row: Row, model: LoadedModel) -> None:
        """Decodes the finished latents of `row`."""
        self._jobs.put(_Job(row, model, row.state[0], None))

    def preview(self, row: Row, model: LoadedModel, latents: Tensor) -> None:
        """Decodes predicted clean latents [C, h, w] at half size: a quarter of the work."""
        small = torch.nn.functional.avg_pool2d(latents[None], PREVIEW_SHRINK)[0]
        self._jobs.put(_Job(row, model, small, row.step))

    def close(self) -> None:
        """Ends the threads; what is still waiting is dropped."""
        self._jobs.put(None)
        self._thread.join(timeout=10)
        self._encoders.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        while (job := self._held or self._jobs.get()) is not None:
            self._held = None
            started = time.perf_counter()
            for made in self._decode(self._gather(job)):
                self._encoders.submit(self._encode, made, started)

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
            log.exception("decoding failed for %d image(s)", len(batch))
            if is_sticky(error):
                yield _Pixels(batch[0], DeviceLost("the device cannot be used any more"))
                return
            failure: EngineError = GenerationFailed("the image could not be decoded")
            if is_out_of_memory(error):
                failure = DoesNotFit("an image of this size does not fit into the memory that there is")
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
        except Exception:
            log.exception("decoding in fp32 failed")
            return _Pixels(job, GenerationFailed("the image could not be decoded"), retried=True)
        if is_a_picture(pixels):
            return _Pixels(job, pixels, retried=True)
        return _Pixels(job, NumericalFailure("the decoded image was black or not finite"), retried=True)

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


def _encoded(job: _Job, pixels: Tensor) -> bytes | EngineError:
    picture: Picture = (pixels.nan_to_num() * 255).round().to(torch.uint8).numpy()
    try:
        if job.preview_step is not None:
            return encode_image(picture, "jpeg")
        return encode_image(_kept_outside(job.row.request, picture), job.row.request.params.output_format)
    except Exception:
        log.exception("encoding failed")
        return GenerationFailed("the image could not be encoded")


def _kept_outside(request: Request, picture: Picture) -> Picture:
    """`picture`, in an inpaint request only where its mask says so: the VAE changes every pixel a little."""
    image, mask = request.inputs.image, request.inputs.mask
    if image is None or mask is None:
        return picture
    return composite(picture, image, mask, request.params.mask_feather)
