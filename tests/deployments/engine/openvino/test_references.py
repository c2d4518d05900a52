"""On OpenVINO, too, a row with reference images is the picture of torch's networks, among rows with others and none."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.converted_network import ConvertedNetwork
from deployments.engine.openvino.runtime import OpenVinoRuntime
from deployments.engine.protocol.events import Failed, ImageDone, ImageFailed
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec
from tests.deployments.engine.harness import difference, request_for, run
from tests.deployments.engine.ip_adapter.test_references import LORAS, REFERENCES, SETTINGS, asked_of, refer
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import reference_with_images
from tests.deployments.engine.lora.rows.loras import reading, with_loras


@pytest.fixture(scope="session")
def fast_referring(
    tiny_checkpoint: Path,
    tiny_controlnets: dict[str, str],
    ip_adapters: dict[str, IpAdapterSpec],
    components: Components,
) -> LoadedModel:
    """`tiny_referring`, on OpenVINO."""
    spec = ModelSpec("tiny", str(tiny_checkpoint), controlnets=tiny_controlnets, ip_adapters=ip_adapters)
    return load_model(spec, torch.device("cpu"), torch.float32, components)


def all_requests(model: LoadedModel) -> list[Request]:
    lora = with_loras(refer(request_for(model, "lora", **SETTINGS), "plain"), LORAS["everything"].use(0.8))
    deep = refer(request_for(model, "deep", deep_cache=2, **SETTINGS), "plus")
    both = with_loras(
        refer(request_for(model, "both", deep_cache=2, **SETTINGS), "two images"), LORAS["everything"].use(0.5)
    )
    return [*asked_of(model), lora, deep, both]


def test_every_row_in_a_crowd_is_that_of_torch(fast_referring: LoadedModel, tiny_referring: LoadedModel) -> None:
    asked = all_requests(fast_referring)
    ours, _ = run(fast_referring, asked, read_adapter=reading(LORAS), max_rows=64)
    theirs, _ = run(tiny_referring, asked, read_adapter=reading(LORAS), max_rows=64)
    assert fast_referring.backend == "openvino"
    for request in asked:
        assert not ours.of(request.id, Failed)
        assert not ours.of(request.id, ImageFailed)
        assert difference(ours.images(request.id)[0], theirs.images(request.id)[0]) <= 1, request.id


@pytest.mark.parametrize("name", ["plain", "three images of plus", "for a while"])
def test_alone_it_is_the_picture_of_diffusers(
    name: str, fast_referring: LoadedModel, tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec]
) -> None:
    request = refer(request_for(fast_referring, name, **SETTINGS), name)
    made, _ = run(fast_referring, [request])
    reference = reference_with_images(tiny_checkpoint, fast_referring, request, ip_adapters)
    assert difference(made.images(name)[0], reference) <= 1


def test_calls_without_references_have_the_programs_and_bits_of_a_model_without_adapters(
    fast_referring: LoadedModel, fast_controlled: LoadedModel
) -> None:
    run(fast_referring, [refer(request_for(fast_referring, "y", **SETTINGS), "plain")])
    request = request_for(fast_referring, "x", **SETTINGS)
    ours, theirs = (run(model, [request], padded_sizes=(16,))[0] for model in (fast_referring, fast_controlled))
    assert ours.of("x", ImageDone)[0].data == theirs.of("x", ImageDone)[0].data


def test_to_be_exact_is_to_have_the_same_bits_beside_any_others(fast_referring: LoadedModel) -> None:
    names = ("plain", "plus", "for a while")
    asked = [refer(request_for(fast_referring, name, exact=True, **SETTINGS), name) for name in names]
    asked.append(request_for(fast_referring, "without", exact=True, **SETTINGS))
    others = [refer(request_for(fast_referring, f"{name}, not exact", **SETTINGS), name) for name in REFERENCES]
    together, _ = run(fast_referring, [*asked, *others])
    for request in asked:
        alone, _ = run(fast_referring, [request])
        assert difference(together.images(request.id)[0], alone.images(request.id)[0]) == 0, request.id


@pytest.mark.parametrize("name", ["plain", "three images of plus", "for a while", "deep", "exact"])
def test_the_engines_thread_compiles_nothing_for_a_request_alone(
    name: str, fast_referring: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side of its own for each: nothing was compiled for it before."""
    names = ["plain", "three images of plus", "for a while", "deep", "exact"]
    side = (10 + names.index(name)) * fast_referring.factor
    settings: dict[str, dict[str, Any]] = {"deep": {"deep_cache": 2}, "exact": {"exact": True}}
    request = request_for(fast_referring, name, **SETTINGS | settings.get(name, {}), width=side, height=side)
    request = refer(request, name if name in REFERENCES else "plain")
    threads: set[str] = set()
    compile_model = Compiler.compile

    def record(*given: Any, **named: Any) -> Any:
        threads.add(threading.current_thread().name)
        return compile_model(*given, **named)

    monkeypatch.setattr(Compiler, "compile", record)
    tape, _ = run(fast_referring, [request], max_rows=8)
    assert tape.images(name)
    assert threads
    assert threading.current_thread().name not in threads


def test_without_openvino_torch_runs_calls_with_references(
    tiny_checkpoint: Path,
    ip_adapters: dict[str, IpAdapterSpec],
    tiny_referring: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a network that cannot be converted."""

    def refuse(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(ConvertedNetwork, "_convert", refuse)
    parts = Components(torch.device("cpu"), torch.float32, openvino=OpenVinoRuntime(threads=1))
    spec = ModelSpec("tiny", str(tiny_checkpoint), ip_adapters=ip_adapters)
    model = load_model(spec, torch.device("cpu"), torch.float32, parts)
    asked = [
        refer(request_for(model, "x", **SETTINGS), "two images"),
        refer(request_for(model, "y", deep_cache=2, **SETTINGS), "plus"),
    ]
    ours, theirs = (run(each, asked)[0] for each in (model, tiny_referring))
    assert model.backend == "torch"
    for request in asked:
        assert difference(ours.images(request.id)[0], theirs.images(request.id)[0]) <= 1
