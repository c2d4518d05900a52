"""Stable Diffusion XL: every kind of request equals diffusers' own pipeline for it, alone and beside other kinds."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any, Final

import numpy as np
import pytest
import torch

from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.events import Failed, ImageFailed
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.steps.arena import Arena
from deployments.engine.steps.call import CallPlanner
from deployments.engine.steps.denoise import denoise_step
from deployments.engine.steps.pictures import decode_latents
from tests.deployments.engine.harness import Tape, difference, reference_image, request_for, run
from tests.deployments.engine.steps.test_denoise import Twins
from tests.deployments.engine.steps.test_graphs import SIZES, Recorder, capture_steps
from tests.deployments.engine.test_kinds import KINDS, NINE, control, picture, requests_of
from tests.deployments.engine.tiny_xl import POOLED, SECOND_WIDTH, save_tiny_xl, tiny_xl_controlnet

CPU: Final = torch.device("cpu")

TEXTS: Final[dict[str, dict[str, Any]]] = {
    "text": {},
    "no guidance": {"guidance_scale": 1.0},
    "negative prompt": {"negative_prompt": "a red cup"},
    "another size": {"width": 96, "height": 64},
    "skipped layers": {"clip_skip": 1},
    "another sampler": {"sampler": "dpmpp_2m_karras", "num_inference_steps": 5, "guidance_scale": 4.0},
    "two evaluations a step": {"sampler": "heun", "num_inference_steps": 4},
}


@pytest.fixture(scope="session")
def xl_controlnets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ControlNet folders by type, as `tiny_controlnets`."""
    root = tmp_path_factory.mktemp("xl_controlnets")
    odd = {"controlnet_conditioning_channel_order": "bgr", "global_pool_conditions": True}
    for name, seed, more in (("canny", 61, {}), ("depth", 62, {}), ("shuffle", 63, odd)):
        tiny_xl_controlnet(seed, **more).save_pretrained(root / name, safe_serialization=True)
    return {name: str(root / name) for name in ("canny", "depth", "shuffle")}


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="session")
def xl_model(xl_folder: Path, xl_controlnets: dict[str, str]) -> LoadedModel:
    return load_model(ModelSpec("xl", str(xl_folder), controlnets=xl_controlnets), CPU, torch.float32)


@pytest.fixture(scope="session")
def crowd(xl_model: LoadedModel) -> tuple[list[Request], Tape]:
    """Every kind at once, each with a sampler of its own, and what came of them."""
    samplers = ("ddim", "euler_a", "dpmpp_2m", "unipc", None)
    kinds = list(KINDS)
    asked = [
        request
        for i, sampler in enumerate(samplers)
        for request in requests_of(xl_model, kinds[i :: len(samplers)], sampler or "checkpoint")
    ]
    asked += [request_for(xl_model, name, **more) for name, more in TEXTS.items()]
    tape, _ = run(xl_model, asked, max_rows=32)
    assert [each for request in asked for kind in (Failed, ImageFailed) for each in tape.of(request.id, kind)] == []
    return asked, tape


@pytest.mark.parametrize("kind", [*KINDS, *TEXTS])
def test_each_kind_in_a_crowd_of_others_is_the_picture_of_diffusers(
    crowd: tuple[list[Request], Tape], kind: str, xl_model: LoadedModel, xl_folder: Path
) -> None:
    asked, tape = crowd
    wanted = next(request for request in asked if request.id == kind)
    assert difference(tape.images(kind)[0], reference_image(xl_folder, xl_model, wanted)) <= 1


@pytest.mark.parametrize("kind", ["text", "negative prompt", "another size"])
def test_alone_it_is_the_picture_of_diffusers(kind: str, xl_model: LoadedModel, xl_folder: Path) -> None:
    asked = request_for(xl_model, kind, **TEXTS[kind])
    tape, _ = run(xl_model, [asked])
    assert difference(tape.images(kind)[0], reference_image(xl_folder, xl_model, asked)) <= 1


