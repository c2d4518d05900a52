"""What a size of pictures needs is compiled when it is first asked for, off the engine's thread."""

import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.converted_network import ConvertedNetwork
from deployments.engine.openvino.networks import OpenVinoVae
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.request import NO_INPUTS
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.steps.prepare import prepare, with_model_facts
from deployments.engine.steps.shape_compiler import PLAIN, SHALLOW, ShapeCompiler, _compile
from deployments.engine.worker.background import _chores_of
from deployments.engine.worker.model_loading import warm_model
from tests.deployments.engine.harness import request_for, run
from tests.deployments.engine.tiny import TOKENS

SIZES = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def model(fast_controlled: LoadedModel) -> LoadedModel:
    """Converted: both networks have made a picture."""
    run(fast_controlled, [request_for(fast_controlled, "first", num_inference_steps=1)])
    return fast_controlled


@pytest.fixture(scope="module")
def new_model(tiny_checkpoint: Path, tiny_controlnets: dict[str, str], components: Components) -> LoadedModel:
    """As a program has it for its first request: only what pictures of any kind need was called once."""
    spec = ModelSpec("new", str(tiny_checkpoint), controlnets=tiny_controlnets)
    loaded = load_model(spec, torch.device("cpu"), torch.float32, components)
    warm_model(loaded, {net.network for net in loaded.controlnets.values()})
    return loaded


def sizes_compiled(model: LoadedModel, side: int) -> set[int]:
    """The batch sizes that the UNet is compiled for, at `side` latents."""
    programs = dict(model.unet._run._programs)
    return {key[0][0] for key, found in programs.items() if key[0][2:] == (side, side) and found.program}


def decodes(model: LoadedModel, side: int) -> bool:
    return any(key[0][2:] == (side, side) for key in dict(model.vae._decode._programs))


def request_state(model: LoadedModel, side: int, inputs: Inputs = NO_INPUTS, **asked: Any) -> Any:
    pixels = side * model.factor
    request = with_model_facts(request_for(model, str(side), inputs, width=pixels, height=pixels, **asked), model)
    return prepare(request, model, time.perf_counter())


@pytest.mark.parametrize(
    ("side", "asked", "own"), [(10, {}, 2), (11, {"guidance_scale": 1}, 1), (12, {"exact": True}, 8)]
)
def test_what_a_request_needs_alone_is_compiled_before_it_is_ready_and_the_rest_beside_it(
    side: int, asked: dict[str, Any], own: int, model: LoadedModel
) -> None:
    shapes = ShapeCompiler(SIZES)
    shapes.compile_for(request_state(model, side, **asked), model, (), 8)
    assert own in sizes_compiled(model, side)
    shapes._threads.submit(lambda: None).result(timeout=120)
    shapes.close()
    assert sizes_compiled(model, side) == set(SIZES[-1:] if asked.get("exact") else SIZES)
    assert decodes(model, side)


