"""Every contender gets the same work, and it is mixed."""

from collections import Counter
from collections.abc import Iterator
from statistics import mean

import pytest

from bench.engine.workload import (
    GUIDANCE,
    KINDS,
    SAMPLERS,
    STEPS,
    WEIGHTS,
    WORKLOADS,
    kind_of,
    like,
    mixed,
    request,
    text,
)
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec

SPEC = ModelSpec("any", "nowhere", native_size=64)


def schedule_of(one: Request) -> tuple[object, ...]:
    return one.params.num_inference_steps, one.params.sampler, one.params.guidance_scale


def weight_of(one: Request) -> float | None:
    return one.params.controls[0].scale if one.params.controls else one.params.strength


def pictures(one: Request, other: Request) -> Iterator[tuple[ImageArray, ImageArray]]:
    """What both bring, except masks, which come from a deck."""
    for pair in zip((one.inputs.image, *one.inputs.hints), (other.inputs.image, *other.inputs.hints), strict=True):
        if pair[0] is not None and pair[1] is not None:
            yield pair[0], pair[1]


def same(one: ImageArray, other: ImageArray) -> bool:
    return bool((one == other).all())


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_the_workload_is_the_same_every_time(workload: str) -> None:
    first, second = WORKLOADS[workload](SPEC), WORKLOADS[workload](SPEC)
    assert [one.params for one in first] == [one.params for one in second]
    assert all(same(*pair) for one, other in zip(first, second, strict=True) for pair in pictures(one, other))


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_every_repeat_is_the_same_work_on_new_pictures(workload: str) -> None:
    first, second = (WORKLOADS[workload](SPEC, repeat=repeat) for repeat in (1, 2))
    assert [schedule_of(one) for one in first] == [schedule_of(one) for one in second]
    assert [(kind_of(one), weight_of(one)) for one in first] == [(kind_of(one), weight_of(one)) for one in second]
    assert not {r.params.seed for r in first} & {r.params.seed for r in second}
    assert [r.params.prompt for r in first] != [r.params.prompt for r in second]
    assert not any(same(*pair) for one, other in zip(first, second, strict=True) for pair in pictures(one, other))


def test_every_value_is_dealt_evenly() -> None:
    params = [request.params for request in text(SPEC, 16)]
    assert Counter(one.num_inference_steps for one in params) == dict.fromkeys(STEPS, 4)
    assert Counter(one.sampler for one in params) == dict.fromkeys(SAMPLERS, 4)
    assert Counter(one.guidance_scale for one in params) == dict.fromkeys(GUIDANCE, 8)


def test_two_in_five_mixed_requests_bring_nothing_and_the_other_kinds_are_one_in_five_each() -> None:
    requests = mixed(SPEC)
    assert Counter(map(kind_of, requests)) == {kind: 4 * KINDS.count(kind) for kind in KINDS}
    for kind, weights in WEIGHTS.items():
        assert Counter(weight_of(one) for one in requests if kind_of(one) == kind) == dict.fromkeys(weights, 2)


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_no_kind_gets_more_steps_or_guidance_than_the_others(kind: str) -> None:
    """Otherwise the ratio would depend on which kind it happens to be."""
    params = [one.params for one in mixed(SPEC) if kind_of(one) == kind]
    assert mean(one.num_inference_steps for one in params) == 25
    assert mean(one.guidance_scale > 1 for one in params) == 0.5


def test_pictures_fit_and_hints_and_masks_say_something() -> None:
    for one in mixed(SPEC, size=96):
        given = (one.inputs.image, one.inputs.mask, *one.inputs.hints)
        assert all(picture is None or picture.shape[:2] == (96, 96) for picture in given)
        assert all(0 < picture.mean() < 255 for picture in (one.inputs.mask, *one.inputs.hints) if picture is not None)


def test_like_requests_are_merged_oldest_first_and_others_are_not() -> None:
    def ask(sampler: str, steps: int, guidance: float, seed: int) -> Request:
        return request(
            SPEC, f"r{seed}", prompt="a cup", seed=seed, steps=steps, sampler=sampler, guidance=guidance, size=None
        )

    requests = [
        ask("ddim", 10, 7.5, 1),
        ask("ddim", 20, 7.5, 2),
        ask("ddim", 10, 7.5, 3),
        ask("ddim", 10, 1.0, 4),
        ask("unipc", 10, 7.5, 5),
    ]
    assert like(requests) == [[0, 2], [1], [3], [4]]


def test_other_kinds_and_strengths_are_not_like() -> None:
    requests = mixed(SPEC, 40, steps=(10,), guidance=(1.0,))
    for group in like(requests):
        assert len({(kind_of(requests[index]), weight_of(requests[index])) for index in group}) == 1
    assert len(like(requests)) < len(requests)


@pytest.mark.parametrize(("workload", "groups"), [("text", 13), ("mixed", 19)])
def test_whole_request_servers_get_their_fair_share_of_like_requests(workload: str, groups: int) -> None:
    """Independent draws fall into 12.7 groups on average where 16 are for text, into 18.7 where 20 are mixed."""
    assert len(like(WORKLOADS[workload](SPEC))) == groups
