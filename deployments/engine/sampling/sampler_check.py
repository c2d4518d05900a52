"""Checks that a sampler's table reproduces diffusers: both denoise with a made-up model, and the results must agree."""

import torch
from torch import Tensor

from deployments.engine.protocol.sampler_names import SamplerNotLinear
from deployments.engine.sampling.schedule_compiler import (
    OUT_TERMS,
    X_TERMS,
    Schedule,
    Scheduler,
    begin,
    scale_input,
    step_arguments,
)

# Relative to the largest latent. Rounding in float32 gives a hundredth of this; half a grey level is about 0.002.
AGREEMENT = 1e-4


def compare(schedule: Schedule, scheduler: Scheduler) -> None:
    """Raises SamplerNotLinear unless `schedule` gives what a fresh `scheduler` gives."""
    latents = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    ours = _run_table(schedule, latents, torch.Generator().manual_seed(1))
    scheduler.set_timesteps(schedule.num_inference_steps)
    theirs = _run_diffusers(scheduler, latents, torch.Generator().manual_seed(1))
    error = (ours - theirs).abs().max() / theirs.abs().max()
    if not error <= AGREEMENT:
        raise SamplerNotLinear("sampler", f"its table does not reproduce diffusers ({error:.1e})")


def _run_table(schedule: Schedule, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Runs text-to-image with a made-up model on one row: `noise` [1, C, h, w] in, latents out.

    The plainest reading of a schedule; `latents.py` does the same for many rows at once.
    """
    y = x = schedule.init_noise_sigma * noise
    inputs, outputs = [torch.zeros_like(x)] * X_TERMS, [torch.zeros_like(x)] * OUT_TERMS
    for i, coefficients in enumerate(schedule.coefficients):
        inputs = [x, *inputs[:-1]]
        outputs = [_made_up_model(schedule.input_scale[i] * x), *outputs[:-1]]
        draw = torch.randn(x.shape, generator=generator) if schedule.draws[i] else torch.zeros_like(x)
        terms = torch.stack([*inputs, *outputs, y, draw], -1)
        y = x = terms @ coefficients
    return x


def _run_diffusers(scheduler: Scheduler, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Runs diffusers' scheduler the way `_run_table` runs the table."""
    begin(scheduler, None)
    arguments = step_arguments(scheduler, generator)
    x: Tensor = scheduler.init_noise_sigma * noise
    for t in scheduler.timesteps:
        out = _made_up_model(scale_input(scheduler, x, t))
        x = scheduler.step(out, t, x, **arguments, return_dict=False)[0]
    return x


def _made_up_model(latents: Tensor) -> Tensor:
    """A nonlinear model, so that errors of the sampler do not cancel out."""
    return torch.tanh(latents + 0.1)
