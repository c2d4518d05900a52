"""A simulated deployment ends every request, pays for every second, and says what it paid for."""

import numpy as np
import pytest

from bench.simulation.cases import ENGINES, Case, Engine
from bench.simulation.cluster import KEPT_S, REFUSED, Cluster, Run
from bench.simulation.controller import fixed, ours
from bench.simulation.devices import A100
from bench.simulation.step_replica import StepReplica
from bench.simulation.trace import Mix, Phases, Rates, Trace, make_trace
from serve_app.config.deployments import AutoscalingConfig
from tests.bench.simulation.scenes import SMALL, STEP, device, kind

ONE = Mix(sizes=((SMALL, 1),), steps=((10, 1),), samplers=(("ddim", 1),), images=((1, 1),), guidance=((7.5, 1),))
FOUR_AT_ONCE_S = 10 * STEP


def trace(rates: Rates, rate: float, seconds: float, mix: Mix = ONE) -> Trace:
    return make_trace(rates, mix, rate=rate, seconds=seconds, seed=3)


def elastic(**settings: float) -> AutoscalingConfig:
    quick = {"min_replicas": 1, "max_replicas": 8, "downscale_delay_s": 60}
    return AutoscalingConfig.model_validate(quick | settings)


def crowd_then_nobody(queue_limit: int = 1000, seed: int = 0) -> Run:
    """Twice what one replica can do for ten minutes, then silence."""
    rates = Phases(((600, 1.0), (900, 0.0)))
    made = trace(rates, rate=8 / FOUR_AT_ONCE_S, seconds=rates.seconds)
    return Cluster(StepReplica, device(), ours(elastic()), made, queue_limit=queue_limit, seed=seed).run()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_request_ends(engine: Engine) -> None:
    run = Case(gpus=2, engine=engine, hours=0.25).run()
    latencies = np.frombuffer(run.latencies)
    assert len(latencies) == len(run.trace) > 500
    assert ((latencies > 0) | (latencies == REFUSED)).all()


def test_the_same_seed_gives_the_same_run() -> None:
    assert crowd_then_nobody().latencies == crowd_then_nobody().latencies
    assert crowd_then_nobody().latencies != crowd_then_nobody(seed=1).latencies


def test_replicas_come_with_a_crowd_and_go_with_it() -> None:
    samples = crowd_then_nobody().samples
    most = max(running for _, running, _ in samples)
    assert most >= 3
    # The policy's look-back, its delay, a machine, a model.
    first = next(at for at, running, _ in samples if running > 1)
    assert 100 < first < 250
    assert samples[-1][1] == 1


def test_a_replica_that_leaves_finishes_what_it_has() -> None:
    run = crowd_then_nobody()
    assert run.starts > 1
    assert REFUSED not in run.latencies


def test_what_was_paid_for_was_worked_started_or_idle() -> None:
    run = crowd_then_nobody()
    assert run.idle >= 0
    assert run.paid == pytest.approx(run.useful + run.padding + run.starting + run.idle)
    asked = len(run.trace) * 10 * STEP
    # Four guided images share a call at best, and none works alone longer than it takes.
    assert asked / 4 <= run.useful + run.padding <= asked + len(run.trace)


def test_a_fleet_that_does_not_change_pays_for_its_time() -> None:
    made = trace(Phases(((600, 1.0),)), rate=0.2, seconds=600)
    run = Cluster(StepReplica, device(), fixed(3), made, first=3).run()
    assert run.starts == 3
    assert run.starting == 0
    assert run.paid == pytest.approx(3 * run.seconds)


def test_a_machine_that_is_kept_is_taken_again_and_paid_once() -> None:
    rates = Phases(((300, 1.0), (250, 0.0), (300, 1.0), (600, 0.0)))
    made = trace(rates, rate=8 / FOUR_AT_ONCE_S, seconds=rates.seconds)
    run = Cluster(StepReplica, device(), ours(elastic(downscale_delay_s=20)), made, queue_limit=1000).run()
    waits = run.starts * (100 + 20)
    assert run.starting < waits
    # Nobody can have had more machines than wanted ones, and the kept minute of each.
    wanted = [target for _, _, target in run.samples]
    assert run.paid <= sum(wanted) * 2.0 + run.starts * (KEPT_S + 60) + 2 * run.seconds


def test_more_than_the_queue_takes_is_refused() -> None:
    run = crowd_then_nobody(queue_limit=4)
    refused = [latency == REFUSED for latency in run.latencies]
    assert 0 < sum(refused) < len(refused)


def test_load_is_spread_evenly() -> None:
    made = trace(Phases(((600, 1.0),)), rate=8 / FOUR_AT_ONCE_S, seconds=600)
    one = Cluster(StepReplica, device(), fixed(1), made, first=1, queue_limit=1000).run()
    three = Cluster(StepReplica, device(), fixed(3), made, first=3, queue_limit=1000).run()
    alone = kind(10).alone(device())
    assert np.median(np.frombuffer(three.latencies)) < 1.5 * alone
    assert np.median(np.frombuffer(one.latencies)) > 10 * alone


def test_fleets_of_any_size_are_as_full_as_the_policy_wants() -> None:
    run = Case(gpus=10, shape="steady", hours=0.25).run()
    busy = (run.useful + run.padding) / (run.paid - run.starting)
    assert 0.5 < busy < 0.9
    assert run.trace.rates.mean() * Mix().mean_row_seconds(A100) == pytest.approx(10, rel=0.02)
