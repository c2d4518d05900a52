"""An image that continues another one's state goes on as that one did, and tells so; nobody else's is touched."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed, ImageDone
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import HiresSettings
from deployments.engine.similar.saved_states import SavedStates
from deployments.engine.similar.state_reuse import NOT_THE_STATE, kind_of, saved_step
from tests.deployments.engine.harness import Tape, difference, engine_of, request_for
from tests.serve_app.generation.test_fingerprint import OTHER_PARAMS

STEPS = 8
SAVED = saved_step(STEPS)


def similar(model: LoadedModel, name: str, seed: int = 1, **asked: Any) -> Request:
    """A request as the service makes it: its seed was drawn."""
    settings: dict[str, Any] = {"sampler": "dpmpp_2m", "num_inference_steps": STEPS} | asked
    request = request_for(model, name, cache="similar", **settings)
    return replace(request, params=request.params.model_copy(update={"seed": seed}), seed_drawn=True)


def request_like(model: LoadedModel, **asked: Any) -> Request:
    return similar(model, "x", **({"prompt": "a red cup"} | asked))


def make(engine: Engine, *requests: Request) -> None:
    for request in requests:
        engine.submit(request)
        engine.drain()
        engine.reuse._threads.submit(lambda: None).result(timeout=60)


def steps_of(tape: Tape, name: str) -> list[int]:
    """What each image of a request took over."""
    return [0 if each.continued is None else each.continued.steps for each in tape.of(name, ImageDone)]


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def engine(tiny_model: LoadedModel, tape: Tape) -> Any:
    engine = engine_of(tiny_model, tape, similar_distance=2.0)
    yield engine
    engine.close()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "pndm", "unipc", "heun"])
def test_the_same_prompt_goes_on_to_the_same_picture_to_the_byte(
    sampler: str, tiny_model: LoadedModel, engine: Engine, tape: Tape
) -> None:
    """A sampler that draws no noise remembers all that it needs in the state."""
    first, second = (similar(tiny_model, n, seed=i, prompt="a cup", sampler=sampler) for i, n in enumerate("ab"))
    make(engine, first, second)
    assert difference(tape.images("a")[0], tape.images("b")[0]) == 0
    (done,) = tape.of("b", ImageDone)
    assert done.continued is not None
    assert done.continued.steps > 0
    assert done.continued.distance == pytest.approx(0, abs=1e-6)
    assert steps_of(tape, "a") == [0]
    counted = engine.tracker.total
    assert (counted.continued, counted.saved_steps) == (1, done.continued.steps)


def test_a_near_prompt_takes_over_the_first_steps_and_makes_the_others(
    tiny_model: LoadedModel, engine: Engine, tape: Tape
) -> None:
    make(engine, similar(tiny_model, "a", prompt="a red cup"))
    before = engine.tracker.total.row_steps
    make(engine, similar(tiny_model, "b", seed=2, prompt="a blue cup"))
    assert steps_of(tape, "b") == [SAVED]
    assert engine.tracker.total.row_steps - before == STEPS - SAVED
    assert difference(tape.images("a")[0], tape.images("b")[0]) > 0


def test_a_prompt_that_is_too_far_begins_from_noise(tiny_model: LoadedModel, tape: Tape) -> None:
    engine = engine_of(tiny_model, tape, similar_distance=1e-6)
    make(engine, similar(tiny_model, "a", prompt="a red cup"), similar(tiny_model, "b", prompt="two ships at sea"))
    make(engine, replace(similar(tiny_model, "c", prompt="two ships at sea"), seed_drawn=True))
    engine.close()
    assert [steps_of(tape, name) for name in "abc"] == [[0], [0], [SAVED]]


def test_every_image_of_a_request_continues_another_state(tiny_model: LoadedModel, engine: Engine, tape: Tape) -> None:
    make(engine, similar(tiny_model, "a", num_images=2, prompt="a cup"))
    make(engine, similar(tiny_model, "b", seed=9, num_images=3, prompt="a cup"))
    assert sorted(steps_of(tape, "b")) == [0, SAVED, SAVED]
    one, two, three = tape.images("b")
    assert min(difference(one, two), difference(one, three), difference(two, three)) > 0


def test_neighbours_are_what_they_are_without_it(tiny_model: LoadedModel, engine: Engine, tape: Tape) -> None:
    make(engine, similar(tiny_model, "a", prompt="a cup"))
    plain = request_for(tiny_model, "plain", num_inference_steps=STEPS)
    for request in (plain, similar(tiny_model, "b", prompt="a cup")):
        engine.submit(request)
    engine.drain()
    make(engine, replace(plain, id="alone"))
    assert difference(tape.images("plain")[0], tape.images("alone")[0]) <= 1
    assert steps_of(tape, "plain") == [0]


def test_only_those_who_ask_leave_states(tiny_model: LoadedModel, engine: Engine, tape: Tape) -> None:
    make(engine, request_for(tiny_model, "a", prompt="a cup", num_inference_steps=STEPS))
    assert len(engine.reuse.states) == 0
    make(engine, similar(tiny_model, "b", prompt="a cup"), similar(tiny_model, "c", prompt="a cup"))
    assert len(engine.reuse.states) == 1


def test_every_parameter_is_decided_and_those_of_the_state_make_another_kind(tiny_model: LoadedModel) -> None:
    request = request_like(tiny_model)
    assert set(OTHER_PARAMS) >= set(GenerationParams.model_fields) - NOT_THE_STATE
    for name in GenerationParams.model_fields:
        other = replace(request, params=request.params.model_copy(update={name: OTHER_PARAMS.get(name)}))
        assert (kind_of(other) == kind_of(request)) == (name in NOT_THE_STATE), name


def test_tenants_loras_and_embeddings_make_another_kind(tiny_model: LoadedModel) -> None:
    request = request_like(tiny_model)
    lora = LoraUse(LoraFile("coffee", "/x.safetensors", digest="1" * 64), 1.0)
    others = [
        replace(request, tenant="other"),
        replace(request, loras=(lora,)),
        replace(request, loras=(replace(lora, scale=0.5),)),
        replace(request, embeddings=(EmbeddingFile("style", "style", "/x.safetensors", "2" * 64, 1, 32),)),
    ]
    assert len({kind_of(each) for each in (request, *others)}) == 1 + len(others)


def test_an_image_that_is_not_finite_begins_again_from_noise_of_its_own(
    tiny_model: LoadedModel, engine: Engine, tape: Tape
) -> None:
    make(engine, similar(tiny_model, "a", prompt="a cup"))
    poisoned = SavedStates(10**9)
    for saved, kind in engine.reuse.states._kinds.items():
        poisoned.add(kind, replace(saved, state=torch.full_like(saved.state, float("nan"))))
    engine.reuse.states = poisoned
    make(engine, similar(tiny_model, "b", seed=2, prompt="a cup"))
    assert steps_of(tape, "b") == [0]
    assert engine.tracker.total.retries == 1
    make(engine, request_for(tiny_model, "c", seed=2, prompt="a cup", num_inference_steps=STEPS, sampler="dpmpp_2m"))
    assert difference(tape.images("b")[0], tape.images("c")[0]) <= 1


def test_a_state_that_is_not_finite_is_not_saved(engine: Engine, tiny_model: LoadedModel) -> None:
    embedding = torch.ones(3, 4)
    for value, kept in ((float("nan"), 0), (float("inf"), 0), (1.0, 1)):
        engine.reuse._keep("kind", embedding, 3, torch.full((8, 4, 2, 2), value), epoch=0)
        assert len(engine.reuse.states) == kept


def test_an_image_that_had_begun_when_states_were_forgotten_leaves_none(
    tiny_model: LoadedModel, engine: Engine, tape: Tape
) -> None:
    heard: list[str] = []
    engine.reuse.states.tell(lambda kind, _: heard.append(kind))
    request = similar(tiny_model, "a", prompt="a cup")
    engine.submit(request)
    while not engine.running.rows:
        engine.step()
    engine.reuse.states.clear()
    engine.drain()
    engine.reuse._threads.submit(lambda: None).result(timeout=60)
    assert (len(tape.images("a")), len(engine.reuse.states), heard) == (1, 0, [])
    make(engine, replace(request, id="b"))
    assert (len(engine.reuse.states), heard) == (1, [kind_of(request)])


def test_where_it_is_off_it_is_refused_by_name(tiny_model: LoadedModel, tape: Tape) -> None:
    engine = engine_of(tiny_model, tape, similar_memory_bytes=0)
    make(engine, similar(tiny_model, "a"))
    engine.close()
    (failed,) = tape.of("a", Failed)
    assert isinstance(failed.error, InvalidParameter)
    assert (failed.error.field, "switched off" in failed.error.message) == ("cache", True)


@pytest.mark.parametrize(
    "asked", [{"exact": True}, {"deep_cache": 2}, {"hires": HiresSettings()}, {"controls": ({"type": "canny"},)}]
)
def test_what_cannot_begin_from_a_state_is_refused(asked: dict[str, Any], tiny_model: LoadedModel) -> None:
    with pytest.raises(InvalidParameter, match="similar") as caught:
        similar(tiny_model, "a", **asked)
    assert caught.value.field == "cache"
