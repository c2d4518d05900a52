"""Denoises many rows with one UNet call: packed guidance, one timestep per row, padded batch sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.conditioning.controlnet import CallSlot, compute_residuals
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import pad, padded_size
from deployments.engine.row import Row
from deployments.engine.sampling.latents import advance, blend, draw_noise, scale_model_input


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step. `scaled` and `out` [B, C, h, w] are the model's inputs and guided answers, for previews.

    `control_rows` counts the rows that ControlNets ran on, for each net separately.
    """

    scaled: Tensor
    out: Tensor
    unet_rows: int
    padded_rows: int
    control_rows: int


@torch.inference_mode()
def denoise_step(model: LoadedModel, rows: list[Row], sizes: tuple[int, ...]) -> StepResult:
    """Advances every row, all of one bucket, by one evaluation."""
    states = torch.stack([row.state for row in rows])
    schedules, steps = [row.schedule for row in rows], [row.step for row in rows]
    scaled = scale_model_input(states, schedules, steps)
    guided = [i for i, row in enumerate(rows) if row.negative is not None]
    unet_rows = len(rows) + len(guided)
    padded = padded_size(unet_rows, sizes)
    order = [*range(len(rows)), *guided]
    places = [
        CallSlot(index, rows[owner].controls, rows[owner].step, len(rows[owner].schedule), prompted=index < len(rows))
        for index, owner in enumerate(order)
    ]
    answers = _predict(model, rows, order, places, scaled, padded, sizes)
    out = _guide(answers[: len(rows)], answers[len(rows) : unet_rows], rows, guided)
    coefficients = torch.stack([s.coefficients[i] for s, i in zip(schedules, steps, strict=True)]).to(states)
    states = blend(
        advance(states, out, _draw_noise(rows, states), coefficients), schedules, steps, [r.blend for r in rows]
    )
    for row, state in zip(rows, states, strict=True):
        row.state = state
        row.step += 1
        row.noise = None
    control_rows = sum(place.active_controls for place in places)
    return StepResult(scaled, out, unet_rows, padded, control_rows)


def _predict(
    model: LoadedModel,
    rows: list[Row],
    order: list[int],
    places: list[CallSlot],
    scaled: Tensor,
    padded: int,
    sizes: tuple[int, ...],
) -> Tensor:
    """Returns the UNet's answers [padded, C, h, w] in fp32: every row with its prompt, then the guided ones without.

    `order` maps each slot of the call to its row.
    """
    timesteps = torch.stack([row.schedule.timesteps[row.step] for row in rows]).to(scaled.device)
    prompts = [row.prompt for row in rows] + [negative for row in rows if (negative := row.negative) is not None]
    latents, time = pad(scaled[order], padded).to(model.dtype), pad(timesteps[order], padded)
    sample = _append_channels(latents, [rows[owner] for owner in order])
    guidance = _build_guidance_inputs(model, [rows[owner] for owner in order], padded, latents)
    with model.attention_cache.substitute(prompts, max(map(len, prompts)), padded) as context:
        extra = compute_residuals(places, latents, time, context, sizes)
        inputs = {"encoder_hidden_states": context, **guidance, **extra}
        answer: Tensor = model.unet(sample, time, **inputs, return_dict=False)[0]
    return answer.float()


def _build_guidance_inputs(model: LoadedModel, rows: list[Row], padded: int, like: Tensor) -> dict[str, Tensor]:
    """Returns the embedded guidance scales, for a UNet that takes them; zeros, its neutral input, for other rows."""
    if model.guidance_width is None:
        return {}
    nothing = like.new_zeros(model.guidance_width)
    scales = torch.stack([nothing if row.guidance is None else row.guidance.to(like) for row in rows])
    return {"timestep_cond": pad(scales, padded)}


def _append_channels(latents: Tensor, rows: list[Row]) -> Tensor:
    """Appends the extra channels that an inpainting checkpoint sees to `latents`. All rows have them, or none has."""
    channels = [row.channels for row in rows if row.channels is not None]
    if not channels:
        return latents
    return torch.cat((latents, pad(torch.stack(channels), len(latents)).to(latents)), dim=1)


def _guide(prompted: Tensor, unprompted: Tensor, rows: list[Row], guided: list[int]) -> Tensor:
    """Applies classifier-free guidance (Ho and Salimans, 2022, equation 6) to the rows that ask for it."""
    if not guided:
        return prompted
    scales = [rows[i].request.params.guidance_scale for i in guided]
    scale = prompted.new_tensor(scales).view(-1, 1, 1, 1)
    out = prompted.clone()
    out[guided] = unprompted + scale * (prompted[guided] - unprompted)
    return out


def _draw_noise(rows: list[Row], like: Tensor) -> Tensor:
    """Returns fresh noise [B, C, h, w] from each row's own generator; zeros for rows whose sampler draws none now."""
    shape = rows[0].state.shape[1:]
    for row in rows:
        if row.noise is None:
            drawn = row.schedule.draws[row.step]
            row.noise = draw_noise(row.generator, *shape) if drawn else torch.zeros(shape)
    return torch.stack([noise for row in rows if (noise := row.noise) is not None]).to(like)
