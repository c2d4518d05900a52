"""Latents, their sampler's memory, and the update that moves them."""

import pytest
import torch

from deployments.engine.sampling.latents import STATE_SLOTS, advance, draw_noise, initial_state, predict_original
from deployments.engine.sampling.samplers import SAMPLERS, DiffusionSchedulerFactory, Schedule

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


def test_a_seed_means_the_draw_that_diffusers_makes() -> None:
    ours = draw_noise(torch.Generator().manual_seed(3), 4, 8, 6)
    theirs = torch.randn((1, 4, 8, 6), generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours, theirs[0])


def run_rows(schedules: list[Schedule], seeds: list[int]) -> list[torch.Tensor]:
    """All rows advanced together, step by step; rows that are done leave."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    states = [
        initial_state(draw_noise(generator, 4, 4, 4) * schedule.init_noise_sigma)
        for generator, schedule in zip(generators, schedules, strict=True)
    ]
    for step in range(max(map(len, schedules))):
        live = [i for i, schedule in enumerate(schedules) if step < len(schedule)]
        scaled = torch.stack([states[i][0] * schedules[i].input_scale[step] for i in live])
        noise = [draw_noise(generators[i], 4, 4, 4) if schedules[i].draws[step] else torch.zeros(4, 4, 4) for i in live]
        coefficients = torch.stack([schedules[i].coefficients[step] for i in live])
        moved = advance(
            torch.stack([states[i] for i in live]), torch.tanh(scaled + 0.1), torch.stack(noise), coefficients
        )
        for i, state in zip(live, moved, strict=True):
            states[i] = state
    return [state[0] for state in states]


def test_rows_of_all_samplers_advance_together_as_each_does_alone() -> None:
    factory = DiffusionSchedulerFactory(SD15)
    schedules = [factory.schedule(name, 5 + i) for i, name in enumerate(SAMPLERS)]
    together = run_rows(schedules, list(range(len(schedules))))
    for seed, (schedule, crowd) in enumerate(zip(schedules, together, strict=True)):
        (alone,) = run_rows([schedule], [seed])
        assert torch.equal(crowd, alone), schedule.sampler


def test_the_memory_holds_the_past_in_its_order() -> None:
    state = initial_state(torch.full((1, 1, 1), 1.0))
    assert state.shape == (STATE_SLOTS, 1, 1, 1)
    coefficients = torch.zeros(1, 10)
    coefficients[0, 4] = 1.0
    states = state[None]
    for out in (10.0, 20.0, 30.0, 40.0):
        states = advance(states, torch.full((1, 1, 1, 1), out), torch.zeros(1, 1, 1, 1), coefficients)
    assert states.flatten().tolist() == [40.0, 30.0, 20.0, 10.0, 40.0, 30.0, 20.0, 40.0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_shows_the_clean_latents(prediction_type: str) -> None:
    alphas = torch.linspace(0.999, 0.01, 1000)
    clean, noise = torch.randn(4, 8, 8), torch.randn(4, 8, 8)
    signal, scale = alphas[600].sqrt(), (1 - alphas[600]).sqrt()
    out = noise if prediction_type == "epsilon" else signal * noise - scale * clean
    seen = predict_original(signal * clean + scale * noise, out, 600.2, alphas, prediction_type)
    assert torch.allclose(seen, clean, atol=1e-4)
