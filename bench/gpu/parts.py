"""The parts of the GPU bench. Each takes the subject and returns plain figures; `bench/gpu/__main__.py` runs them.

`share` is of the matmul ceiling that the part `gemm` measured in this very process, None where it has not run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.engine.contenders import Pipelines, largest_difference
from bench.engine.workload import mixed, text
from bench.gpu.gates import GATED_ROWS
from bench.gpu.loras import engine_loras, loras, loras_captured
from bench.gpu.meters import (
    ENGINE_ROWS,
    FORECAST_CEILING_TFLOPS,
    FORECAST_VAE_MS,
    PIPELINE_BATCH,
    Subject,
    decode_figures,
    engine_speed,
    pipeline_speed,
    rounded,
    serve,
    tick_figures,
    unet_figures,
    with_other_neighbours,
)
from bench.timing import median_ms
from deployments.engine.cuda.networks import CompiledNetwork
from deployments.engine.models.attention import choose_kernels, sample_inputs, served_shapes
from deployments.engine.protocol.request import Request


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
    return {
        "size": size,
        "ms": rounded(milliseconds),
        "tflops": rounded(subject.ceiling),
        "forecast": FORECAST_CEILING_TFLOPS,
    }


def ticks(subject: Subject) -> dict[str, Any]:
    """The UNet alone, and the engine's whole step around it, as the model was loaded."""
    return {str(rows): tick_figures(subject, subject.model, rows) for rows in subject.rows}


def unet_compiled(subject: Subject) -> dict[str, Any]:
    """The UNet compiled once for all sizes, each replayed as a CUDA graph."""
    compiled = CompiledNetwork(subject.model.unet, subject.backend)
    figures: dict[str, Any] = {}
    for rows in sorted(subject.rows, key=lambda rows: (rows not in GATED_ROWS, rows)):
        try:
            figures[str(rows)] = unet_figures(subject, compiled, rows, captured=True)
        except Exception as error:  # dynamo wraps the box's TimeoutError; what was measured before is kept
            figures[str(rows)] = {"failed": type(error).__name__}
            break
    return figures


def vae(subject: Subject) -> dict[str, Any]:
    """Decoding one picture and four, as the model was loaded."""
    return {f"batch {n}": decode_figures(subject, subject.model.vae.decode, n) for n in (1, 4)} | {
        "forecast ms": FORECAST_VAE_MS["eager"]
    }


def vae_compiled(subject: Subject) -> dict[str, Any]:
    decode = CompiledNetwork(subject.model.vae.decode, subject.backend)
    return {f"batch {n}": decode_figures(subject, decode, n) for n in (1, 4)} | {
        "forecast ms": FORECAST_VAE_MS["compiled"]
    }


def attention(subject: Subject) -> dict[str, Any]:
    """Every kernel on every shape of the UNet's layers, in milliseconds, and which is chosen when a model is loaded."""
    model = subject.model
    shapes = served_shapes(model.unet, model.device, model.dtype)
    choice = choose_kernels(shapes, ENGINE_ROWS, model.device, model.dtype, partial(median_ms, device=model.device))
    return {
        "x".join(map(str, shape)): {"chosen": choice.kernels[shape]}
        | {name: rounded(ms) for name, ms in choice.milliseconds[shape].items()}
        for shape in shapes
    }


def invariance(subject: Subject) -> dict[str, Any]:
    """At one batch size: do a row's bits change with what its neighbours hold, or with its place?"""
    unet, device, dtype = subject.model.unet, subject.model.device, subject.model.dtype
    rows = max(2, min(ENGINE_ROWS, max(subject.rows)))
    inputs = sample_inputs(unet, rows, device, dtype)
    strangers = {name: with_other_neighbours(value) for name, value in inputs.items()}
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
    return {f"{steps} steps": engine_speed(subject, subject.model, steps) for steps in subject.steps}