def test_neighbours_do_not_change_a_bit_at_a_fixed_padded_size(xl_model: LoadedModel) -> None:
    asked = [request_for(xl_model, name, sampler="euler_a", **TEXTS[name]) for name in ("text", "negative prompt")]
    asked += requests_of(xl_model, ["image-to-image", "two controlnets"], "euler_a")
    together, _ = run(xl_model, asked, max_rows=16, padded_sizes=(16,))
    for request in asked:
        alone, _ = run(xl_model, [request], max_rows=16, padded_sizes=(16,))
        assert difference(together.images(request.id)[0], alone.images(request.id)[0]) == 0, request.id


def test_an_inpainting_checkpoint_gives_the_pictures_of_diffusers(tmp_path: Path) -> None:
    folder = save_tiny_xl(tmp_path, in_channels=9)
    model = load_model(ModelSpec("xl-9", str(folder)), CPU, torch.float32)
    asked = requests_of(model, [kind for kind in NINE if "controlnet" not in kind], "euler")
    tape, _ = run(model, asked)
    for request in asked:
        assert difference(tape.images(request.id)[0], reference_image(folder, model, request)) <= 1, request.id


def test_no_negative_prompt_is_zeros_or_the_empty_text_as_the_index_says(tmp_path: Path, xl_model: LoadedModel) -> None:
    folder = save_tiny_xl(tmp_path, zeros_for_nothing=False)
    model = load_model(ModelSpec("xl", str(folder)), CPU, torch.float32)
    asked = request_for(model, "text")
    made = run(model, [asked])[0].images("text")[0]
    assert difference(made, reference_image(folder, model, asked)) <= 1
    assert difference(made, run(xl_model, [asked])[0].images("text")[0]) > 4


