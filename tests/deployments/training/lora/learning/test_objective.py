"""The objective is the literature's: noise or v, min-SNR weights, and a rate that warms up."""

import pytest
import torch

from deployments.training.demo.models import make_scheduler
from deployments.training.lora.generators import generator_of
from deployments.training.lora.learning.objective import TrainingNoise
from deployments.training.lora.learning.trainer import learning_rate
from deployments.training.lora.lessons import EncodedPictures
from deployments.training.lora.settings import TrainingSettings

SCHEDULER = make_scheduler()
SIGNAL = SCHEDULER.alphas_cumprod
LATENTS = torch.randn(3, 4, 8, 8)
PICTURES = EncodedPictures(LATENTS, torch.randn(3, 77, 8), torch.empty(3, 0))
STEPS = torch.tensor([10, 500, 990])


def test_noised_latents_are_diffusers_own() -> None:
    rows = TrainingNoise(SIGNAL, False, 0).noise(PICTURES, STEPS, generator_of(1))
    assert torch.allclose(rows.noisy, SCHEDULER.add_noise(LATENTS, rows.wanted, STEPS), atol=1e-6)


def test_v_is_what_diffusers_calls_velocity() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(SCHEDULER.config)
    noise = TrainingNoise(SIGNAL, False, 0).noise(PICTURES, STEPS, generator_of(1)).wanted
    rows = TrainingNoise(SIGNAL, True, 0).noise(PICTURES, STEPS, generator_of(1))
    assert torch.allclose(rows.wanted, scheduler.get_velocity(LATENTS, noise, STEPS), atol=1e-6)


@pytest.mark.parametrize("predicts_v", [False, True])
def test_weights_are_min_snr(predicts_v: bool) -> None:
    weights = TrainingNoise(SIGNAL, predicts_v, 5.0).noise(PICTURES, STEPS, generator_of(1)).weights
    ratio = SIGNAL[STEPS] / (1 - SIGNAL[STEPS])
    expected = torch.minimum(ratio, torch.tensor(5.0)) / (ratio + int(predicts_v))
    assert torch.allclose(weights, expected)
    assert torch.equal(
        TrainingNoise(SIGNAL, predicts_v, 0).noise(PICTURES, STEPS, generator_of(1)).weights, torch.ones(3)
    )


def test_more_of_the_noisy_timesteps_where_that_is_asked() -> None:
    many = torch.zeros(400, 4, 2, 2)
    steps = [
        TrainingNoise(SIGNAL, False, 0, high_share=share).draw(EncodedPictures(many, many, many), generator_of(0)).steps
        for share in (0.0, 1.0)
    ]
    assert steps[1].min() >= 400
    assert 0.3 < (steps[0] < 400).float().mean() < 0.5


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    asked = TrainingSettings(name="a", trigger="a", model_name="a", steps=100, learning_rate=1.0, warmup_steps=9)
    rates = [learning_rate(asked, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] > 0.95
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert learning_rate(asked.model_copy(update={"lr_schedule": "constant"}), 99) == 1.0