CANNY, AVERAGES = {"type": "canny"}, {"type": "shuffle"}

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several images": {"num_images": 3},
    "exact": {"exact": True},
    "guided for a while": {"guidance_interval": (0.3, 0.7)},
    "a long prompt": {"prompt": "a cup, " * 60},
    "ControlNet": {"controls": (CANNY,)},
    "ControlNet without guidance": {"controls": (CANNY,), "guidance_scale": 1},
    "ControlNet for a while": {"controls": (CANNY | {"start": 0.3, "end": 0.7},)},
    "ControlNet that guesses": {"controls": (CANNY,), "guess_mode": True},
    "ControlNet that answers with averages": {"controls": (AVERAGES,)},
    "two ControlNets": {"controls": (CANNY, AVERAGES), "num_images": 2},
    "exact with a ControlNet": {"controls": (CANNY,), "exact": True},
    "deep blocks left out": {"deep_cache": 2},
    "deep blocks left out, guided for a while": {"deep_cache": 3, "guidance_interval": (0.3, 0.7)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_thread_compiles_and_converts_nothing_for_a_request_alone(
    kind: str, new_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side of its own for each: nothing was compiled for it before."""
    pixels = (10 + list(KINDS).index(kind)) * new_model.factor
    asked = KINDS[kind]
    hints = tuple(np.full((pixels, pixels, 3), 90, dtype=np.uint8) for _ in asked.get("controls", ()))
    request = request_for(new_model, kind, Inputs(hints=hints), width=pixels, height=pixels, **asked)
    threads: set[str] = set()

    def recording(function: Any) -> Any:
        def record(*given: Any, **named: Any) -> Any:
            threads.add(threading.current_thread().name)
            return function(*given, **named)

        return record

    monkeypatch.setattr(Compiler, "compile", recording(Compiler.compile))
    monkeypatch.setattr(ConvertedNetwork, "_prepare", recording(ConvertedNetwork._prepare))
    run(new_model, [request], max_rows=8)
    assert threads
    assert threading.current_thread().name not in threads


def test_what_is_asked_for_later_is_compiled_with_all_that_was_asked_for_before(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain request with a long prompt may share a call with a controlled one with a short prompt."""
    begun: list[Any] = []
    shapes = ShapeCompiler(SIZES)
    monkeypatch.setattr(shapes, "_begin", lambda _, each: begun.append(() if each.keywords else each.args))
    hint = Inputs(hints=(np.full((64, 64, 3), 90, dtype=np.uint8),))
    shapes.compile_for(request_state(model, 8, hint, controls=(CANNY,)), model, (), 8)
    shapes.compile_for(request_state(model, 8, prompt="a cup, " * 60), model, (), 8)
    shapes.close()
    asked = {(kind[1:], rows, tokens) for kind, rows, _, _, tokens in filter(None, begun)}
    needed = {("none",): SIZES, ("whole",): (1, 2), ("canny",): (1, 2)}
    tokens = {each[2] for each in asked}
    assert len(tokens) == 2
    assert asked == {(kind, rows, each) for kind, sizes in needed.items() for rows in sizes for each in tokens}


def test_each_kind_of_call_is_compiled_for_all_shapes_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    shapes = ShapeCompiler(SIZES)
    monkeypatch.setattr(shapes, "_begin", lambda _, each: begun.append(each))
    hint = Inputs(hints=(np.full((64, 64, 3), 90, dtype=np.uint8),))
    for side in (14, 15):
        shapes.compile_for(request_state(model, side), model, (), 8)
        shapes.compile_for(request_state(model, side, deep_cache=2), model, (), 8)
    shapes.compile_for(request_state(model, 8, hint, controls=(CANNY,)), model, (), 8)
    shapes.close()
    for_all = [each.args[0][1:] for each in begun if each.keywords.get("for_all")]
    assert sorted(for_all) == [(), ("canny",), ("none",), ("whole",)]


def test_the_engines_thread_compiles_nothing_for_shapes_that_nobody_foresaw(
    new_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, made = 8 * new_model.factor, []
    run(new_model, [request_for(new_model, "first", deep_cache=2)])
    for kind in (PLAIN, SHALLOW):
        _compile(kind, 1, 8, 8, TOKENS, new_model, for_all=True)
    threads: set[str] = set()
    compile_one = Compiler.compile

    def record(*given: Any, **named: Any) -> Any:
        threads.add(threading.current_thread().name)
        return compile_one(*given, **named)

    monkeypatch.setattr(ShapeCompiler, "compile_for", lambda *_: None)
    monkeypatch.setattr(Compiler, "compile", record)
    monkeypatch.setattr(OpenVinoVae, "decode", lambda *_, **__: (torch.zeros(1, 3, 4 * side, 5 * side),))
    crowd: dict[str, dict[str, Any]] = {
        "short": {},
        "long": {"prompt": "a cup, " * 60},
        "three": {"num_images": 3, "guidance_interval": (0.3, 0.7)},
        "without deep blocks": {"deep_cache": 3},
    }
    asked = [request_for(new_model, name, width=5 * side, height=4 * side, **more) for name, more in crowd.items()]
    tape, _ = run(new_model, asked, max_rows=8)
    for request in asked:
        made += tape.images(request.id)
    assert len(made) == 6
    assert threads == {"compile-unforeseen_0"}


def test_what_joins_others_is_compiled_for_the_call_that_they_share(model: LoadedModel) -> None:
    shapes = ShapeCompiler(SIZES)
    shapes._threads.shutdown()
    shapes._begin = lambda *_: None  # type: ignore[method-assign]
    hint = Inputs(hints=(np.full((64, 64, 3), 90, dtype=np.uint8),))
    controlled, plain = request_state(model, 9, hint, controls=(CANNY,)), request_state(model, 9)
    shapes.compile_for(plain, model, [controlled.request], 8)
    with_maps = {key[0][0] for key in dict(model.unet._run._programs) if key[0][2:] == (9, 9) and key[-2]}
    assert with_maps == {4}
    assert sizes_compiled(model, 9) == {4}


def test_a_model_that_leaves_is_not_kept_by_what_was_to_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ShapeCompiler(SIZES)
    model, may_go_on = Mock(), threading.Event()
    done: list[object] = []
    shapes._threads.submit(may_go_on.wait)
    shapes._begin(model, done.append)
    gone = weakref.ref(model)
    del model
    assert gone() is None
    may_go_on.set()
    shapes._threads.submit(lambda: None).result(timeout=60)
    shapes.close()
    assert not done


def test_the_native_size_is_compiled_for_all_calls_while_nothing_runs(model: LoadedModel) -> None:
    height, _ = model.spec.native
    for chore in _chores_of(model, SIZES):
        if isinstance(chore, partial) and chore.func in {LoadedModel.compile_unet, LoadedModel.compile_decoder}:
            chore(model)
    assert sizes_compiled(model, height // model.factor) >= set(SIZES)
    assert decodes(model, height // model.factor)


def test_a_size_is_compiled_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    shapes = ShapeCompiler(SIZES)
    monkeypatch.setattr(shapes, "_begin", lambda *each: begun.append(each))
    for seed in (1, 2):
        shapes.compile_for(request_state(model, 8, seed=seed), model, (), 8)
    assert len(begun) == 2 + len(SIZES)
    shapes.close()


def test_a_shape_that_cannot_be_compiled_beforehand_fails_nobody_yet(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    shapes = ShapeCompiler(SIZES)
    monkeypatch.setattr(model.vae, "compile_for", fail)
    shapes.compile_for(request_state(model, 13), model, (), 8)
    shapes._threads.submit(lambda: None).result(timeout=120)
    shapes.close()
    assert sizes_compiled(model, 13) == set(SIZES)
    assert "could not be compiled beforehand" in caplog.text


def test_torch_has_nothing_to_compile(tiny_model: LoadedModel) -> None:
    shapes = ShapeCompiler(SIZES)
    with torch.inference_mode():
        shapes.compile_for(request_state(tiny_model, 8), tiny_model, (), 8)
    shapes.close()
