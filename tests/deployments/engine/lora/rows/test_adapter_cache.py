"""LoRAs are kept within a budget, read once, and refused where they cannot be applied."""

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

import pytest

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.rows.adapter_cache import AdapterCache, share_for_loras
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.models.adaptation import adapted_base
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import DoesNotFit, InvalidParameter, Overloaded
from deployments.engine.protocol.events import Accepted, Failed, ImageDone
from deployments.engine.protocol.files.loras import LoraFile
from tests.deployments.engine.harness import Tape, engine_of, prepare_all, request_for, run
from tests.deployments.engine.lora.rows.loras import TinyLora, reading, with_loras

LORAS: Final = {name: TinyLora(name, seed, 4) for seed, name in enumerate("abcd")}


class Bench:
    """A cache of the tiny model's LoRAs, and what is read and in use."""

    def __init__(self, model: LoadedModel, budget: int | None) -> None:
        self.read: list[str] = []
        self.used: list[LoraSet] = []
        read = reading(LORAS, self.read)
        self.cache = AdapterCache(read, lambda _: adapted_base(model), lambda: self.used, budget)

    def begin(self, *names: str, scale: float = 1.0) -> Future[LoraSet]:
        return self.cache.begin("tiny", tuple(LORAS[name].use(scale) for name in names))

    def claim(self, *names: str) -> LoraSet:
        return self.cache.claim("tiny", self.begin(*names))

    def get(self, *names: str) -> LoraSet:
        claimed = self.claim(*names)
        self.cache.release(claimed)
        return claimed

    def close(self) -> None:
        """Waits until all that was begun has been read, and kept or not."""
        self.cache.close()


@pytest.fixture
def one_size(tiny_model: LoadedModel) -> int:
    """The bytes of one of the LoRAs."""
    return Bench(tiny_model, None).get("a").bytes


def test_the_least_recently_used_leaves_first(tiny_model: LoadedModel, one_size: int) -> None:
    bench = Bench(tiny_model, 2 * one_size)
    for name in "abacab":
        bench.get(name)
    assert bench.read == ["a", "b", "c", "b"]
    report = bench.cache.report()
    assert (report.loaded, report.held_bytes, report.reads, report.evictions) == (2, 2 * one_size, 4, 2)


def test_what_is_in_use_never_leaves(tiny_model: LoadedModel, one_size: int) -> None:
    bench = Bench(tiny_model, 2 * one_size)
    bench.used += [bench.get("a"), bench.get("b")]
    with pytest.raises(Overloaded):
        bench.get("c")
    assert bench.get("a") is bench.used[0]
    assert bench.get("b") is bench.used[1]
    del bench.used[0]
    bench.get("c")
    assert bench.get("b") is bench.used[0]


def test_all_that_is_not_in_use_leaves_when_something_else_needs_the_room(
    tiny_model: LoadedModel, one_size: int
) -> None:
    bench = Bench(tiny_model, None)
    bench.used.append(bench.get("a"))
    bench.get("b")
    bench.cache.evict_unused()
    assert bench.cache.count_bytes() == one_size
    assert bench.get("a") is bench.used[0]
    bench.get("b")
    assert bench.read == ["a", "b", "b"]


def test_what_is_read_and_never_claimed_keeps_to_the_budget(tiny_model: LoadedModel, one_size: int) -> None:
    """Callers that count tokens, or leave before their turn, claim nothing."""
    bench = Bench(tiny_model, 2 * one_size)
    bench.used.append(bench.get("a"))
    for number in range(8):
        bench.begin("b", scale=1 + number / 8).result()
    bench.begin("c", "d").result()
    bench.close()
    assert bench.cache.count_bytes() <= 2 * one_size
    assert bench.cache.begin("tiny", (LORAS["a"].use(),)).result() is bench.used[0]


def test_what_is_claimed_never_leaves_before_it_is_in_use(tiny_model: LoadedModel, one_size: int) -> None:
    bench = Bench(tiny_model, one_size)
    claimed = bench.claim("a")
    with pytest.raises(Overloaded):
        bench.claim("b")
    assert bench.get("a") is claimed
    bench.cache.release(claimed)
    bench.get("b")
    assert bench.read == ["a", "b", "b"]


def test_what_left_before_its_request_came_to_claim_it_is_kept_again(tiny_model: LoadedModel, one_size: int) -> None:
    bench = Bench(tiny_model, one_size)
    waits = bench.begin("a")
    waits.result()
    bench.get("b")
    claimed = bench.cache.claim("tiny", waits)
    assert claimed is waits.result()
    assert bench.get("a") is claimed
    assert bench.cache.count_bytes() == one_size
    assert bench.read == ["a", "b"]


def test_nothing_is_kept_of_what_could_not_be_read(tiny_model: LoadedModel) -> None:
    def read(file: LoraFile) -> Adapter:
        raise InvalidParameter("loras", f"injected: {file.name} is damaged")

    cache = AdapterCache(read, lambda _: adapted_base(tiny_model), tuple)
    for number in range(4):
        with pytest.raises(InvalidParameter):
            cache.begin("tiny", (LORAS["a"].use(number), LORAS["b"].use(number))).result()
    cache.close()
    assert not cache._kept


