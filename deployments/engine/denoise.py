"""One UNet call for many rows: packed guidance, one timestep per row, padded batch sizes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deployments.engine.conditioning import repeat_to
from deployments.engine.latents import advance, draw_noise, model_input
from deployments.engine.row import Row


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did: `scaled` and `out` [B, C, h, w] are the model's inputs and guided answers, for previews."""

    scaled: Tensor
    out: Tensor
    unet_rows: int
    padded_rows: int


def padded_size(rows: int, sizes: tuple[int, ...]) -> int:
    """The smallest of the ascending `sizes` that holds `rows`.

    Fixed sizes bound the number of shapes that kernels are chosen and graphs captured for; at one size a row's
    result does not depend on its neighbours.
    """
    return next(size for size in sizes if size >= rows)


@torch.inference_mode()
def denoise_step(unet: Any, rows: list[Row], sizes: tuple[int, ...]) -> StepResult:
    """Moves every row, all of one bucket, forward by one evaluation."""
    states = torch.stack([row.state for row in rows])
    schedules, steps = [row.schedule for row in rows], [row.step for row in rows]
    scaled = model_input(states, schedules, steps)
    guided = [i for i, row in enumerate(rows) if row.negative is not None]
    unet_rows = len(rows) + len(guided)
    padded = padded_size(unet_rows, sizes)
    answers = _predict(unet, rows, guided, scaled, padded)
    out = _guide(answers[: len(rows)], answers[len(rows) : unet_rows], rows, guided)
    coefficients = torch.stack([s.coefficients[i] for s, i in zip(schedules, steps, strict=True)]).to(states)
    states = advance(states, out, _noise(rows, states), coefficients)
    for row, state in zip(rows, states, strict=True):
        row.state = state
        row.step += 1
        row.noise = None
    return StepResult(scaled, out, unet_rows, padded)


def _predict(unet: Any, rows: list[Row], guided: list[int], scaled: Tensor, padded: int) -> Tensor:
    """The UNet's answers [padded, C, h, w] in fp32: first every row with its prompt, then the guided ones without."""
    timesteps = torch.stack([row.schedule.timesteps[row.step] for row in rows]).to(scaled.device)
    embeddings = [row.prompt for row in rows]
    embeddings += [negative for row in rows if (negative := row.negative) is not None]
    tokens = max(len(embedding) for embedding in embeddings)
    sample = _pad(torch.cat((scaled, scaled[guided])), padded)
    context = _pad(torch.stack([repeat_to(embedding, tokens) for embedding in embeddings]), padded)
    time = _pad(torch.cat((timesteps, timesteps[guided])), padded)
    answer: Tensor = unet(sample.to(context.dtype), time, encoder_hidden_states=context, return_dict=False)[0]
    return answer.float()


def _pad(tensor: Tensor, rows: int) -> Tensor:
    """`tensor` with zero rows added at the end; zeros are finite, and what comes of them is dropped."""
    missing = rows - len(tensor)
    return torch.cat((tensor, tensor.new_zeros((missing, *tensor.shape[1:])))) if missing else tensor


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
