"""The parts of the GPU bench. Each takes the subject and returns plain figures; `bench/gpu/__main__.py` runs them.

`share` is of the matmul ceiling that the part `gemm` measured in this very process, None where it has not run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import pad

from bench.engine.contenders import Pipelines, largest_difference, serve_with_engine
from bench.engine.workload import mixed
from bench.gpu.meters import (
    ENGINE_ROWS,
    FORECAST_CEILING_TFLOPS,
    FORECAST_VAE_MS,
    PIPELINE_BATCH,
    Subject,
    attention_ms,
    decode_figures,
    engine_speed,
    pipeline_speed,
    rounded,
    tick_figures,
    unet_figures,
    with_other_neighbours,
)
from bench.timing import median_ms
from deployments.engine.models.attention import sample_inputs


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


def ticks_channels_last(subject: Subject) -> dict[str, Any]:
    """The same with NHWC weights and inputs. The weights are put back as they were."""
    unet = subject.model.unet
    try:
        unet.to(memory_format=torch.channels_last)
        return {str(rows): unet_figures(subject, unet, rows, channels_last=True) for rows in subject.rows}
    finally:
        unet.to(memory_format=torch.contiguous_format)


def ticks_compiled(subject: Subject) -> dict[str, Any]:
    """As `ticks`, compiled. Sizes that are not compiled yet take minutes, so the ones in use come first."""
    model = replace(subject.model, unet=subject.compiled_unet)
    figures: dict[str, Any] = {}
    for rows in sorted(subject.rows, key=lambda rows: abs(rows - ENGINE_ROWS)):
        try:
            figures[str(rows)] = tick_figures(subject, model, rows)
        except Exception as error:  # dynamo wraps the box's TimeoutError; what was measured before is kept
            figures[str(rows)] = f"failed: {type(error).__name__}"
            break
    return figures


def vae(subject: Subject) -> dict[str, Any]:
    """Decoding one picture and four, in both memory layouts."""
    network = subject.model.vae
    figures = {f"batch {n} contiguous": decode_figures(subject, network.decode, n) for n in (1, 4)}
    try:
        network.to(memory_format=torch.channels_last)
        figures |= {f"batch {n} channels last": decode_figures(subject, network.decode, n) for n in (1, 4)}
    finally:
        network.to(memory_format=torch.contiguous_format)
    return figures | {"forecast ms": FORECAST_VAE_MS["eager"]}


def vae_compiled(subject: Subject) -> dict[str, Any]:
    decode = subject.compiled(subject.model.vae.decode)
    return {f"batch {n}": decode_figures(subject, decode, n) for n in (1, 4)} | {
        "forecast ms": FORECAST_VAE_MS["compiled"]
    }


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
            figures[f"{backend.name.lower()} {padded}"] = attention_ms(
                backend, operands, 1 / math.sqrt(width), model.device
            )
    choice = model.attention
    return figures | {"chosen": choice.chosen, "unet ms": dict(choice.milliseconds), "reason": choice.reason}


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


def mixed_kinds(subject: Subject) -> dict[str, Any]:
    """The engine and the pipelines one by one with requests of every kind. Half precision rounds too much for a limit
    on the difference of their pictures: it is only told.
    """
    model = subject.controlled
    pipelines = Pipelines(subject.folder, model)
    for repeat in range(2):  # the first one warms up
        requests = mixed(model.spec, subject.images, repeat, steps=subject.steps if repeat else subject.steps[:1])
        ours = serve_with_engine(model, requests, max_rows=ENGINE_ROWS, decode_batch=4)
        theirs = pipelines.one_by_one(requests)
    return {
        name: {"images_per_second": rounded(len(requests) / outcome.seconds), "unet_calls": outcome.unet_calls}
        for name, outcome in (("engine", ours), ("one_by_one", theirs))
    } | {"ratio": rounded(theirs.seconds / ours.seconds), "largest_difference": largest_difference(ours, theirs)}


def engine_compiled(subject: Subject) -> dict[str, Any]:
    """The same with the UNet compiled for one padded size."""
    model = replace(subject.model, unet=subject.compiled_unet)
    return {f"{steps} steps": engine_speed(subject, model, steps) for steps in subject.steps}


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
    "ticks": Part(ticks, 90),
    "vae": Part(vae, 60),
    "engine": Part(engine, 120),
    "diffusers_eager": Part(diffusers_eager, 150),
    "ticks_channels_last": Part(ticks_channels_last, 60),
    "attention": Part(attention, 90),
    "invariance": Part(invariance, 60),
    MIXED: Part(mixed_kinds, 180),
    "diffusers_compiled_1": Part(diffusers_compiled_1, 240),
    "engine_compiled": Part(engine_compiled, 240),
    "diffusers_compiled_8": Part(diffusers_compiled_8, 240),
    "ticks_compiled": Part(ticks_compiled, 600),
    "vae_compiled": Part(vae_compiled, 240),
}