def test_a_request_whose_preparation_fails_or_that_leaves_claims_nothing_any_more(tiny_model: LoadedModel) -> None:
    tape = Tape()
    engine = engine_of(tiny_model, tape, read_adapter=reading(LORAS))
    too_long = request_for(tiny_model, "too long", prompt="a cup " * 300)
    try:
        for request in (too_long, request_for(tiny_model, "leaves"), request_for(tiny_model, "stays")):
            engine.submit(with_loras(request, LORAS["a"].use()))
        prepare_all(engine)
        assert len(engine.adapters._claimed) == 3
        engine.cancel("leaves")
        while not tape.of("stays", Accepted):
            engine.step()
        assert not engine.adapters._claimed
        assert len(engine.tracker.loras_in_use()) == 1
        assert tape.of("too long", Failed)
    finally:
        engine.close()


def test_one_that_exceeds_the_budget_alone_is_refused_and_keeps_nobody_out(
    tiny_model: LoadedModel, one_size: int
) -> None:
    bench = Bench(tiny_model, one_size)
    bench.get("a")
    with pytest.raises(DoesNotFit):
        bench.get("b", "c")
    assert bench.cache.count_bytes() <= one_size
    bench.get("d")


def test_one_that_returns_after_an_eviction_gives_the_same_bytes(tiny_model: LoadedModel, one_size: int) -> None:
    read: list[str] = []
    tape = Tape()
    engine = engine_of(tiny_model, tape, read_adapter=reading(LORAS, read), lora_memory_bytes=one_size)
    for i, name in enumerate("aba"):
        request = request_for(tiny_model, f"{i}", prompt="a cup", num_inference_steps=4)
        engine.submit(with_loras(request, LORAS[name].use()))
        engine.drain()
    engine.close()
    assert read == ["a", "b", "a"]
    first, _, again = (tape.of(f"{i}", ImageDone)[0].data for i in range(3))
    assert first == again


def test_equal_requests_wait_for_one_reading(tiny_model: LoadedModel) -> None:
    bench = Bench(tiny_model, None)
    uses = (LORAS["a"].use(), LORAS["b"].use())
    for _ in range(3):
        bench.cache.prefetch("tiny", uses)
    united = bench.cache.begin("tiny", uses).result()
    assert bench.cache.begin("tiny", uses).result() is united
    assert sorted(bench.read) == ["a", "b"]
    assert bench.cache.report().hits == 4


def test_reading_goes_on_beside_steps(tiny_model: LoadedModel) -> None:
    """A row that runs is not held up by a LoRA that is being read."""
    may_read, tape = threading.Event(), Tape()

    def read_late(file: LoraFile) -> Adapter:
        assert may_read.wait(60)
        return LORAS[file.name].adapter()

    engine = engine_of(tiny_model, tape, read_adapter=read_late)
    engine.submit(request_for(tiny_model, "plain", num_inference_steps=4))
    while not tape.of("plain", Accepted):
        engine.step()
    engine.submit(with_loras(request_for(tiny_model, "changed", num_inference_steps=4), LORAS["a"].use()))
    while not tape.images("plain"):
        engine.step()
    assert not tape.of("changed", Accepted)
    may_read.set()
    engine.drain()
    engine.close()
    assert len(tape.images("changed")) == 1


def _of_another_base(adapter: Adapter) -> Adapter:
    return replace(adapter, layers={"unet": {"conv_in": adapter.layers["unet"]["mid_block_attentions_0_proj_in"]}})


def test_what_cannot_be_applied_is_refused_and_costs_no_step(tiny_model: LoadedModel) -> None:
    asked = [with_loras(request_for(tiny_model, "bad"), LORAS["a"].use()), request_for(tiny_model, "good")]
    tape, _ = run(tiny_model, asked, read_adapter=lambda file: _of_another_base(LORAS[file.name].adapter()))
    (refused,) = tape.of("bad", Failed)
    assert isinstance(refused.error, InvalidParameter)
    assert refused.error.field == "loras"
    assert len(tape.images("good")) == 1


def test_a_file_that_could_not_be_read_is_read_again_for_the_next_request(tiny_model: LoadedModel) -> None:
    attempts: list[str] = []

    def read(file: LoraFile) -> Adapter:
        attempts.append(file.name)
        if len(attempts) == 1:
            raise RuntimeError("the disk is away")
        return LORAS[file.name].adapter()

    cache = AdapterCache(read, lambda _: adapted_base(tiny_model), tuple)
    uses = (LORAS["a"].use(),)
    with pytest.raises(RuntimeError):
        cache.begin("tiny", uses).result()
    assert cache.begin("tiny", uses).result().uses == uses


def test_loras_take_no_more_than_a_quarter_of_the_memory() -> None:
    assert [share_for_loras(100, memory) for memory in (None, 1000, 100)] == [100, 100, 25]
