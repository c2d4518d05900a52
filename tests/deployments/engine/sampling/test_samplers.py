"""Laws of the sampler tables: they are diffusers, step for step, and what is not is refused."""

import inspect
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.sampling.samplers import (
    CHECKPOINT,
    OUT_TERMS,
    SAMPLERS,
    X_TERMS,
    DiffusionSchedulerFactory,
    Sampler,
    SamplerNotLinear,
    Schedule,
    resolve_sampler,
)

# diffusers hands tensors to numpy functions, which numpy 2 warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PREDICTIONS = ("epsilon", "v_prediction")

# With v prediction, LMS' fourth derivative reaches back to x[i-3].
NEED_FOUR_INPUTS = {("lms", "v_prediction"), ("lms_karras", "v_prediction")}
PAIRS = [(s, p) for s in SAMPLERS for p in PREDICTIONS if X_TERMS >= 4 or (s, p) not in NEED_FOUR_INPUTS]

FACTORIES = {p: DiffusionSchedulerFactory({**SD15, "prediction_type": p}) for p in PREDICTIONS}

Change = Callable[[Tensor], Tensor]


@pytest.mark.parametrize("row", SAMPLERS.values(), ids=lambda row: row.name)
def test_a_row_alone_adds_a_sampler(row: Sampler) -> None:
    """The class is looked up in diffusers by the row's own name of it; nothing else lists it."""
    assert issubclass(getattr(diffusers, row.scheduler), diffusers.SchedulerMixin)


def untouched(latents: Tensor) -> Tensor:
    return latents


def blended(latents: Tensor) -> Tensor:
    """What inpainting does to latents between two steps."""
    return 0.6 * latents + 0.4 * torch.linspace(-1, 1, latents.numel()).view_as(latents)


def model(latents: Tensor, timestep: float) -> Tensor:
    return torch.tanh(1.5 * latents + timestep / 500 - 1)


def draw(seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, 4, 4, 4), generator=generator), generator


def start_of(sampler: str, steps: int, strength: float) -> int | None:
    return SAMPLERS[sampler].start(steps, strength) if strength else None


def run_diffusers(scheduler: Any, start: int | None, image: Tensor, change: Change, seed: int = 7) -> list[Tensor]:
    """The latents after every step, as diffusers' pipelines compute them (image-to-image where `start` > 0)."""
    x, generator = draw(seed)
    if hasattr(scheduler, "set_begin_index") and start:
        scheduler.set_begin_index(start)
    timesteps = scheduler.timesteps[start or 0 :]
    x = scheduler.add_noise(image, x, timesteps[:1]) if start else x * scheduler.init_noise_sigma
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    answers = []
    for t in timesteps:
        out = model(scheduler.scale_model_input(x, t), float(t))
        answers.append(scheduler.step(out, t, x, **extra, return_dict=False)[0])
        x = change(answers[-1])
    return answers


def run_table(schedule: Schedule, image: Tensor, change: Change, seed: int = 7) -> list[Tensor]:
    """The same from a table."""
    x, generator = draw(seed)
    x = schedule.noise_signal * image + schedule.noise_scale * x if schedule.start else schedule.init_noise_sigma * x
    nothing = torch.zeros_like(x)
    y, inputs, outputs = x, [nothing] * X_TERMS, [nothing] * OUT_TERMS
    answers = []
    for i, weights in enumerate(schedule.coefficients):
        inputs = [x, *inputs[:-1]]
        outputs = [model(schedule.input_scale[i] * x, float(schedule.timesteps[i])), *outputs[:-1]]
        noise = torch.randn(x.shape, generator=generator) if schedule.draws[i] else nothing
        y = torch.stack([*inputs, *outputs, y, noise], -1) @ weights
        answers.append(y)
        x = change(y)
    return answers


def compare(sampler: str, prediction: str, steps: int, strength: float = 0.0, change: Change = untouched) -> float:
    factory, start = FACTORIES[prediction], start_of(sampler, steps, strength)
    scheduler = factory.scheduler(sampler)
    scheduler.set_timesteps(steps)
    image = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(3))
    theirs = torch.stack(run_diffusers(scheduler, start, image, change))
    ours = torch.stack(run_table(factory.schedule(sampler, steps, start), image, change))
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("sampler", "prediction"), PAIRS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 50])
def test_table_is_diffusers(sampler: str, prediction: str, steps: int) -> None:
    # Between its only two sigmas diffusers' own float32 loses three digits in (x - (x - sigma e)) / sigma.
    cancels = SAMPLERS[sampler].scheduler == "KDPM2AncestralDiscreteScheduler" and steps == 2
    assert compare(sampler, prediction, steps) < (1e-4 if cancels else 1e-5)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if SAMPLERS[s].steps_limited_by is None])
@pytest.mark.parametrize("steps", [75, 150])
def test_table_is_diffusers_at_many_steps(sampler: str, steps: int) -> None:
    assert compare(sampler, "epsilon", steps) < 1e-5


