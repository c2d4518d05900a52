"""A row with LoRAs is diffusers' picture with these LoRAs loaded, alone and among rows with others and with none."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.harness import difference, request_for, run
from tests.deployments.engine.lora.rows.loras import (
    ATTENTION,
    TEXT,
    TinyLora,
    reading,
    reference_with_loras,
    save_merged,
    with_loras,
)
from tests.deployments.engine.test_kinds import KINDS, requests_of

LORAS: Final = {
    lora.name: lora
    for lora in (
        TinyLora("attention", 1, 4, ATTENTION),
        TinyLora("linear", 2, 8),
        TinyLora("everything", 3, 3, ("",), TEXT, strength=0.3),
        TinyLora("text", 4, 2, (), TEXT),
    )
}


def asked_of(model: LoadedModel, **asked: Any) -> list[Request]:
    """A request for each LoRA, one for two at once, and two for none."""
    settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4, "sampler": "euler_a"} | asked
    requests = [
        with_loras(request_for(model, name, seed=i, **settings), LORAS[name].use(0.8)) for i, name in enumerate(LORAS)
    ]
    two = with_loras(request_for(model, "two", **settings), LORAS["linear"].use(0.6), LORAS["everything"].use(-0.4))
    unguided = with_loras(request_for(model, "unguided", **settings | {"guidance_scale": 1}), LORAS["linear"].use())
    return [*requests, two, unguided, request_for(model, "none", **settings), request_for(model, "other", **settings)]


def test_every_row_in_a_crowd_of_other_loras_is_the_picture_of_diffusers(
    tiny_model: LoadedModel, tiny_checkpoint: Path
) -> None:
    requests = asked_of(tiny_model)
    tape, engine = run(tiny_model, requests, read_adapter=reading(LORAS))
    assert engine.tracker.total.unet_calls < 4 * len(requests)
    for request in requests:
        made = tape.images(request.id)[0]
        reference = reference_with_loras(tiny_checkpoint, tiny_model, request, LORAS)
        assert difference(made, reference) <= 1, request.id
        alone, _ = run(tiny_model, [request], read_adapter=reading(LORAS))
        assert difference(alone.images(request.id)[0], reference) <= 1, request.id
        if request.loras:
            plain, _ = run(tiny_model, [with_loras(request)])
            assert difference(made, plain.images(request.id)[0]) > 4, request.id


ALL: Final = (LORAS["everything"].use(0.7), LORAS["linear"].use(-0.5))


@pytest.fixture(scope="session")
def merged_model(
    tiny_checkpoint: Path, tiny_controlnets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    """`tiny_controlled` with the LoRAs of ALL merged into its weights."""
    folder = save_merged(tiny_checkpoint, tmp_path_factory.mktemp("merged") / "model", LORAS, *ALL)
    spec = ModelSpec("tiny", str(folder), controlnets=tiny_controlnets)
    return load_model(spec, torch.device("cpu"), torch.float32)


MORE: Final[dict[str, dict[str, Any]]] = {
    "deep cache": {"deep_cache": 3},
    "hires": {"hires": {"scale": 1.5, "strength": 0.6}},
    "hires by pixels": {"hires": {"scale": 1.5, "strength": 0.6, "upscaler": "lanczos"}},
    "guidance for a while": {"guidance_interval": (0.2, 0.7)},
    "long prompt": {"prompt": "a (red:1.2) cat " * 60, "clip_skip": 1},
    "no guidance": {"guidance_scale": 1},
    "wide": {"width": 104, "height": 72},
}


def test_every_kind_is_that_of_the_merged_weights_among_rows_without(
    tiny_controlled: LoadedModel, merged_model: LoadedModel
) -> None:
    kinds = requests_of(tiny_controlled, list(KINDS), "euler_a")
    kinds += [request_for(tiny_controlled, name, **{"sampler": "ddim"} | asked) for name, asked in MORE.items()]
    others = [replace(request, id=f"{request.id} without") for request in kinds[::3]]
    changed = [with_loras(request, *ALL) for request in kinds]
    tape, _ = run(tiny_controlled, [*changed, *others], read_adapter=reading(LORAS), max_rows=32)
    merged, _ = run(merged_model, kinds, max_rows=32)
    plain, _ = run(tiny_controlled, others, max_rows=32)
    for request in kinds:
        assert difference(tape.images(request.id)[0], merged.images(request.id)[0]) <= 1, request.id
    for request in others:
        assert difference(tape.images(request.id)[0], plain.images(request.id)[0]) <= 1, request.id
        assert difference(plain.images(request.id)[0], tape.images(request.id.removesuffix(" without"))[0]) > 4


def test_at_a_fixed_padded_size_neighbours_do_not_change_a_bit(tiny_model: LoadedModel) -> None:
    requests = asked_of(tiny_model, exact=True)
    together, _ = run(tiny_model, requests, read_adapter=reading(LORAS))
    for request in requests:
        alone, _ = run(tiny_model, [request], read_adapter=reading(LORAS))
        assert difference(together.images(request.id)[0], alone.images(request.id)[0]) == 0, request.id


def test_what_pads_a_call_does_not_change_what_the_deep_blocks_have_answered(tiny_model: LoadedModel) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 5, "sampler": "ddim"}
    request = with_loras(request_for(tiny_model, "x", deep_cache=2, **settings), LORAS["everything"].use(0.5))
    others = [request_for(tiny_model, name, **settings) for name in ("one", "two")]
    alone, _ = run(tiny_model, [request], read_adapter=reading(LORAS))
    # Six entries, padded to eight.
    together, _ = run(tiny_model, [request, *others], read_adapter=reading(LORAS))
    assert difference(together.images("x")[0], alone.images("x")[0]) <= 1


def test_a_call_with_loras_leaves_the_network_as_it_was(tiny_model: LoadedModel) -> None:
    request = request_for(tiny_model, "none", num_inference_steps=4)
    before, _ = run(tiny_model, [request])
    weights = {name: weight.clone() for name, weight in tiny_model.unet.state_dict().items()}
    run(tiny_model, asked_of(tiny_model), read_adapter=reading(LORAS))
    after, _ = run(tiny_model, [request], read_adapter=reading(LORAS))
    assert [done.data for done in after.of("none", ImageDone)] == [done.data for done in before.of("none", ImageDone)]
    assert all(torch.equal(weight, weights[name]) for name, weight in tiny_model.unet.state_dict().items())
    assert not any(module._forward_hooks for module in tiny_model.unet.modules())
