"""Denoises many rows with one UNet call: packed guidance, one timestep per row, padded batch sizes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deployments.engine.conditioning.added_conditions import added_conditions
from deployments.engine.conditioning.controlnet import compute_residuals
from deployments.engine.conditioning.cross_attention import AttentionContext
from deployments.engine.cuda.update import guide_and_advance
from deployments.engine.device.streams import copy_to_device
from deployments.engine.models.adaptation import changed_unet
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.request import SHALLOW_WORK
from deployments.engine.row import Row
from deployments.engine.sampling.latents import NEWEST_OUT, draw_noise
from deployments.engine.steps.arena import COEFFICIENTS, GUIDANCE, INPUT_SCALE, NOISE, SIGNAL, TIMESTEP, Arena
from deployments.engine.steps.call import StepCall, UNetCall

Step = Callable[[], tuple[Tensor, Tensor]]
"""A step of tensors that stay where they are: returns the model's inputs and guided answers."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step. `scaled` and `out` [B, C, h, w] are the model's inputs and guided answers, for previews.

    `whole_rows` and `shallow_rows` are those of the UNet's calls, `control_rows` those that ControlNets ran on, for
    each net separately, and `changed_rows` those that LoRAs have changed.
    """

    scaled: Tensor
    out: Tensor
    whole_rows: int
    shallow_rows: int
    padded_rows: int
    control_rows: int
    changed_rows: int

    @property
    def unet_rows(self) -> int:
        """All rows of the UNet's calls."""
        return self.whole_rows + self.shallow_rows

    @property
    def work(self) -> float:
        """What the UNet's calls were worth, in rows of whole ones."""
        return self.whole_rows + SHALLOW_WORK * self.shallow_rows


@torch.inference_mode()
def denoise_step(
    model: LoadedModel, arena: Arena, call: StepCall, rows: Sequence[Row], captured: Step | None = None
) -> StepResult:
    """Advances every row of `call`, in its order, by one evaluation. If it raises, none has advanced.

    `captured` does the same as `run_step` for this call, in one go.
    """
    _draw_noise(arena, call, rows)
    if captured is not None:
        answers = captured()
    else:
        with _exact_calls(model) if call.is_exact else nullcontext():
            answers = run_step(model, arena, call)
    scaled, out = (answer[: len(rows)] for answer in answers)
    for row in rows:
        row.step += 1
        row.noise = None
    return StepResult(
        scaled, out, call.whole_rows, call.shallow_rows, call.padded_rows, call.control_rows, call.changed_rows
    )


def run_step(model: LoadedModel, arena: Arena, call: StepCall) -> tuple[Tensor, Tensor]:
    """Advances the slots of `call` by one evaluation, and returns the model's inputs and guided answers, [R, C, h, w].

    A function of tensors on the device alone, always the same operations for a shape: nothing is copied to or from the
    host, and no value decides what runs. What it changes, it changes at its end.
    """
    states, steps = arena.states.index_select(0, call.rows), arena.steps.index_select(0, call.rows)
    table = arena.tables.flatten(0, 1).index_select(0, call.offsets + steps)
    scaled = states[:, 0] * _per_row(table[:, INPUT_SCALE])
    answers = _predict(model, arena, call, scaled, table[:, TIMESTEP])
    states = guide_and_advance(
        states,
        answers,
        call.prompted,
        call.partner,
        table[:, GUIDANCE].contiguous(),
        table[:, COEFFICIENTS:].contiguous(),
        arena.noise.index_select(0, call.rows),
        arena.image.index_select(0, call.rows),
        arena.image_noise.index_select(0, call.rows),
        arena.mask.index_select(0, call.rows),
        table[:, SIGNAL : NOISE + 1].contiguous(),
    )
    arena.states.index_copy_(0, call.rows, states)
    arena.steps.index_copy_(0, call.rows, steps + 1)
    return scaled, states[:, NEWEST_OUT]


@contextmanager
def _exact_calls(model: LoadedModel) -> Iterator[None]:
    """Lets the networks' calls inside the context answer with the same bits at any time, even if they must wait."""
    with ExitStack() as stack:
        for network in model.networks:
            wait: Any = getattr(network, "exact_calls", nullcontext)
            stack.enter_context(wait())
        yield


