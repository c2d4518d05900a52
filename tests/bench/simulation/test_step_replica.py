"""A simulated engine takes the seconds that its calls take, and makes the calls that the real one makes."""

import random

import pytest

from bench.engine.contenders import serve_with_engine
from bench.simulation.step_replica import Host, StepReplica
from bench.simulation.trace import Kind
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import powers_of_two
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import effective_params
from deployments.engine.protocol.request import Bucket, Request
from tests.bench.simulation.scenes import DECODE, LARGE, PREPARE, SMALL, STEP, device, kind, stage

# Calls whose sizes cost differently: what is padded, and who shares with whom, shows in the seconds.
UNEVEN = {1: 1.0, 2: 1.25, 4: 1.875, 8: 3.0}


def test_a_request_alone_takes_its_preparation_its_steps_and_its_pictures() -> None:
    assert stage(StepReplica, device()).play([(0.0, kind(10))]) == [PREPARE + 10 * STEP + DECODE]
    assert stage(StepReplica, device()).play([(0.0, kind(10, num_images=3))]) == [PREPARE + 10 * STEP + 3 * DECODE]
    assert stage(StepReplica, device()).play([(0.0, kind(10, LARGE))]) == [PREPARE + 20 * STEP + DECODE]


def test_who_comes_later_joins_at_the_next_step() -> None:
    first, second = stage(StepReplica, device()).play([(0.0, kind(10)), (3.5, kind(4))])
    # Its preparation and everybody's steps take turns on one thread.
    joined = PREPARE + 4 * STEP
    assert second == joined + PREPARE + 4 * STEP + DECODE
    assert first == joined + PREPARE + 6 * STEP + DECODE


def test_shapes_take_turns() -> None:
    small, large = stage(StepReplica, device()).play([(0.0, kind(10)), (0.0, kind(5, LARGE))])
    alone = 2 * PREPARE + 10 * STEP + 5 * 2 * STEP
    assert max(small, large) == pytest.approx(alone + DECODE)
    assert min(small, large) > alone / 2


def test_more_than_fit_wait_for_places() -> None:
    ends = stage(StepReplica, device()).play([(0.0, kind(10)) for _ in range(5)])
    # One is let in at a step while others run.
    assert sorted(ends)[3] < 13 * STEP + 4 * (PREPARE + DECODE)
    assert max(ends) > 20 * STEP


def test_a_full_queue_refuses() -> None:
    with pytest.raises(Overloaded):
        stage(StepReplica, device(), queue_limit=2).play([(0.0, kind(10)) for _ in range(10)])


def test_a_neighbour_slows_calls_and_only_while_it_calls() -> None:
    host = Host((1.0, 2.0))
    alone = stage(StepReplica, device(), host=host)
    assert alone.play([(0.0, kind(10))]) == [PREPARE + 10 * STEP + DECODE]
    host.called_by(object())
    slowed = PREPARE + 2 * (10 * STEP + DECODE)
    assert stage(StepReplica, device(), host=host).play([(0.0, kind(10))]) == [slowed]


def test_a_busy_machine_slows_even_its_only_replica() -> None:
    busy = stage(StepReplica, device(), host=Host((1.5,)))
    assert busy.play([(0.0, kind(10))]) == pytest.approx([PREPARE + 1.5 * (10 * STEP + DECODE)])


@pytest.mark.parametrize("seed", range(20))
def test_calls_that_are_taken_in_one_leap_end_when_single_ones_do(seed: int) -> None:
    chance = random.Random(seed)
    buckets = (SMALL, SMALL, LARGE)
    arrivals = sorted(
        (
            (
                chance.uniform(0, 60),
                kind(chance.randint(1, 30), chance.choice(buckets), num_images=chance.randint(1, 4)),
            )
            for _ in range(12)
        ),
        key=lambda arrival: arrival[0],
    )
    leaping = stage(StepReplica, device(UNEVEN))
    # A host that could slow it makes it look at every call, and this one does not slow.
    stepping = stage(StepReplica, device(UNEVEN), host=Host((1.0, 1.0 + 1e-12)))
    assert leaping.play(arrivals) == pytest.approx(stepping.play(arrivals))
    assert leaping.replica.calls == stepping.replica.calls
    assert leaping.replica.usage.busy == pytest.approx(stepping.replica.usage.busy)


def asked_of(model: LoadedModel) -> list[Kind]:
    """More than run at once; of many lengths, with and without guidance, of one and more images."""
    asked = [
        {
            "prompt": "a red cup",
            "seed": number,
            "num_inference_steps": steps,
            "num_images": images,
            "guidance_scale": guidance,
            "sampler": "ddim",
            "priority": priority,
        }
        for number, (steps, images, guidance, priority) in enumerate(
            [
                (8, 1, 7.5, "normal"),
                (3, 2, 7.5, "low"),
                (12, 1, 1.0, "normal"),
                (5, 3, 7.5, "normal"),
                (9, 1, 7.5, "high"),
                (4, 2, 1.0, "normal"),
                (7, 1, 7.5, "low"),
                (10, 2, 7.5, "normal"),
            ]
        )
    ]
    return [Kind(effective_params(kind().params.model_validate(one), model.spec)) for one in asked]


def test_the_calls_are_those_of_the_real_engine(model: LoadedModel) -> None:
    kinds = asked_of(model)
    real = serve_with_engine([model], [Request(str(i), each.params) for i, each in enumerate(kinds)], max_rows=8)
    size = model.spec.native_size
    bucket = Bucket(model.spec.name, size, size)
    # All sizes pay, as for an engine that has measured nothing.
    calls = {rows: 0.05 * rows**0.5 for rows in powers_of_two(8)}
    played = stage(StepReplica, device(calls, calls={bucket: calls}, decode={bucket: 0.0}, native=bucket))
    played.play([(0.0, each) for each in kinds])
    assert played.replica.calls == real.unet_calls
