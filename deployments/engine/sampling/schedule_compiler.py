"""Compiles one run of a diffusers scheduler into a table, by running it on inputs that show every coefficient.

The usual samplers are linear in the latents they are given, the model's outputs and the noise:

    y[i+1] = sum_k A[i,k] x[i-k] + sum_k B[i,k] out[i-k] + Y[i] y[i] + C[i] noise

x[i] is the unscaled latents that step i is given, out[i] the model's output for input_scale[i] * x[i], y[i] what the
step before answered. So the scheduler is probed with latents of many pixels. Every x[i] and out[i] has a pixel of its
own in which it is 1 and all others 0: what the scheduler answers there is the coefficient. Feeding fresh x[i], instead
of the answers, is what tells x[i] from y[i], which a trajectory alone does not. Further pixels hold random numbers; the
finished table must reproduce them, which fails for any scheduler that is not linear.
"""

import inspect
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deployments.engine.protocol.sampler_names import SamplerNotLinear

X_TERMS, OUT_TERMS = 4, 4

# Coefficients are of the order of 1 to 100 and probing is done in float64, so what is real stands far above this.
RESIDUAL = 1e-9
# Some schedulers cast latents or noise to float32 on the way: random numbers come back with its precision.
WITNESS_ERROR = 1e-5

_WITNESSES = 32
# Half of the witnesses are this much larger than latents are: a scheduler that clips far out must not pass.
_FAR = 1e4
_SEED = 0

# A diffusers scheduler; the library publishes no types for them.
Scheduler = Any


@dataclass(frozen=True, eq=False)
class Schedule:
    """The table of one sampler at one step count: everything needed to advance a row, n evaluations long.

    `sampler` is the canonical name and `num_inference_steps` the count as asked for. `start` is the index of the first
    evaluation within diffusers' own list: 0 for text-to-image, more where image-to-image skips some.
    `timesteps` [n] fp32 are the model's, fractional for some samplers. The model's input is the latents times
    `input_scale[i]` [n] fp32. `coefficients` [n, X_TERMS + OUT_TERMS + 2] fp32 are those of x[i], x[i-1], ..., out[i],
    out[i-1], ..., y[i], noise.
    Where `draws[i]`, step i takes one latent-shaped normal draw from the row's generator, even if its coefficient is 0.
    A text-to-image row starts from `init_noise_sigma` times a draw; an image-to-image row from
    `noise_signal` * latents + `noise_scale` * a draw. `noised` [n, 2] are the same two after each evaluation: what an
    inpaint row keeps is put back as that much of its latents and its first draw; (1, 0) after the last.
    """

    sampler: str
    num_inference_steps: int
    start: int
    timesteps: Tensor
    input_scale: Tensor
    coefficients: Tensor
    draws: tuple[bool, ...]
    init_noise_sigma: float
    noise_signal: float
    noise_scale: float
    noised: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def compile_schedule(
    sampler: str, scheduler: Scheduler, num_inference_steps: int, start: int | None = None
) -> Schedule:
    """Returns the table of a fresh `scheduler` that has `num_inference_steps` set.

    It starts with evaluation `start`, None for text-to-image. The scheduler is left as it was. Raises SamplerNotLinear
    if no table of this form reproduces it.
    """
    timesteps = scheduler.timesteps[start or 0 :]
    signal, scale = _measure_initial_noise(scheduler, start)
    inputs, outputs = _build_probes(len(timesteps))
    trace = _run(scheduler, start, inputs, outputs)
    silence = _run(scheduler, start, 0 * inputs, 0 * outputs) if any(trace.draws) else None
    table = _fit(trace.answers - silence.answers if silence else trace.answers)
    if silence:
        table[:, -1] = _fit_noise_coefficients(silence, table[:, -2:-1])
    _verify(table, inputs, outputs, trace)
    return Schedule(
        sampler=sampler,
        num_inference_steps=num_inference_steps,
        start=start or 0,
        timesteps=timesteps.to(torch.float32),
        input_scale=trace.input_scale.to(torch.float32),
        coefficients=table.to(torch.float32),
        draws=trace.draws,
        init_noise_sigma=float(scheduler.init_noise_sigma),
        noise_signal=signal,
        noise_scale=scale,
        noised=trace.noised.to(torch.float32),
    )