@pytest.mark.parametrize(("sampler", "prediction"), PAIRS)
@pytest.mark.parametrize(("steps", "strength"), [(20, 0.75), (10, 0.31), (9, 0.12)])
def test_table_from_a_later_start_is_diffusers_image_to_image(
    sampler: str, prediction: str, steps: int, strength: float
) -> None:
    assert compare(sampler, prediction, steps, strength) < 1e-5


@pytest.mark.parametrize("sampler", ["dpmpp_2m_karras", "unipc_karras"])
def test_a_repeated_timestep_does_not_mislead_the_start(sampler: str) -> None:
    start = start_of(sampler, 150, 0.05)
    assert start is not None
    timesteps = FACTORIES["epsilon"].schedule(sampler, 150).timesteps.tolist()
    assert timesteps.count(timesteps[start]) > 1
    assert compare(sampler, "epsilon", 150, 0.05) < 1e-5


@pytest.mark.parametrize(("sampler", "prediction"), PAIRS)
@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_table_is_diffusers_when_latents_change_between_steps(sampler: str, prediction: str, strength: float) -> None:
    assert compare(sampler, prediction, 20, strength, blended) < 1e-5


@pytest.mark.parametrize("pair", sorted(NEED_FOUR_INPUTS))
def test_a_sampler_that_remembers_more_than_the_table_is_refused(pair: tuple[str, str]) -> None:
    sampler, prediction = pair
    if X_TERMS >= 4:
        assert compare(sampler, prediction, 20) < 1e-5
        return
    with pytest.raises(SamplerNotLinear):
        FACTORIES[prediction].schedule(sampler, 20)
    assert sampler in FACTORIES[prediction].check([sampler])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_evaluations_and_draws_are_known_beforehand(sampler: str, steps: int) -> None:
    schedule = FACTORIES["epsilon"].schedule(sampler, steps)
    assert len(schedule) == len(schedule.draws) == SAMPLERS[sampler].evaluations(steps)
    assert schedule.coefficients.shape == (len(schedule), X_TERMS + OUT_TERMS + 2)
    assert schedule.coefficients.dtype == schedule.timesteps.dtype == schedule.input_scale.dtype == torch.float32
    if steps == 20:
        assert any(schedule.draws) == SAMPLERS[sampler].draws_noise


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.05, 0.5, 0.8, 1.0])
def test_what_image_to_image_leaves_out_is_known_beforehand(sampler: str, strength: float) -> None:
    row = SAMPLERS[sampler]
    schedule = FACTORIES["epsilon"].schedule(sampler, 20, row.start(20, strength))
    assert len(schedule) == row.evaluations(20, strength)


def test_evaluations_of_twenty_steps() -> None:
    counts = {name: SAMPLERS[name].evaluations(20) for name in ("pndm", "heun", "kdpm2", "euler", "unipc")}
    assert counts == {"pndm": 21, "heun": 39, "kdpm2": 39, "euler": 20, "unipc": 20}


def test_a_draw_is_taken_even_where_it_counts_for_nothing() -> None:
    schedule = FACTORIES["epsilon"].schedule("dpmpp_2m_sde", 10)
    assert schedule.draws[-1]
    assert schedule.coefficients[-1, -1] == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_order_is_that_of_diffusers(sampler: str) -> None:
    assert FACTORIES["epsilon"].scheduler(sampler).order == SAMPLERS[sampler].order


@pytest.mark.parametrize(
    ("sampler", "switch"),
    [
        ("ddim", "clip_sample"),
        ("ddim", "thresholding"),
        ("ddpm", "clip_sample"),
        ("dpmpp_2m", "thresholding"),
        ("unipc", "thresholding"),
        ("heun", "clip_sample"),
        ("lcm", "clip_sample"),
    ],
)
def test_a_sampler_that_is_not_linear_is_refused(sampler: str, switch: str) -> None:
    factory = DiffusionSchedulerFactory({**SD15, switch: True})
    with pytest.raises(SamplerNotLinear):
        factory.schedule(sampler, 20)
    assert list(factory.check([sampler, "euler"])) == [sampler]


def test_a_sampler_that_diffusers_cannot_combine_with_the_model_is_refused() -> None:
    assert "pndm" in DiffusionSchedulerFactory({**SD15, "prediction_type": "sample"}).check(["pndm"])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_check_refuses_only_what_does_not_fit(prediction: str) -> None:
    assert set(FACTORIES[prediction].check()) == set(SAMPLERS) - {s for s, p in PAIRS if p == prediction}


def test_check_notices_a_wrong_table() -> None:
    factory = DiffusionSchedulerFactory(SD15)
    schedule = factory.schedule("dpmpp_2m", 5)
    schedule.coefficients[2, 0] += 0.01
    assert list(factory.check(["dpmpp_2m", "ddim"])) == ["dpmpp_2m"]


