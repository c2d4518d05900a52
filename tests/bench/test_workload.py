"""Every contender gets the same work, and it is mixed."""

from collections import Counter

from bench.workload import GUIDANCE, SAMPLERS, STEPS, like, mixed, of_all_kinds, request
from deployments.engine.row import Request
from deployments.engine.spec import ModelSpec

SPEC = ModelSpec("any", "nowhere", native_size=64)


def kind_of(one: Request) -> tuple[object, ...]:
    return one.params.num_inference_steps, one.params.sampler, one.params.guidance_scale


def test_the_workload_is_the_same_every_time() -> None:
    assert mixed(SPEC) == mixed(SPEC)


def test_every_repeat_is_the_same_work_on_new_pictures() -> None:
    first, second = mixed(SPEC, repeat=1), mixed(SPEC, repeat=2)
    assert [kind_of(one) for one in first] == [kind_of(one) for one in second]
    assert not {r.params.seed for r in first} & {r.params.seed for r in second}
    assert [r.params.prompt for r in first] != [r.params.prompt for r in second]


def test_every_kind_is_dealt_evenly() -> None:
    params = [request.params for request in mixed(SPEC, 16)]
    assert Counter(one.num_inference_steps for one in params) == dict.fromkeys(STEPS, 4)
    assert Counter(one.sampler for one in params) == dict.fromkeys(SAMPLERS, 4)
    assert Counter(one.guidance_scale for one in params) == dict.fromkeys(GUIDANCE, 8)


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


def test_whole_request_servers_get_their_fair_share_of_like_requests() -> None:
    """16 independent draws from 4 x 4 x 2 kinds fall into 12.7 groups on average."""
    assert len(like(mixed(SPEC, 16))) == 13


def test_two_in_five_are_text_and_one_each_of_the_other_kinds() -> None:
    spec = ModelSpec("any", "nowhere", native_size=64, controlnets={"canny": "nowhere"})
    requests = of_all_kinds(spec)
    kinds = Counter((one.inputs.task, bool(one.params.controls)) for one in requests)
    assert kinds == {
        ("text-to-image", False): 8,
        ("image-to-image", False): 4,
        ("inpaint", False): 4,
        ("text-to-image", True): 4,
    }
    assert [one.params for one in requests] == [one.params for one in of_all_kinds(spec)]
    assert len(like(requests)) >= 16