@dataclass(frozen=True, eq=False)
class _Trace:
    """A recorded run: the scheduler's `answers` [n, pixels], and the `noise` [n, pixels] it drew, 0 where it drew none.

    `noised` [n, 2] is what its `add_noise` gave after each step, for the next timestep.
    """

    answers: Tensor
    noise: Tensor
    draws: tuple[bool, ...]
    input_scale: Tensor
    noised: Tensor


def _build_probes(n: int) -> tuple[Tensor, Tensor]:
    """Returns inputs and outputs for n steps, each [n, 2n + _WITNESSES]."""
    one, none = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    # Drawn as float32: then schedulers that cast to it lose nothing of them.
    random = torch.randn((2, n, _WITNESSES), generator=torch.Generator().manual_seed(_SEED)).double()
    random *= _witness_scales()
    return torch.cat((one, none, random[0]), 1), torch.cat((none, one, random[1]), 1)


def _witness_scales() -> Tensor:
    """Returns the magnitude of the numbers in each witness, [_WITNESSES]."""
    return torch.tensor([1.0, _FAR], dtype=torch.float64).repeat_interleave(_WITNESSES // 2)


def begin(scheduler: Scheduler, start: int | None) -> None:
    """Sets where the scheduler's run begins, as diffusers' pipelines for images do.

    Those for text-to-image do not (None): then the scheduler looks its first timestep up, and if that is in the list
    twice, finds the second.
    """
    if start is not None and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)


def step_arguments(scheduler: Scheduler, generator: torch.Generator) -> dict[str, Any]:
    """Returns the extra arguments that diffusers' pipelines pass to `scheduler.step`."""
    takes = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in (("generator", generator), ("eta", 0.0)) if name in takes}


def scale_input(scheduler: Scheduler, latents: Tensor, timestep: Tensor) -> Tensor:
    """Returns the model's input; schedulers that never scale need not have a method for it."""
    if not hasattr(scheduler, "scale_model_input"):
        return latents
    scaled: Tensor = scheduler.scale_model_input(latents, timestep)
    return scaled


def _measure_initial_noise(scheduler: Scheduler, start: int | None) -> tuple[float, float]:
    """Returns the shares of the latents and of the noise at the start of an image-to-image row."""
    scheduler = deepcopy(scheduler)
    begin(scheduler, start)
    signal, scale = _mix_noise(scheduler, scheduler.timesteps[start or 0 :][:1]).tolist()
    return signal, scale


def _mix_noise(scheduler: Scheduler, timestep: Tensor) -> Tensor:
    """Returns [2]: how much signal and how much noise `scheduler.add_noise` mixes, now and at `timestep` [1].

    (1, 0) if it has no such method: then nothing can start from an image with it.
    """
    if not hasattr(scheduler, "add_noise"):
        return torch.tensor([1.0, 0.0], dtype=torch.float64)
    latents, noise = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 1, 2)
    mixed: Tensor = scheduler.add_noise(latents, noise, timestep)
    return mixed.flatten()


def _run(scheduler: Scheduler, start: int | None, inputs: Tensor, outputs: Tensor) -> _Trace:
    """Runs a copy of `scheduler` from evaluation `start` on, with these inputs and outputs instead of a model's."""
    scheduler = deepcopy(scheduler)
    begin(scheduler, start)
    generator = torch.Generator().manual_seed(_SEED)
    arguments = step_arguments(scheduler, generator)
    one = torch.ones((1, 1, 1, 1), dtype=torch.float64)
    answers, noise, scales = torch.zeros_like(inputs), torch.zeros_like(inputs), torch.zeros(len(inputs))
    noised = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(len(inputs), 1)
    draws = []
    timesteps = scheduler.timesteps[start or 0 :]
    for i, t in enumerate(timesteps):
        before = generator.get_state()
        scales[i] = scale_input(scheduler, one, t).item()
        x, out = inputs[i].view(1, 1, 1, -1), outputs[i].view(1, 1, 1, -1)
        answers[i] = scheduler.step(out, t, x, **arguments, return_dict=False)[0].flatten()
        draws.append(not torch.equal(before, generator.get_state()))
        if draws[-1]:
            noise[i] = _recover_draw(before, generator.get_state(), x.shape).flatten()
        if i + 1 < len(timesteps):
            noised[i] = _mix_noise(scheduler, timesteps[i + 1 : i + 2])
    return _Trace(answers, noise, tuple(draws), scales, noised)