def test_where_a_config_is_silent_of_clipping_what_diffusers_would_clip_is_refused_by_name() -> None:
    silent = {key: value for key, value in SD15.items() if key != "clip_sample"}
    refused = DiffusionSchedulerFactory(silent).check(["ddim", "ddpm", "euler", "lcm", CHECKPOINT])
    assert set(refused) == {"ddim", "ddpm"}
    assert all("`clip_sample`" in error.message for error in refused.values())


def test_the_row_decides_the_sampler_whatever_the_checkpoint_prefers() -> None:
    favourite = diffusers.DPMSolverMultistepScheduler(
        **{key: SD15[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")},
        use_karras_sigmas=True,
        algorithm_type="sde-dpmsolver++",
        prediction_type="v_prediction",
    )
    plain = DiffusionSchedulerFactory(favourite.config).schedule("dpmpp_2m", 12)
    karras = DiffusionSchedulerFactory(favourite.config).schedule("dpmpp_2m_karras", 12)
    assert not any(plain.draws)
    assert torch.equal(plain.coefficients, FACTORIES["v_prediction"].schedule("dpmpp_2m", 12).coefficients)
    assert torch.equal(karras.timesteps, FACTORIES["v_prediction"].schedule("dpmpp_2m_karras", 12).timesteps)


def test_scheduler_is_what_a_user_of_diffusers_would_make() -> None:
    ours = FACTORIES["epsilon"].scheduler("DPM++ 2M Karras")
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(SD15, use_karras_sigmas=True)
    assert type(ours) is type(theirs)
    assert dict(ours.config) == {**dict(theirs.config), "prediction_type": "epsilon"} | {
        "_use_default_values": ours.config["_use_default_values"]
    }
    assert FACTORIES["epsilon"].scheduler("euler") is not FACTORIES["epsilon"].scheduler("euler")


def test_equal_arguments_give_the_same_schedule() -> None:
    factory = FACTORIES["epsilon"]
    assert factory.schedule("euler_a", 17) is factory.schedule("Euler a", 17)
    assert factory.schedule("euler_a", 17) is not factory.schedule("euler_a", 17, 3)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("PNDMScheduler", "pndm"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpm++ 2m sde", "dpmpp_2m_sde"),
        ("Euler a", "euler_a"),
        ("EULER", "euler"),
        ("PLMS", "pndm"),
        ("DPM2", "kdpm2"),
        ("DPM2 a", "kdpm2_a"),
        ("DPM++ SDE", "dpmpp_sde_single"),
        ("UniPC", "unipc"),
        ("LMS", "lms"),
        ("heun", "heun"),
        (" ddim ", "ddim"),
        ("dpmpp-2m", "dpmpp_2m"),
    ],
)
def test_every_spelling_finds_its_sampler(name: str, canonical: str) -> None:
    assert resolve_sampler(name) == canonical


def test_no_two_samplers_share_a_name() -> None:
    for row in SAMPLERS.values():
        assert {resolve_sampler(name) for name in (row.name, row.label, *row.aliases)} == {row.name}
    assert {row.scheduler for row in SAMPLERS.values()} == {
        SAMPLERS[resolve_sampler(row.scheduler)].scheduler for row in SAMPLERS.values()
    }


def test_an_unknown_name_is_told_the_nearest_ones() -> None:
    with pytest.raises(InvalidParameter, match="euler_a") as raised:
        resolve_sampler("eulr a")
    assert raised.value.field == "sampler"
    with pytest.raises(InvalidParameter, match="known samplers: ddim"):
        resolve_sampler("?")


@pytest.mark.parametrize(("sampler", "steps"), [("lcm", 51), ("euler", 0), ("euler", -1), ("euler", 1001)])
def test_a_step_count_out_of_range_names_the_rule(sampler: str, steps: int) -> None:
    with pytest.raises(InvalidParameter, match=r"between 1 and (50|1000)") as raised:
        FACTORIES["epsilon"].schedule(sampler, steps)
    assert raised.value.field == "num_inference_steps"


@pytest.mark.parametrize(("sampler", "start"), [("euler", 20), ("heun", 3), ("heun", 40), ("euler", -1)])
def test_a_start_that_leaves_nothing_is_refused(sampler: str, start: int) -> None:
    with pytest.raises(InvalidParameter):
        FACTORIES["epsilon"].schedule(sampler, 20, start)


def test_names_need_no_torch() -> None:
    program = "import sys, deployments.engine.protocol.sampler_names; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_compiling_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    factory = DiffusionSchedulerFactory(SD15)
    took = {}
    for sampler in SAMPLERS:
        factory.scheduler(sampler)
        begun = time.perf_counter()
        factory.schedule(sampler, 50)
        took[sampler] = time.perf_counter() - begun
    with capsys.disabled():
        print("\ncompiling 50 steps, ms:", {sampler: round(1000 * seconds) for sampler, seconds in took.items()})
    assert max(took.values()) < 5
