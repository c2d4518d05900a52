"""Asking for one size after another fills no memory, and what the warm-up has learnt stays."""

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.bounded_measurements import MAX_ENTRIES
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.memory_plan import MemoryPlan

NATIVE = Bucket("m", 512, 512)


def test_what_is_learnt_of_sizes_has_a_bound_and_the_first_stays() -> None:
    costs, plan = CostModel((2, 4)), MemoryPlan(None, (2, 4))
    sizes = [Bucket("m", 64 + 8 * i, 64 + 8 * j) for i in range(40) for j in range(40)]
    for bucket in (NATIVE, *sizes):
        costs.record_call(bucket, 2, 0, 1.0 if bucket == NATIVE else 2.0)
        costs.record_call(bucket, 2, 1, 3.0)
        costs.record_decode(bucket, 1.0)
        plan.record_peak("denoise", bucket, 2, 7)
    learnt = (costs._calls, costs._controls, costs._decodes, plan._peaks)
    assert [len(each) <= MAX_ENTRIES for each in learnt] == [True] * 4
    assert costs.call_seconds(NATIVE, 2) == 1.0
    assert plan.has_measured("denoise", NATIVE, 2)
    assert plan.has_measured("denoise", sizes[-1], 2)
