"""IP-Adapters are loaded when they are asked for, shared, counted; each picture is encoded once; errors name fields."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from deployments.engine.ip_adapter import adapters as adapters_module
from deployments.engine.ip_adapter.adapter import IpAdapter
from deployments.engine.ip_adapter.adapters import IpAdapters
from deployments.engine.ip_adapter.vision_encoder import load_vision_encoder
from deployments.engine.models.components import Components, size_of
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.events import Failed, Finished
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ReferenceSettings
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec
from deployments.engine.steps import preparer as preparer_module
from deployments.engine.steps.prepare import begin_row, check_request, prepare, restart_row, with_model_facts
from deployments.engine.steps.preparer import PATIENCE_S
from tests.deployments.engine.harness import Tape, engine_of, request_for, run
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import SIDE, tiny_vision_encoder, with_images
from tests.deployments.engine.test_kinds import picture

CPU = torch.device("cpu")


@pytest.fixture
def fresh(tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec]) -> LoadedModel:
    """A model whose adapters nobody has asked for."""
    return load_model(ModelSpec("fresh", str(tiny_checkpoint), ip_adapters=ip_adapters), CPU, torch.float32)


def asked(model: LoadedModel, name: str = "x", adapter: str = "plain", **settings: Any) -> Request:
    return with_images(request_for(model, name, num_inference_steps=2), [picture(4)], adapter=adapter, **settings)


def test_an_adapter_is_loaded_when_it_is_asked_for_beside_the_engine_and_counted_then(fresh: LoadedModel) -> None:
    before, threads = fresh.bytes, set()
    load = fresh.ip_adapters._load_one

    def recording(name: str) -> IpAdapter:
        threads.add(threading.current_thread().name.rstrip("0123456789"))
        return load(name)

    fresh.ip_adapters._load_one = recording
    run(fresh, [request_for(fresh, "without", num_inference_steps=1)])
    assert fresh.bytes == before
    tape, engine = run(fresh, [asked(fresh)])
    assert tape.of("x", Finished)
    assert threads == {"load-ip-adapter_"}
    (plain,) = fresh.ip_adapters._loaded().values()
    assert fresh.bytes == before + size_of(*plain.networks)
    assert engine.admission._adapters.count_bytes() == size_of(*plain.networks)
    run(fresh, [asked(fresh, adapter="other")])
    assert fresh.bytes - before < 2 * size_of(*plain.networks)


def test_models_share_an_adapter_and_adapters_an_image_encoder(
    tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec]
) -> None:
    parts = Components(CPU, torch.float32)
    models = [
        load_model(ModelSpec(name, str(tiny_checkpoint), ip_adapters=ip_adapters), CPU, torch.float32, parts)
        for name in ("one", "two")
    ]
    one, two = (model.ip_adapters.begin("plain").result() for model in models)
    assert one is two
    assert models[0].ip_adapters.begin("plus").result().networks[-1] is one.networks[-1]


def test_a_picture_is_encoded_once_however_often_and_weighted_it_is_asked_for(tiny_referring: LoadedModel) -> None:
    adapter = tiny_referring.ip_adapters.begin("plus").result()
    seen: list[object] = []
    hook = adapter.networks[-1].register_forward_hook(lambda *_: seen.append(None))
    try:
        image = picture(99)
        first = adapter.refer([image], ReferenceSettings(), guided=True)
        count = len(seen)
        again = adapter.refer([image.copy(), image], ReferenceSettings(scale=0.5, weights=(1.0, 0.0)), guided=True)
        assert len(seen) == count
        adapter.refer([image[:50]], ReferenceSettings(), guided=False)
        assert len(seen) == count + 1
    finally:
        hook.remove()
    assert first is not None
    assert again is not None
    is_value = adapter._is_value
    tokens = adapter.tokens
    assert torch.equal(again.keys[:tokens, ~is_value], first.keys[:, ~is_value])
    assert torch.equal(again.keys[:tokens, is_value], first.keys[:, is_value] * 0.5)
    assert not again.keys[tokens:, is_value].any()


def test_the_oldest_pictures_go_when_the_bytes_are_used_up(tiny_referring: LoadedModel) -> None:
    adapter = tiny_referring.ip_adapters.begin("plain").result()
    sizes = [adapter._keys_of(picture(seed)).nbytes for seed in range(3)]
    assert adapter._cache.currsize >= sum(sizes)
    cached = type(adapter._cache)(2 * sizes[0], getsizeof=lambda keys: keys.nbytes)
    before, adapter._cache = adapter._cache, cached
    for seed in range(3):
        adapter._keys_of(picture(seed))
    assert len(cached) == 2
    adapter._cache = before


def test_a_restarted_row_keeps_its_reference(tiny_referring: LoadedModel) -> None:
    request = with_model_facts(asked(tiny_referring), tiny_referring)
    state = prepare(request, tiny_referring, 0.0, None, tiny_referring.ip_adapters.begin("plain").result())
    row = begin_row(state, 0, tiny_referring)
    assert row.reference is state.reference
    assert row.reference is not None
    assert restart_row(row, state, tiny_referring).reference is row.reference


FAULTS: dict[str, tuple[Callable[[Request], Request], str, str]] = {
    "no images": (lambda r: replace(r, inputs=replace(r.inputs, references=())), "reference", "needs pictures"),
    "no reference": (
        lambda r: replace(r, params=r.params.model_copy(update={"reference": None})),
        "reference_images",
        "with a `reference` only",
    ),
    "too many images": (lambda r: with_images(r, [picture(1)] * 5, adapter="plain"), "reference_images", "at most 4"),
    "too many weights": (
        lambda r: with_images(r, [picture(1)], adapter="plain", weights=(1.0, 0.5)),
        "reference",
        "one for each of the 1 ",
    ),
    "too few weights": (
        lambda r: with_images(r, [picture(1)] * 3, adapter="plain", weights=(1.0, 0.5)),
        "reference",
        "one for each of the 3 ",
    ),
    "unknown adapter": (lambda r: with_images(r, [picture(1)], adapter="mine"), "reference", "plain, other, plus"),
    "no name": (lambda r: with_images(r, [picture(1)]), "reference", "must name its `adapter`.* plain, other, plus"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_that_cannot_be_served_is_refused_by_field_and_rule(fault: str, tiny_referring: LoadedModel) -> None:
    change, field, rule = FAULTS[fault]
    with pytest.raises(InvalidParameter, match=rule) as raised:
        check_request(change(asked(tiny_referring)), tiny_referring)
    assert raised.value.field == field


def test_a_model_without_adapters_says_so_and_one_with_a_single_one_needs_no_name(
    tiny_model: LoadedModel, tiny_referring: LoadedModel
) -> None:
    with pytest.raises(InvalidParameter, match="it has: none"):
        check_request(asked(tiny_model), tiny_model)
    with pytest.raises(InvalidParameter, match="it has: none"):
        tiny_model.ip_adapters.resolve(ReferenceSettings())
    one = IpAdapters(("only",), lambda _: tiny_referring.ip_adapters.begin("plain").result())
    assert one.resolve(ReferenceSettings()) == "only"


def test_a_broken_adapter_fails_its_requests_alone_and_is_tried_again(
    tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = shutil.copytree(ip_adapters["plain"].image_encoder, tmp_path / "encoder")
    (encoder / "config.json").rename(encoder / "kept.json")
    specs = ip_adapters | {"broken": replace(ip_adapters["plain"], image_encoder=str(encoder))}
    model = load_model(ModelSpec("tiny", str(tiny_checkpoint), ip_adapters=specs), CPU, torch.float32)
    tape, _ = run(model, [asked(model, "x", "broken"), asked(model, "y"), request_for(model, "z")])
    (failed,) = tape.of("x", Failed)
    assert isinstance(failed.error, ModelLoadError)
    assert "its IP-Adapter 'broken', its image encoder" in failed.error.message
    assert tape.of("y", Finished)
    assert tape.of("z", Finished)
    (encoder / "kept.json").rename(encoder / "config.json")
    monkeypatch.setattr(adapters_module, "RETRY_S", 0.0)
    assert run(model, [asked(model, "x", "broken")])[0].of("x", Finished)


def test_a_load_that_has_failed_is_not_repeated_for_each_request(
    fresh: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def fail(name: str) -> IpAdapter:
        tried.append(name)
        raise ModelLoadError("injected: the hub is out of reach")

    fresh.ip_adapters._load_one = fail
    names = [f"x{number}" for number in range(3)]
    tape, _ = run(fresh, [*(asked(fresh, name) for name in names), request_for(fresh, "y", num_inference_steps=1)])
    assert [type(tape.of(name, Failed)[0].error) for name in names] == [ModelLoadError] * 3
    assert tape.of("y", Finished)
    assert len(tried) == 1
    monkeypatch.setattr(adapters_module, "RETRY_S", 0.0)
    with pytest.raises(ModelLoadError):
        fresh.ip_adapters.begin("plain").result()
    assert len(tried) == 2


def test_files_that_are_here_are_looked_at_when_the_model_loads(
    tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec], tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    specs = {"mine": replace(ip_adapters["plain"], source=str(tmp_path / "a.safetensors"))}
    with pytest.raises(ModelLoadError, match="its IP-Adapter 'mine'"):
        load_model(ModelSpec("tiny", str(tiny_checkpoint), ip_adapters=specs), CPU, torch.float32)


def test_an_image_encoder_of_other_widths_is_refused(
    tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec], tmp_path: Path
) -> None:
    network = tiny_vision_encoder()
    config = type(network.config)(**network.config.to_dict() | {"projection_dim": 20})
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path, safe_serialization=True)
    specs = {name: replace(spec, image_encoder=str(tmp_path)) for name, spec in ip_adapters.items()}
    model = load_model(ModelSpec("tiny", str(tiny_checkpoint), ip_adapters=specs), CPU, torch.float32)
    with pytest.raises(ModelLoadError, match="reads pictures 24 wide, and its image encoder makes them 20 wide"):
        model.ip_adapters.begin("plain").result()
    # The states of the patches are as wide as before.
    model.ip_adapters.begin("plus").result()


@pytest.mark.parametrize("name", ["image_proj.norm.weight", "ip_adapter.1.to_v_ip.weight"])
def test_weights_that_are_not_finite_are_refused(
    name: str, tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec], tmp_path: Path
) -> None:
    state = load_file(ip_adapters["plain"].source)
    path = tmp_path / "spoilt.safetensors"
    save_file({key: each * (float("nan") if key == name else 1) for key, each in state.items()}, path)
    specs = {"mine": replace(ip_adapters["plain"], source=str(path))}
    model = load_model(ModelSpec("tiny", str(tiny_checkpoint), ip_adapters=specs), CPU, torch.float32)
    with pytest.raises(ModelLoadError, match="its IP-Adapter 'mine' has weights that are not finite"):
        model.ip_adapters.begin("mine").result()


@pytest.mark.parametrize("given", [None, {"size": {"shortest_edge": 20}, "crop_size": {"height": 28, "width": 28}}])
def test_pictures_are_prepared_as_its_own_file_says_or_else_as_diffusers_does(
    given: dict[str, Any] | None, ip_adapters: dict[str, IpAdapterSpec], tmp_path: Path
) -> None:
    folder = shutil.copytree(ip_adapters["plain"].image_encoder, tmp_path / "encoder")
    if given is not None:
        about = {"image_processor_type": "CLIPImageProcessor", "resample": 3} | given
        (folder / "preprocessor_config.json").write_text(json.dumps(about))
    theirs = CLIPImageProcessor(**given or {"size": SIDE, "crop_size": SIDE})
    encoder = load_vision_encoder("it", "it", folder, torch.float32, CPU, half=False)
    image = np.kron(picture(3)[:30], np.ones((3, 1, 1), np.uint8))
    wanted = theirs(image, return_tensors="pt").pixel_values
    assert torch.equal(encoder._pixels_of(image), wanted)
    with torch.inference_mode():
        assert torch.equal(encoder.embed(image), encoder.network(wanted).image_embeds)


def test_what_waits_for_an_adapter_is_prepared_a_full_call_ahead_and_not_all_at_once(
    fresh: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load, prepared = threading.Event(), []
    load, prepare_one = fresh.ip_adapters._load_one, prepare

    def slow(name: str) -> IpAdapter:
        may_load.wait(timeout=60)
        return load(name)

    def noted(request: Request, *arguments: Any) -> Any:
        prepared.append(request.id)
        return prepare_one(request, *arguments)

    fresh.ip_adapters._load_one = slow
    monkeypatch.setattr(preparer_module, "prepare", noted)
    tape = Tape()
    engine = engine_of(fresh, tape, max_rows=4)
    try:
        for number in range(8):
            engine.submit(asked(fresh, f"x{number}"))
        engine.step()
        engine.cancel("x1")
        may_load.set()
        # Two rows each, of four.
        while len(prepared) < 2:
            engine._intake.begin_preparations()
            time.sleep(0.001)
        engine._intake.begin_preparations()
        assert engine._intake._preparer.unet_rows == 4
        assert prepared == ["x0", "x2"]
        engine.drain()
        assert len([name for name in tape.events if tape.of(name, Finished)]) == 7
        assert "x1" not in prepared
    finally:
        may_load.set()
        engine.close()


def test_an_engine_that_loads_an_adapter_goes_on_with_other_requests(fresh: LoadedModel) -> None:
    may_load = threading.Event()
    load = fresh.ip_adapters._load_one

    def slow(name: str) -> IpAdapter:
        may_load.wait(timeout=60)
        return load(name)

    fresh.ip_adapters._load_one = slow
    events: list[Any] = []
    engine = engine_of(fresh, events.append)
    try:
        engine.submit(asked(fresh, "waits"))
        engine.submit(request_for(fresh, "goes on", num_inference_steps=2))
        begun = time.perf_counter()
        while not any(isinstance(event, Finished) for event in events):
            engine.step()
        assert time.perf_counter() - begun < PATIENCE_S / 2
        assert [event.request_id for event in events if isinstance(event, Finished)] == ["goes on"]
        may_load.set()
        engine.drain()
    finally:
        may_load.set()
        engine.close()
    assert [event.request_id for event in events if isinstance(event, Finished)] == ["goes on", "waits"]
