"""The forecast, compared with a simulation step by step. No torch."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.bucket_share import BucketShare
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.forecast import PlannedWork, forecast

SIZES = (1, 2, 4, 8)
SMALL, LARGE = Bucket("m", 64, 64), Bucket("m", 128, 128)


def costs() -> CostModel:
    made = CostModel(SIZES)
    for size in SIZES:
        made.record_call(SMALL, size, 0, 0.1 + 0.05 * size)
        made.record_call(LARGE, size, 0, 0.2 + 0.2 * size)
    return made


def test_a_request_alone_takes_its_steps() -> None:
    estimate = forecast([], [PlannedWork("a", SMALL, 10, 2)], lambda _: 8, costs())["a"]
    assert estimate.start == 0
    assert estimate.finish == pytest.approx(10 * 0.2)


def test_decoding_comes_on_top_one_after_the_other() -> None:
    measured = costs()
    measured.record_decode(SMALL, 0.5)
    estimate = forecast([], [PlannedWork("a", SMALL, 10, 2, images=3)], lambda _: 8, measured)["a"]
    assert estimate.finish == pytest.approx(10 * 0.5 + 3 * 0.5)


def test_rows_with_loras_take_what_these_have_been_seen_to_add() -> None:
    measured = costs()
    measured.record_call(SMALL, 4, 0, 0.4, changed_rows=4)
    works = [PlannedWork("a", SMALL, 10, 2, changed=True), PlannedWork("b", SMALL, 10, 2)]
    assert forecast([], works, lambda _: 8, measured)["a"].finish == pytest.approx(10 * (0.3 + 2 * 0.025))


def test_what_finds_no_room_starts_when_the_first_row_is_done() -> None:
    running = [PlannedWork("a", SMALL, 5, 2), PlannedWork("b", SMALL, 9, 2)]
    estimates = forecast(running, [PlannedWork("c", SMALL, 4, 2)], lambda _: 4, costs())
    assert estimates["c"].start == pytest.approx(5 * 0.3)
    assert estimates["c"].finish == pytest.approx(9 * 0.3)


def test_buckets_share_the_device() -> None:
    estimates = forecast([PlannedWork("a", SMALL, 10, 2), PlannedWork("b", LARGE, 10, 2)], [], lambda _: 8, costs())
    assert estimates["b"].finish == pytest.approx(10 * 0.2 + 10 * 0.6)


def test_what_is_larger_than_the_room_still_runs_alone() -> None:
    assert forecast([], [PlannedWork("a", SMALL, 3, 2)], lambda _: 1, costs())["a"].finish > 0


def play(works: list[PlannedWork], room: int, measured: CostModel) -> dict[str, float]:
    """When each of `works` ends, by the engine's own rules."""
    waiting = {bucket: deque(work for work in works if work.bucket == bucket) for bucket in (SMALL, LARGE)}
    rows: dict[Bucket, list[PlannedWork]] = {}
    share, now, ends = BucketShare(), 0.0, {}
    while any(waiting.values()) or rows:
        for bucket, line in waiting.items():
            while line and sum(work.unet_rows for work in rows.get(bucket, ())) + line[0].unet_rows <= room:
                rows.setdefault(bucket, []).append(line.popleft())
        chosen = share.choose(rows)
        assert chosen is not None
        seconds = measured.call_seconds(chosen, sum(work.unet_rows for work in rows[chosen]))
        share.charge(chosen, seconds, ["normal"] * len(rows[chosen]))
        now += seconds
        for work in rows[chosen]:
            work.steps -= 1
            if work.steps == 0:
                ends[work.request_id] = now
        rows = {each: left for each, works in rows.items() if (left := [work for work in works if work.steps])}
    return ends


@settings(max_examples=60)
@given(
    works=st.lists(
        st.tuples(st.sampled_from((SMALL, LARGE)), st.integers(8, 40), st.integers(1, 2)), min_size=1, max_size=20
    )
)
def test_the_forecast_is_what_happens(works: list[tuple[Bucket, int, int]]) -> None:
    def made() -> list[PlannedWork]:
        return [PlannedWork(str(i), bucket, steps, rows) for i, (bucket, steps, rows) in enumerate(works)]

    foretold = forecast([], made(), lambda _: 8, costs())
    for name, end in play(made(), 8, costs()).items():
        assert foretold[name].finish == pytest.approx(end, rel=0.2, abs=1.5)