def engine_compiled(subject: Subject) -> dict[str, Any]:
    """The same with the networks compiled, and which of them are."""
    model = subject.compiled_model
    speeds = {f"{steps} steps": engine_speed(subject, model, steps) for steps in subject.steps}
    return {"compiled": ", ".join(model.compiled)} | speeds


def mixed_kinds(subject: Subject) -> dict[str, Any]:
    """The engine and the pipelines one by one with requests of every kind. Half precision rounds too much for a limit
    on the difference of their pictures: it is only told.
    """
    model = subject.controlled
    pipelines = Pipelines(subject.folder, model)
    for repeat in range(2):  # the first one warms up
        requests = mixed(model.spec, subject.images, repeat, steps=subject.steps if repeat else subject.steps[:1])
        ours = serve(subject, model, requests)
        theirs = pipelines.one_by_one(requests)
    return {
        name: {"images_per_second": rounded(len(requests) / outcome.seconds), "unet_calls": outcome.unet_calls}
        for name, outcome in (("engine", ours), ("one_by_one", theirs))
    } | {"ratio": rounded(theirs.seconds / ours.seconds), "largest_difference": largest_difference(ours, theirs)}


def like_rows(subject: Subject) -> dict[str, Any]:
    """Requests of several step counts, samplers and guidances: all at once, and as a server has to that shares steps
    among rows of one sampler and one guidance alone.
    """
    model = subject.model
    requests = text(model.spec, subject.images, steps=subject.steps)
    groups: dict[tuple[Any, float], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.params.sampler, request.params.guidance_scale), []).append(request)
    serve(subject, model, requests[:ENGINE_ROWS])
    ours = serve(subject, model, requests).seconds
    theirs = sum(serve(subject, model, group).seconds for group in groups.values())
    return {
        "images_per_second": rounded(len(requests) / ours),
        "one sampler and guidance": rounded(len(requests) / theirs),
        "groups": len(groups),
        "ratio": rounded(theirs / ours),
    }


def diffusers_eager(subject: Subject) -> dict[str, Any]:
    """diffusers' pipeline as it comes, one picture and eight a call."""
    return {
        f"batch {batch}, {steps} steps": pipeline_speed(subject, batch, steps)
        for batch in (1, PIPELINE_BATCH)
        for steps in subject.steps
    }


def diffusers_compiled_1(subject: Subject) -> dict[str, Any]:
    """The pipeline with its UNet compiled and channels last, as diffusers' own guide advises."""
    return _compiled_pipeline_speed(subject, 1)


def diffusers_compiled_8(subject: Subject) -> dict[str, Any]:
    return _compiled_pipeline_speed(subject, PIPELINE_BATCH)


def _compiled_pipeline_speed(subject: Subject, batch: int) -> dict[str, Any]:
    pipeline = subject.pipelines.diffusers
    plain = pipeline.unet
    try:
        pipeline.unet = subject.compiled(plain.to(memory_format=torch.channels_last))
        return {f"{steps} steps": pipeline_speed(subject, batch, steps) for steps in subject.steps}
    finally:
        pipeline.unet = plain.to(memory_format=torch.contiguous_format)


MIXED = "mixed"

# In the order of what they tell per minute; compiling comes last, because it may use up the budget.
PARTS: dict[str, Part] = {
    "gemm": Part(gemm, 60),
    "ticks": Part(ticks, 60),
    "engine": Part(engine, 90),
    "diffusers_eager": Part(diffusers_eager, 120),
    "loras": Part(loras, 60),
    "engine_loras": Part(engine_loras, 60),
    "like_rows": Part(like_rows, 60),
    "vae": Part(vae, 30),
    "attention": Part(attention, 30),
    "invariance": Part(invariance, 30),
    "loras_captured": Part(loras_captured, 60),
    "unet_compiled": Part(unet_compiled, 180),
    "engine_compiled": Part(engine_compiled, 240),
    "diffusers_compiled_8": Part(diffusers_compiled_8, 180),
    "diffusers_compiled_1": Part(diffusers_compiled_1, 120),
    "vae_compiled": Part(vae_compiled, 120),
    MIXED: Part(mixed_kinds, 120),
}