def test_both_text_encoders_their_sum_and_the_size_show(xl_model: LoadedModel) -> None:
    encoded = xl_model.prompt_encoder.encode("a red cup")
    assert encoded.states.shape == (77, 32 + SECOND_WIDTH)
    assert encoded.pooled is not None
    assert encoded.pooled.shape == (POOLED,)
    unet = xl_model.unet
    keys = xl_model.attention_cache.project(encoded.states).keys[None]
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])

    def answer(keys: torch.Tensor, pooled: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        sample = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        added = {"text_embeds": pooled[None], "time_ids": sizes}
        with torch.inference_mode():
            made: torch.Tensor = unet(sample, 500.0, encoder_hidden_states=keys, added_cond_kwargs=added).sample
        return made

    plain = answer(keys, encoded.pooled, sizes)
    for changed in (
        answer(keys * 0, encoded.pooled, sizes),
        answer(keys, encoded.pooled * 0, sizes),
        answer(keys, encoded.pooled, sizes * 2),
    ):
        assert float((plain - changed).abs().max()) > 0.01


def test_a_long_prompt_has_more_states_and_the_sum_of_its_first_chunk(xl_model: LoadedModel) -> None:
    encoder = xl_model.prompt_encoder
    first, whole = encoder.encode("a red cup"), encoder.encode("a red cup BREAK the cat on the cup")
    assert whole.states.shape[0] == 2 * 77
    assert torch.equal(whole.states[:77], first.states)
    assert first.pooled is not None
    assert whole.pooled is not None
    assert torch.equal(whole.pooled, first.pooled)


def test_long_and_short_prompts_share_a_call(xl_model: LoadedModel) -> None:
    asked = [request_for(xl_model, "long", prompt="a red cup BREAK the cat"), request_for(xl_model, "short")]
    together, engine = run(xl_model, asked)
    assert engine.tracker.total.unet_calls == 8
    for request in asked:
        alone = run(xl_model, [request])[0].images(request.id)[0]
        assert difference(together.images(request.id)[0], alone) <= 1


def test_layers_that_one_of_the_text_encoders_does_not_have_cannot_be_skipped(xl_model: LoadedModel) -> None:
    with pytest.raises(InvalidParameter, match="between 0 and 1"):
        xl_model.prompt_encoder.encode("a cup", 2)


def test_deep_cache_and_a_second_pass_know_the_sum_and_the_size(xl_model: LoadedModel) -> None:
    asked = [
        request_for(xl_model, "deep", deep_cache=2),
        request_for(xl_model, "hires", hires={"scale": 2.0, "strength": 0.5}),
        request_for(xl_model, "plain", prompt="a picture of deep"),
    ]
    tape, _ = run(xl_model, asked)
    assert not tape.of("deep", Failed)
    assert tape.images("hires")[0].shape == (128, 128, 3)
    mean = float(np.abs(tape.images("deep")[0] - tape.images("plain")[0]).mean())
    assert 0 < mean < 20


def test_in_half_precision_the_vae_runs_in_fp32_where_its_config_asks_for_it(
    xl_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    fitting = copytree(xl_folder, tmp_path / "fitting")
    config = json.loads((fitting / "vae" / "config.json").read_text())
    (fitting / "vae" / "config.json").write_text(json.dumps(config | {"force_upcast": False}))
    parts = Components(CPU, torch.float16)
    for folder, dtype in ((xl_folder, torch.float32), (fitting, torch.float16), (tiny_checkpoint, torch.float16)):
        model = load_model(ModelSpec(folder.name, str(folder)), CPU, torch.float16, parts)
        assert next(iter(model.unet.parameters())).dtype == torch.float16
        assert (model.vae_dtype, next(iter(model.vae.parameters())).dtype) == (dtype, dtype)
        assert decode_latents(model, torch.zeros(1, 4, 8, 8)).isfinite().all()
        assert model.image_encoder.encode(picture(1)).mean.isfinite().all()


def test_captured_steps_have_the_bits_of_plain_ones(xl_model: LoadedModel) -> None:
    arena, graphs = capture_steps(xl_model, Recorder(), (77,))
    asked = [request_for(xl_model, name, sampler="euler_a", **TEXTS[name]) for name in ("text", "negative prompt")]
    twins = [Twins(xl_model, request) for request in (*asked, request_for(xl_model, "one", guidance_scale=1.0))]
    ours, theirs = [each.ours for each in twins], [each.theirs for each in twins]
    plain = Arena(xl_model, ours[0].request.bucket, arena.size)
    for place, rows in ((arena, ours), (plain, theirs)):
        for row in rows:
            place.add(row)
    planner, other = (CallPlanner(place, SIZES, (77,)) for place in (arena, plain))
    for _ in range(8):
        call = planner.plan(xl_model, ours)
        captured = graphs.find(call)
        assert captured is not None
        denoise_step(xl_model, arena, call, ours, captured)
        denoise_step(xl_model, plain, other.plan(xl_model, theirs), theirs)
    for row in (*ours, *theirs):
        row.leave_slot()
    assert all(each.are_equal for each in twins)


def test_a_controlnet_of_another_family_is_refused_by_the_key(
    xl_folder: Path, tiny_controlnets: dict[str, str]
) -> None:
    spec = ModelSpec("xl", str(xl_folder), controlnets={"canny": tiny_controlnets["canny"]})
    with pytest.raises(ModelLoadError, match="cross_attention_dim"):
        load_model(spec, CPU, torch.float32)


def test_everything_that_is_asked_for_of_a_controlnet_shows(xl_model: LoadedModel) -> None:
    one = request_for(xl_model, "one", Inputs(hints=(picture(3),)), prompt="a cup", controls=(control("canny"),))
    other = request_for(xl_model, "other", Inputs(hints=(picture(9),)), prompt="a cup", controls=(control("canny"),))
    tape, _ = run(xl_model, [one, other])
    assert difference(tape.images("one")[0], tape.images("other")[0]) > 4
