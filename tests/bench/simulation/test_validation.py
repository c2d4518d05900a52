"""Reality and the simulator are compared as they should be, and a simulator that is wrong is found out."""

import numpy as np
import pytest

from bench.simulation.reality import NATIVE, Observed, lone_kind, mean_replicas
from bench.simulation.validation import LOAD, SCALING, Calibrated, Sides, compare, config_of, simulate, trace_for
from tests.bench.simulation.scenes import device

CALLS = {1: 0.04, 2: 0.06, 4: 0.1}


def calibrated(two: float = 1.0) -> Calibrated:
    easy = device(CALLS, calls={NATIVE: CALLS}, decode={NATIVE: 0.1}, native=NATIVE)
    changes = {"prepare": 0.0, "http_seconds": 0.05, "cold_start": 8.0, "provision": 0.0, "price": 0.0}
    return Calibrated(type(easy)(**{**vars(easy), **changes}), (1.0, two))


def test_each_replica_count_holds_until_the_next() -> None:
    assert mean_replicas([(0.0, 1), (10.0, 2), (30.0, 1)], 40.0) == pytest.approx(1.5)
    assert mean_replicas([(0.0, 1), (10.0, 2), (60.0, 1)], 40.0) == pytest.approx(1.75)


def test_fifteen_percent_agree_and_more_do_not() -> None:
    assert Sides("p95", 10.0, 11.4).agrees
    assert not Sides("p95", 10.0, 11.6).agrees
    assert not Sides("p95", 10.0, 8.4).agrees


def test_a_simulation_agrees_with_itself_and_not_with_one_of_a_faster_device() -> None:
    real = calibrated()
    trace = trace_for(real, seed=1)
    run = simulate(trace, real, seed=0)
    seen = Observed(dict(enumerate(run.latencies)), [(at, running) for at, running, _ in run.samples])
    assert all(side.agrees for side in compare(seen, [simulate(trace, real, seed) for seed in range(1, 4)]))
    slow = [simulate(trace, calibrated(two=1.5), seed) for seed in range(3)]
    assert not all(side.agrees for side in compare(seen, slow))


def test_the_load_needs_the_second_replica_now_and_then_and_not_always() -> None:
    run = simulate(trace_for(calibrated(), seed=1), calibrated(), seed=0)
    counts = np.array([running for _, running, _ in run.samples])
    assert (counts == 1).any()
    assert (counts == 2).any()
    assert run.seconds >= LOAD.seconds


def test_the_real_deployment_scales_as_the_simulated_one() -> None:
    deployment = config_of(autoscaling=SCALING.model_dump()).deployments[0]
    assert deployment.autoscaling == SCALING
    assert config_of(replicas=2).deployments[0].replicas == 2


def test_a_lone_request_of_the_calibration_is_what_it_says() -> None:
    kind = lone_kind(2, 30, 7.5)
    assert (kind.images, kind.steps, kind.unet_rows, kind.bucket) == (2, 30, 2, NATIVE)
    assert lone_kind(1, 10, 1.0).unet_rows == 1
