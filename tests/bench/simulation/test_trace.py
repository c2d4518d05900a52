"""Traces are what their shape says, the same for the same seed, and alike for fleets of all sizes."""

import numpy as np
import pytest

from bench.simulation.devices import A100, GPUS, NATIVE, Device
from bench.simulation.trace import SHAPES, Mix, Phases, Trace, make_trace


def trace(shape: str = "day and bursts", rate: float = 2.0, hours: float = 24.0, seed: int = 0) -> Trace:
    return make_trace(SHAPES[shape], Mix(), rate=rate, seconds=hours * 3600, seed=seed)


def test_the_same_seed_gives_the_same_trace() -> None:
    one, other = trace(), trace()
    assert np.array_equal(one.at, other.at)
    assert np.array_equal(one.kind, other.kind)
    assert not np.array_equal(one.at[:100], trace(seed=1).at[:100])


def test_requests_come_in_order_within_the_time_and_as_many_as_were_expected() -> None:
    made = trace()
    assert (np.diff(made.at) >= 0).all()
    assert made.at[0] >= 0
    assert made.at[-1] <= made.seconds
    assert len(made) == pytest.approx(made.rates.sum(), rel=0.02)


@pytest.mark.parametrize("shape", ["steady", "day"])
def test_the_mean_over_a_day_is_the_rate(shape: str) -> None:
    assert trace(shape).rates.mean() == pytest.approx(2.0, rel=0.02)


def test_a_day_has_a_night() -> None:
    rates = trace("day").rates
    assert rates[:3600].mean() < 0.5 * rates.mean()
    assert rates[12 * 3600 : 13 * 3600].mean() > 1.5 * rates.mean()


def test_fleets_of_all_sizes_have_the_same_day() -> None:
    small, large = trace(rate=0.5), trace(rate=50.0, hours=24.0)
    assert np.allclose(100 * small.rates, large.rates)


def test_phases_are_kept_to_the_second() -> None:
    phases = Phases(((10, 0.5), (20, 3.0)))
    made = make_trace(phases, Mix(), rate=2.0, seconds=phases.seconds, seed=0)
    assert made.rates.tolist() == [1.0] * 10 + [6.0] * 20


def test_kinds_come_as_often_as_the_mix_says() -> None:
    mix = Mix(images=((1, 3), (4, 1)))
    made = make_trace(SHAPES["steady"], mix, rate=20.0, seconds=3600, seed=0)
    images = np.array([kind.images for kind in made.kinds])[made.kind]
    assert (images == 4).mean() == pytest.approx(0.25, abs=0.01)
    assert mix.mean_images() == pytest.approx(1.75)
    assert images.mean() == pytest.approx(1.75, rel=0.02)


def test_the_mean_work_is_the_mean_of_what_is_drawn() -> None:
    mix = Mix()
    made = make_trace(SHAPES["steady"], mix, rate=20.0, seconds=3600, seed=0)
    row = A100.costs().row_seconds
    work = [
        kind.images * (kind.steps * kind.unet_rows * row(kind.bucket) + A100.decode[kind.bucket]) for kind in made.kinds
    ]
    assert np.array(work)[made.kind].mean() == pytest.approx(mix.mean_row_seconds(A100), rel=0.03)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_lone_request_is_slower_than_its_share_of_a_full_call(gpu: Device) -> None:
    # Or batching would be no use, and the model of the device no model of it.
    costs = gpu.costs()
    assert costs.knee(NATIVE) > 2
    assert costs.call_seconds(NATIVE, 2) / 2 > costs.row_seconds(NATIVE)
