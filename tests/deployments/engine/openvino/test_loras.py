"""On OpenVINO, too, a row with LoRAs is the picture of the weights with these merged into them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.harness import difference, request_for, run
from tests.deployments.engine.lora.rows.loras import LINEAR, TEXT, TinyLora, reading, save_merged, with_loras
from tests.deployments.engine.test_kinds import KINDS

LORAS = {"all": TinyLora("all", 1, 3, ("",), TEXT, strength=0.3), "linear": TinyLora("linear", 2, 8, LINEAR)}


@pytest.fixture(scope="module")
def merged(
    tiny_checkpoint: Path, tiny_controlnets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LoadedModel]:
    """A model for each LoRA, with its weights changed."""
    models = {}
    for name, lora in LORAS.items():
        folder = save_merged(tiny_checkpoint, tmp_path_factory.mktemp("merged") / name, LORAS, lora.use(0.8))
        spec = ModelSpec("tiny", str(folder), controlnets=tiny_controlnets)
        models[name] = load_model(spec, torch.device("cpu"), torch.float32)
    return models


def test_rows_with_loras_are_those_of_the_merged_weights_among_rows_without(
    fast_controlled: LoadedModel, merged: dict[str, LoadedModel]
) -> None:
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        kind: KINDS[kind] for kind in ("image-to-image", "inpaint", "controlnet", "controlnet with averages")
    }
    kinds["deep cache"] = (request_for(fast_controlled, "x").inputs, {"deep_cache": 3})
    plain = {
        kind: request_for(fast_controlled, kind, inputs, sampler="euler_a", num_inference_steps=4, **asked)
        for kind, (inputs, asked) in kinds.items()
    }
    changed = {
        (kind, name): with_loras(
            request_for(
                fast_controlled,
                f"{kind} {name}",
                prompt=request.params.prompt,
                inputs=request.inputs,
                sampler="euler_a",
                num_inference_steps=4,
                **kinds[kind][1],
            ),
            LORAS[name].use(0.8),
        )
        for kind, request in plain.items()
        for name in LORAS
    }
    asked = [*plain.values(), *changed.values()]
    tape, _ = run(fast_controlled, asked, read_adapter=reading(LORAS), max_rows=32)
    without, _ = run(fast_controlled, list(plain.values()), max_rows=32)
    for (kind, name), request in changed.items():
        wanted, _ = run(merged[name], [with_loras(request)])
        assert difference(tape.images(request.id)[0], wanted.images(request.id)[0]) <= 1, request.id
        assert difference(tape.images(request.id)[0], without.images(kind)[0]) > 4, request.id
    for kind in plain:
        assert difference(tape.images(kind)[0], without.images(kind)[0]) <= 1, kind


def test_a_row_without_loras_is_the_same_to_the_byte_beside_others_that_have_some(
    fast_controlled: LoadedModel,
) -> None:
    request = request_for(fast_controlled, "x")
    alone, _ = run(fast_controlled, [request], max_rows=4)
    changed = with_loras(request_for(fast_controlled, "y"), LORAS["all"].use())
    beside, _ = run(fast_controlled, [request, changed], read_adapter=reading(LORAS), max_rows=4)
    assert alone.of("x", ImageDone)[0].data == beside.of("x", ImageDone)[0].data
    assert fast_controlled.backend == "openvino"
