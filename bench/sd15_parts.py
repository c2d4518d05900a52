"""The parts of the GPU bench. Each takes the subject and returns plain figures; see sd15.py for how they are run.

Milliseconds are medians from idle device to idle device. `share` is of the matmul ceiling that the part `gemm` measured
in this very process, None where it has not run.
"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from bench.checkpoints import Architecture
from bench.contenders import Outcome, Pipeline, serve_with_engine
from bench.timing import median_ms
from bench.workload import request
from deployments.engine.attention import sample_inputs
from deployments.engine.engine import Engine
from deployments.engine.events import Event
from deployments.engine.models import LoadedModel
from deployments.engine.row import Request

# A model of one H200 from before the first measurement, all of it exact fp16 with CUDA graphs and fused kernels.
FORECAST_CEILING_TFLOPS = 790.0
FORECAST_UNET_MS = {2: 5.7, 4: 9.7, 8: 17.4, 16: 32.4, 32: 62.0}
FORECAST_VAE_MS = {"eager": 24.0, "compiled": 7.5}
FORECAST_IMAGES_PER_SECOND = {20: 11.5, 50: 4.9}

ENGINE_ROWS = 16
PIPELINE_BATCH = 8


@dataclass
class Subject:
    """What is measured. `ceiling` is filled in by the part `gemm`, TFLOP/s."""

    model: LoadedModel
    folder: Path
    architecture: Architecture
    rows: tuple[int, ...]
    steps: tuple[int, ...]
    images: int
    gemm_size: int
    compiled: Callable[[Any], Any]
    ceiling: float | None = None
    _pipeline: Pipeline | None = field(default=None, repr=False)
    _compiled_unet: Any = field(default=None, repr=False)

    @property
    def pipeline(self) -> Pipeline:
        if self._pipeline is None:
            self._pipeline = Pipeline(self.folder, self.model)
        return self._pipeline

    @property
    def compiled_unet(self) -> Any:
        """The engine's UNet, compiled once for all parts; each batch size compiles at its first call."""
        if self._compiled_unet is None:
            self._compiled_unet = self.compiled(self.model.unet)
        return self._compiled_unet

    def requests(self, count: int, steps: int) -> list[Request]:
        """Guided requests at the model's native size."""
        return [
            request(
                self.model.spec,
                f"image-{steps}-{index}",
                prompt=f"a picture of number {index}",
                seed=index,
                steps=steps,
                sampler="dpmpp_2m",
                guidance=7.5,
                size=None,
            )
            for index in range(count)
        ]

    def share(self, tflops: float) -> float | None:
        return None if self.ceiling is None else round(tflops / self.ceiling, 3)

    def tidy(self) -> None:
        """Gives memory back between parts."""
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Part:
    """A measurement and the seconds that it may take."""

    measure: Callable[[Subject], dict[str, Any]]
    seconds: float


def gemm(subject: Subject) -> dict[str, Any]:
    """The ceiling: a large matrix product on random data."""
    size, model = subject.gemm_size, subject.model
    left, right = (torch.randn((size, size), device=model.device, dtype=model.dtype) for _ in range(2))
    milliseconds = median_ms(lambda: left @ right, model.device, repeats=20)
    subject.ceiling = 2 * size**3 / milliseconds / 1e9
    return {"size": size, "ms": _r(milliseconds), "tflops": _r(subject.ceiling), "forecast": FORECAST_CEILING_TFLOPS}


def ticks(subject: Subject) -> dict[str, Any]:
    """The UNet alone, and the engine's whole step around it, as the model was loaded."""
    return {str(rows): _tick(subject, subject.model, rows) for rows in subject.rows}


def ticks_channels_last(subject: Subject) -> dict[str, Any]:
    """The same with NHWC weights and inputs. The weights are put back as they were."""
    unet = subject.model.unet
    try:
        unet.to(memory_format=torch.channels_last)
        return {str(rows): _forward(subject, unet, rows, channels_last=True) for rows in subject.rows}
    finally:
        unet.to(memory_format=torch.contiguous_format)


def ticks_compiled(subject: Subject) -> dict[str, Any]:
    """As `ticks`, compiled. Sizes that are not compiled yet take minutes, so the ones in use come first."""
    model = replace(subject.model, unet=subject.compiled_unet)
    figures: dict[str, Any] = {}
    for rows in sorted(subject.rows, key=lambda rows: abs(rows - ENGINE_ROWS)):
        try:
            figures[str(rows)] = _tick(subject, model, rows)
        except Exception as error:  # dynamo wraps the box's TimeoutError; what was measured before is kept
            figures[str(rows)] = f"failed: {type(error).__name__}"
            break
    return figures


