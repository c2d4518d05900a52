"""One UNet call for many rows: packed guidance, one timestep per row, padded batch sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.conditioning.controlnet import CallSlot, residuals
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import pad, padded_size
from deployments.engine.row import Row
from deployments.engine.sampling.latents import advance, blend, draw_noise, model_input


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did: `scaled` and `out` [B, C, h, w] are the model's inputs and guided answers, for previews.

    `control_rows` are those that ControlNets ran on, each net's counted for itself.
    """

    scaled: Tensor
    out: Tensor
    unet_rows: int
    padded_rows: int
    control_rows: int


@torch.inference_mode()
def denoise_step(model: LoadedModel, rows: list[Row], sizes: tuple[int, ...]) -> StepResult:
    """Moves every row, all of one bucket, forward by one evaluation."""
    states = torch.stack([row.state for row in rows])
    schedules, steps = [row.schedule for row in rows], [row.step for row in rows]
    scaled = model_input(states, schedules, steps)
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
    states = blend(advance(states, out, _noise(rows, states), coefficients), schedules, steps, [r.blend for r in rows])
    for row, state in zip(rows, states, strict=True):
        row.state = state
        row.step += 1
        row.noise = None
    control_rows = sum(place.acting for place in places)
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
    """The UNet's answers [padded, C, h, w] in fp32: first every row with its prompt, then the guided ones without.

    `order` says whose row each place of the call is.
    """
    timesteps = torch.stack([row.schedule.timesteps[row.step] for row in rows]).to(scaled.device)
    prompts = [row.prompt for row in rows] + [negative for row in rows if (negative := row.negative) is not None]
    latents, time = pad(scaled[order], padded).to(model.dtype), pad(timesteps[order], padded)
    sample = _beside(latents, [rows[owner] for owner in order])
    told = _told(model, [rows[owner] for owner in order], padded, latents)
    with model.keys.given(prompts, max(map(len, prompts)), padded) as context:
        extra = residuals(places, latents, time, context, sizes)
        answer: Tensor = model.unet(sample, time, encoder_hidden_states=context, **told, **extra, return_dict=False)[0]
    return answer.float()


def _told(model: LoadedModel, rows: list[Row], padded: int, like: Tensor) -> dict[str, Tensor]:
    """The guidance scales, for a UNet that is told them. Zeros, which say nothing to it, for rows that do not tell."""
    if model.guidance_width is None:
        return {}
    nothing = like.new_zeros(model.guidance_width)
    scales = torch.stack([nothing if row.guidance is None else row.guidance.to(like) for row in rows])
    return {"timestep_cond": pad(scales, padded)}


def _beside(latents: Tensor, rows: list[Row]) -> Tensor:
    """`latents` with the further channels that an inpainting checkpoint sees; all rows have them, or none has."""
    channels = [row.channels for row in rows if row.channels is not None]
    if not channels:
        return latents
    return torch.cat((latents, pad(torch.stack(channels), len(latents)).to(latents)), dim=1)


def _guide(prompted: Tensor, unprompted: Tensor, rows: list[Row], guided: list[int]) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, 2022, equation 6) on the rows that ask for it."""
    if not guided:
        return prompted
    scales = [rows[i].request.params.guidance_scale for i in guided]
    scale = prompted.new_tensor(scales).view(-1, 1, 1, 1)
    out = prompted.clone()
    out[guided] = unprompted + scale * (prompted[guided] - unprompted)
    return out


def _noise(rows: list[Row], like: Tensor) -> Tensor:
    """Fresh noise [B, C, h, w] from each row's own generator, zeros for rows whose sampler draws none now."""
    shape = rows[0].state.shape[1:]
    for row in rows:
        if row.noise is None:
            drawn = row.schedule.draws[row.step]
            row.noise = draw_noise(row.generator, *shape) if drawn else torch.zeros(shape)
    return torch.stack([noise for row in rows if (noise := row.noise) is not None]).to(like)