def _predict(model: LoadedModel, arena: Arena, call: StepCall, scaled: Tensor, timesteps: Tensor) -> Tensor:
    """Returns the UNet's answers to all entries [E, C, h, w]."""
    answers = []
    if call.whole is not None:
        answers.append(_call_whole(model, arena, call, call.whole, scaled, timesteps))
    if call.shallow is not None:
        answers.append(_call_shallow(model, arena, call, call.shallow, scaled, timesteps))
    return answers[0] if len(answers) == 1 else torch.cat(answers)


def _call_whole(
    model: LoadedModel, arena: Arena, call: StepCall, unet: UNetCall, scaled: Tensor, timesteps: Tensor
) -> Tensor:
    latents, time = scaled.index_select(0, unet.owner).to(model.dtype), timesteps.index_select(0, unet.owner)
    added, more = _add_conditions(model, arena, call, unet), _embed_guidance(model, arena, unet)
    if unet.controls:
        embeddings = call.prompts.embeddings.index_select(0, unet.prompts)
        more |= compute_residuals(unet.controls, latents, time, embeddings, added)
    more |= added
    sample, context = _append_channels(arena, unet, latents), _context_of(call, unet)
    with changed_unet(model, unet.updates) as network:
        if not unet.keeps_deep:
            answer: Tensor = network(sample, time, encoder_hidden_states=context, **more, return_dict=False)[0]
            return answer
        assert model.deep_cache is not None
        assert arena.deep is not None
        answer, deep = model.deep_cache.run_whole(sample, time, context, more)
    arena.deep.flatten(0, 1).index_copy_(0, unet.deep, deep)
    return answer


def _call_shallow(
    model: LoadedModel, arena: Arena, call: StepCall, unet: UNetCall, scaled: Tensor, timesteps: Tensor
) -> Tensor:
    assert model.deep_cache is not None
    assert arena.deep is not None
    latents, time = scaled.index_select(0, unet.owner).to(model.dtype), timesteps.index_select(0, unet.owner)
    sample, context = _append_channels(arena, unet, latents), _context_of(call, unet)
    deep = arena.deep.flatten(0, 1).index_select(0, unet.deep)
    more = _embed_guidance(model, arena, unet) | _add_conditions(model, arena, call, unet)
    with changed_unet(model, unet.updates):
        return model.deep_cache.run_shallow(sample, time, context, deep, more)


def _context_of(call: StepCall, unet: UNetCall) -> Tensor | AttentionContext:
    """Returns what cross-attention sees: the prompts' keys [E, tokens, width], and references, if there are any."""
    keys = call.prompts.keys.index_select(0, unet.prompts)
    return keys if unet.references is None else unet.references.beside(keys)


def _embed_guidance(model: LoadedModel, arena: Arena, unet: UNetCall) -> dict[str, Any]:
    """Returns the embedded guidance scales, for a UNet that takes them."""
    if arena.guidance is None:
        return {}
    return {"timestep_cond": arena.guidance.index_select(0, unet.rows).to(model.dtype)}


def _add_conditions(model: LoadedModel, arena: Arena, call: StepCall, unet: UNetCall) -> dict[str, Any]:
    """Returns the pooled texts and the sizes, for networks that take them."""
    if arena.sizes is None:
        return {}
    pooled = call.prompts.pooled.index_select(0, unet.prompts)
    return added_conditions(pooled, arena.sizes.index_select(0, unet.rows).to(model.dtype))


def _append_channels(arena: Arena, unet: UNetCall, latents: Tensor) -> Tensor:
    """Appends what an inpainting checkpoint sees beside the latents."""
    if arena.channels is None:
        return latents
    return torch.cat((latents, arena.channels.index_select(0, unet.rows).to(latents)), dim=1)


def _draw_noise(arena: Arena, call: StepCall, rows: Sequence[Row]) -> None:
    """Draws from the generators of the rows whose samplers draw now, and writes it to the arena in one copy.

    A row keeps what it drew until its step is done. What lies in the slots of the others has a coefficient of 0.
    """
    drawing = [row for row in rows if row.schedule.draws[row.step]]
    if not drawing:
        return
    shape = arena.noise.shape[1:]
    for row in drawing:
        if row.noise is None:
            row.noise = draw_noise(row.generator, *shape)
    drawn = torch.stack([torch.zeros(shape) if row.noise is None else row.noise for row in rows])
    arena.noise.index_copy_(0, call.rows, copy_to_device(drawn, arena.noise.device))


def _per_row(values: Tensor) -> Tensor:
    """Returns [R] as [R, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)