def vae(subject: Subject) -> dict[str, Any]:
    """Decoding one picture and four, in both memory layouts."""
    network = subject.model.vae
    figures = {f"batch {n} contiguous": _decode(subject, network.decode, n) for n in (1, 4)}
    try:
        network.to(memory_format=torch.channels_last)
        figures |= {f"batch {n} channels last": _decode(subject, network.decode, n) for n in (1, 4)}
    finally:
        network.to(memory_format=torch.contiguous_format)
    return figures | {"forecast ms": FORECAST_VAE_MS["eager"]}


def vae_compiled(subject: Subject) -> dict[str, Any]:
    decode = subject.compiled(subject.model.vae.decode)
    return {f"batch {n}": _decode(subject, decode, n) for n in (1, 4)} | {"forecast ms": FORECAST_VAE_MS["compiled"]}


def attention(subject: Subject) -> dict[str, Any]:
    """torch's backends on the largest self-attention, native and padded heads; what loading chose."""
    config, model = subject.model.unet.config, subject.model
    heads, tokens = config.attention_head_dim, config.sample_size**2
    width = config.block_out_channels[0] // heads
    shape = (ENGINE_ROWS, heads, tokens, width)
    query, key, value = (torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(3))
    figures: dict[str, Any] = {"shape": list(shape)}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        for padded in (width, 64):
            operands = [pad(operand, (0, padded - width)) for operand in (query, key, value)]
            figures[f"{backend.name.lower()} {padded}"] = _sdpa(backend, operands, 1 / math.sqrt(width), model.device)
    choice = model.attention
    return figures | {"chosen": choice.chosen, "unet ms": dict(choice.milliseconds), "reason": choice.reason}


