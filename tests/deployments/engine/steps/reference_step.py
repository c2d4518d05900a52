"""The plainest step of many rows: gathers everything anew from the rows themselves, and keeps nothing between calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deployments.engine.conditioning.cross_attention import EncodedPrompt
from deployments.engine.conditioning.prompt_encoder import repeat_to
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import padded_size
from deployments.engine.row import Row
from deployments.engine.sampling.latents import advance, draw_noise


@torch.inference_mode()
def step_rows(model: LoadedModel, rows: Sequence[Row], sizes: tuple[int, ...]) -> None:
    """Advances rows that are in no slot by one evaluation, in one UNet call."""
    guided = [i for i, row in enumerate(rows) if row.is_guided]
    order = [*range(len(rows)), *guided]
    padded = padded_size(len(order), sizes)
    states = torch.stack([row.state for row in rows])
    scaled = states[:, 0] * _column([float(row.schedule.input_scale[row.step]) for row in rows])
    time = torch.stack([row.schedule.timesteps[row.step] for row in rows])
    prompts = [row.prompt for row in rows] + [_negative(rows[i]) for i in guided]
    tokens = max(map(len, prompts))
    latents, times = pad(scaled[order], padded), pad(time[order], padded)
    context = pad(torch.stack([repeat_to(prompt.embedding, tokens) for prompt in prompts]), padded)
    sample = latents
    if model.inpaints_only:
        sample = torch.cat((latents, pad(torch.stack([_channels(rows[i]) for i in order]), padded)), 1)
    answers = model.unet(
        sample,
        times,
        encoder_hidden_states=pad(torch.stack([repeat_to(prompt.keys, tokens) for prompt in prompts]), padded),
        **_residuals(rows, order, latents, times, context, sizes),
        return_dict=False,
    )[0]
    out = answers[: len(rows)].clone()
    for entry, i in enumerate(guided, start=len(rows)):
        scale = torch.tensor(rows[i].request.params.guidance_scale)
        out[i] = answers[entry] + scale * (answers[i] - answers[entry])
    noise = [
        draw_noise(row.generator, *row.state.shape[1:]) if row.schedule.draws[row.step] else torch.zeros(out.shape[1:])
        for row in rows
    ]
    coefficients = torch.stack([row.schedule.coefficients[row.step] for row in rows])
    states = advance(states, out, torch.stack(noise), coefficients)
    for row, state in zip(rows, states, strict=True):
        if row.blend is not None:
            signal, level = row.schedule.noised[row.step]
            kept = signal * row.blend.image + level * row.blend.noise
            state[0] = (1 - row.blend.mask) * kept + row.blend.mask * state[0]
        row.state = state.clone()
        row.step += 1


def _residuals(
    rows: Sequence[Row], order: Sequence[int], latents: Tensor, time: Tensor, context: Tensor, sizes: tuple[int, ...]
) -> dict[str, Any]:
    users: dict[Any, list[tuple[int, Any]]] = {}
    for entry, i in enumerate(order):
        for control in rows[i].controls:
            if control.is_active(rows[i].step, len(rows[i].schedule), entry < len(rows)):
                users.setdefault(control.net, []).append((entry, control))
    totals: list[Tensor] = []
    for net, entries in users.items():
        where = [entry for entry, _ in entries]
        padded = padded_size(len(where), sizes)
        down, middle = net.network(
            pad(latents[where], padded),
            pad(time[where], padded),
            encoder_hidden_states=pad(context[where], padded),
            controlnet_cond=pad(torch.stack([control.hint for _, control in entries]), padded),
            return_dict=False,
        )
        for level, answer in enumerate((*down, middle)):
            if len(totals) == level:
                totals.append(torch.zeros(1))
            shape = torch.broadcast_shapes(totals[level].shape[1:], answer.shape[1:])
            total = torch.zeros((len(latents), *shape)) + totals[level]
            for place, (entry, control) in enumerate(entries):
                total[entry] += answer[place] * control.weights(len(down) + 1)[level]
            totals[level] = total
    if not totals:
        return {}
    return {"down_block_additional_residuals": tuple(totals[:-1]), "mid_block_additional_residual": totals[-1]}


def pad(tensor: Tensor, rows: int) -> Tensor:
    """Adds zero rows at the end."""
    return torch.cat((tensor, tensor.new_zeros((rows - len(tensor), *tensor.shape[1:]))))


def _negative(row: Row) -> EncodedPrompt:
    assert row.negative is not None
    return row.negative


def _channels(row: Row) -> Tensor:
    assert row.channels is not None
    return row.channels


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)