def _recover_draw(before: Tensor, after: Tensor, shape: torch.Size) -> Tensor:
    """Returns the one normal draw that took a generator from state `before` to `after`."""
    for dtype in (torch.float64, torch.float32):
        twin = torch.Generator()
        twin.set_state(before)
        draw = torch.randn(shape, generator=twin, dtype=dtype)
        if torch.equal(twin.get_state(), after):
            return draw.double()
    raise SamplerNotLinear("sampler", "it draws more noise in a step than one for each latent")


def _fit(answers: Tensor) -> Tensor:
    """Returns the table [n, X_TERMS + OUT_TERMS + 2], its noise column 0, that explains noiseless `answers` to the
    probes.
    """
    n = len(answers)
    basis = answers[:, : 2 * n]
    previous = _delay_rows(basis, 1)
    age = torch.arange(n)[:, None] - torch.arange(n)
    inside = torch.cat(((age >= 0) & (age < X_TERMS), (age >= 0) & (age < OUT_TERMS)), 1)
    y = _fit_answer_coefficients(basis * ~inside, previous * ~inside)
    basis = basis - y * previous
    residual = (basis * ~inside).abs().max()
    if not residual <= RESIDUAL:
        raise SamplerNotLinear("sampler", f"it remembers more than a table can hold ({residual:.1e})")
    x = [_take_diagonal(basis[:, :n], k) for k in range(X_TERMS)]
    out = [_take_diagonal(basis[:, n:], k) for k in range(OUT_TERMS)]
    return torch.cat((torch.stack([*x, *out], 1), y, torch.zeros_like(y)), 1)


def _fit_answer_coefficients(unexplained: Tensor, previous: Tensor) -> Tensor:
    """Returns the coefficients [n, 1] of y[i], from the terms too old to be seen directly: only y[i] can bring those.

    0 where there are none: y[i] is then either absent, or made of terms that the table has anyway.
    """
    needed = unexplained.abs().amax(1, keepdim=True) > RESIDUAL
    projection = (unexplained * previous).sum(1, keepdim=True) / (previous * previous).sum(1, keepdim=True)
    return torch.where(needed, projection, 0.0)


def _fit_noise_coefficients(silence: _Trace, y: Tensor) -> Tensor:
    """Returns the noise coefficients [n], from a run in which all else was zero. `y` [n, 1] are those of y[i]."""
    answers = silence.answers - y * _delay_rows(silence.answers, 1)
    energy = (silence.noise * silence.noise).sum(1)
    return torch.where(energy > 0, (answers * silence.noise).sum(1) / energy, 0.0)


def _verify(table: Tensor, inputs: Tensor, outputs: Tensor, trace: _Trace) -> None:
    """Raises SamplerNotLinear unless the table gives what the scheduler gave, in every pixel of every step."""
    terms = [_delay_rows(inputs, k) for k in range(X_TERMS)] + [_delay_rows(outputs, k) for k in range(OUT_TERMS)]
    terms += [_delay_rows(trace.answers, 1), trace.noise]
    explained = (table[:, :, None] * torch.stack(terms, 1)).sum(1)
    scale = torch.cat((torch.ones(2 * len(inputs), dtype=torch.float64), _witness_scales()))
    error = ((explained - trace.answers) / scale).abs().max() / (trace.answers / scale).abs().max()
    if not error <= WITNESS_ERROR:
        raise SamplerNotLinear("sampler", f"it is not linear ({error:.1e})")


def _delay_rows(rows: Tensor, k: int) -> Tensor:
    """Returns row i - k of `rows` at row i; zeros where there is none."""
    k = min(k, len(rows))
    return torch.cat((torch.zeros_like(rows[:k]), rows[: len(rows) - k]))


def _take_diagonal(square: Tensor, k: int) -> Tensor:
    """Returns square[i, i - k] for every i, [n]; zeros where there is none."""
    missing = min(k, len(square))
    return torch.cat((square.new_zeros(missing), square.diagonal(-missing)))