def invariance(subject: Subject) -> dict[str, Any]:
    """At one batch size: do a row's bits change with what its neighbours hold, or with its place?"""
    unet, device, dtype = subject.model.unet, subject.model.device, subject.model.dtype
    rows = max(2, min(ENGINE_ROWS, max(subject.rows)))
    inputs = sample_inputs(unet, rows, device, dtype)
    strangers = {name: _with_other_neighbours(value) for name, value in inputs.items()}
    turned = {name: value.flip(0) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with torch.inference_mode():
        first, other, flipped = (unet(**given)[0] for given in (inputs, strangers, turned))
        again = unet(**inputs)[0]
    return {
        "rows": rows,
        "same call twice": torch.equal(first, again),
        "other neighbours": torch.equal(first[0], other[0]),
        "other place": torch.equal(first, flipped.flip(0)),
    }


def engine(subject: Subject) -> dict[str, Any]:
    """Images per second of the whole engine, pictures encoded, as the model was loaded."""
    return {f"{steps} steps": _engine_speed(subject, subject.model, steps) for steps in subject.steps}


def engine_compiled(subject: Subject) -> dict[str, Any]:
    """The same with the UNet compiled for one padded size."""
    model = replace(subject.model, unet=subject.compiled_unet)
    return {f"{steps} steps": _engine_speed(subject, model, steps) for steps in subject.steps}


def diffusers_eager(subject: Subject) -> dict[str, Any]:
    """diffusers' pipeline as it comes, one picture and eight a call."""
    return {
        f"batch {batch}, {steps} steps": _pipeline_speed(subject, batch, steps)
        for batch in (1, PIPELINE_BATCH)
        for steps in subject.steps
    }


def diffusers_compiled_1(subject: Subject) -> dict[str, Any]:
    """The pipeline with its UNet compiled and channels last, as diffusers' own guide advises."""
    return _compiled_pipeline_speed(subject, 1)


def diffusers_compiled_8(subject: Subject) -> dict[str, Any]:
    return _compiled_pipeline_speed(subject, PIPELINE_BATCH)


def _compiled_pipeline_speed(subject: Subject, batch: int) -> dict[str, Any]:
    pipeline = subject.pipeline.diffusers
    plain = pipeline.unet
    try:
        pipeline.unet = subject.compiled(plain.to(memory_format=torch.channels_last))
        return {f"{steps} steps": _pipeline_speed(subject, batch, steps) for steps in subject.steps}
    finally:
        pipeline.unet = plain.to(memory_format=torch.contiguous_format)


def _tick(subject: Subject, model: LoadedModel, rows: int) -> dict[str, Any]:
    figures = _forward(subject, model.unet, rows)
    longest = 64
    engine = Engine([model], _ignore, max_rows=rows, padded_sizes=(rows,))
    try:
        for one in subject.requests(rows // 2, longest):
            engine.submit(one)
        tick = median_ms(engine.step, model.device, repeats=10)
    finally:
        engine.close()
    return figures | {"tick_ms": _r(tick)}


def _forward(subject: Subject, unet: Any, rows: int, *, channels_last: bool = False) -> dict[str, Any]:
    device = subject.model.device
    inputs = sample_inputs(subject.model.unet, rows, device, subject.model.dtype)
    if channels_last:
        inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        milliseconds = median_ms(lambda: unet(**inputs), device)
    tflops = rows * subject.architecture.unet_gflop / milliseconds
    return {
        "unet_ms": _r(milliseconds),
        "ms_per_row": _r(milliseconds / rows),
        "tflops": _r(tflops),
        "share": subject.share(tflops),
        "forecast_ms": FORECAST_UNET_MS.get(rows),
    }


def _decode(subject: Subject, decode: Callable[..., Any], batch: int) -> dict[str, Any]:
    side = subject.model.unet.config.sample_size
    latents = torch.randn(
        (batch, subject.model.channels, side, side), device=subject.model.device, dtype=subject.model.dtype
    )
    with torch.inference_mode():
        milliseconds = median_ms(lambda: decode(latents, return_dict=False), subject.model.device)
    tflops = batch * subject.architecture.vae_gflop / milliseconds
    return {"ms": _r(milliseconds), "ms_per_image": _r(milliseconds / batch), "share": subject.share(tflops)}


def _sdpa(backend: SDPBackend, operands: Sequence[torch.Tensor], scale: float, device: torch.device) -> float | str:
    try:
        query, key, value = operands
        with sdpa_kernel(backend), torch.inference_mode():
            return _r(median_ms(lambda: scaled_dot_product_attention(query, key, value, scale=scale), device))
    except RuntimeError as error:
        return f"not available: {str(error).splitlines()[0][:80]}"


def _with_other_neighbours(value: Any) -> Any:
    """`value` with every row but the first replaced."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.cat((value[:1], (value[1:] * 0.5).flip(0)))


def _engine_speed(subject: Subject, model: LoadedModel, steps: int) -> dict[str, Any]:
    options: dict[str, Any] = {"max_rows": ENGINE_ROWS, "padded_sizes": (ENGINE_ROWS,), "decode_batch": 4}
    serve_with_engine(model, subject.requests(ENGINE_ROWS // 2, 2), **options)
    return _speed(serve_with_engine(model, subject.requests(subject.images, steps), **options), steps)


def _pipeline_speed(subject: Subject, batch: int, steps: int) -> dict[str, Any]:
    count = min(subject.images, 4 * batch)
    requests = subject.requests(count, steps)
    groups = [list(range(start, min(start + batch, count))) for start in range(0, count, batch)]
    subject.pipeline.serve(subject.requests(batch, 2), [list(range(batch))])
    return _speed(subject.pipeline.serve(requests, groups), steps)


def _speed(outcome: Outcome, steps: int) -> dict[str, Any]:
    return {
        "images_per_second": round(len(outcome.latencies) / outcome.seconds, 3),
        "images": len(outcome.latencies),
        "seconds": round(outcome.seconds, 3),
        "forecast": FORECAST_IMAGES_PER_SECOND.get(steps),
    }


def _ignore(event: Event) -> None:
    pass


def _r(value: float) -> float:
    return round(value, 3)


# In the order of what they tell per minute; compiling comes last, because it may use up the budget.
PARTS: dict[str, Part] = {
    "gemm": Part(gemm, 60),
    "ticks": Part(ticks, 90),
    "vae": Part(vae, 60),
    "engine": Part(engine, 120),
    "diffusers_eager": Part(diffusers_eager, 150),
    "ticks_channels_last": Part(ticks_channels_last, 60),
    "attention": Part(attention, 90),
    "invariance": Part(invariance, 60),
    "diffusers_compiled_1": Part(diffusers_compiled_1, 240),
    "engine_compiled": Part(engine_compiled, 240),
    "diffusers_compiled_8": Part(diffusers_compiled_8, 240),
    "ticks_compiled": Part(ticks_compiled, 600),
    "vae_compiled": Part(vae_compiled, 240),
}
