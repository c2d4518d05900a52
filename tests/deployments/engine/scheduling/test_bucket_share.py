"""Buckets share the device fairly. No torch."""

from collections import Counter

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.bucket_share import BucketShare

SMALL, LARGE = Bucket("m", 64, 64), Bucket("m", 128, 128)
COST = {SMALL: 1.0, LARGE: 4.0}


def seconds_used(share: BucketShare, turns: int, rows: int = 1) -> Counter[Bucket]:
    used: Counter[Bucket] = Counter()
    for _ in range(turns):
        bucket = share.choose((SMALL, LARGE))
        assert bucket is not None
        share.charge(bucket, COST[bucket], ["normal"] * rows)
        used[bucket] += int(COST[bucket])
    return used


def test_nothing_to_run_is_none() -> None:
    assert BucketShare().choose(()) is None


def test_time_is_shared_by_cost_and_not_by_count() -> None:
    used = seconds_used(BucketShare(), turns=100)
    assert abs(used[SMALL] - used[LARGE]) <= 4


def test_a_bill_that_comes_when_the_bucket_is_gone_is_no_error() -> None:
    share = BucketShare()
    share.choose((SMALL,))
    share.choose((LARGE,))
    share.charge(SMALL, 1.0, ["normal"])
    assert share.choose((SMALL, LARGE)) is not None


def test_a_newcomer_neither_waits_nor_takes_over() -> None:
    share = BucketShare()
    for _ in range(50):
        share.charge(share.choose((SMALL,)) or SMALL, 1.0, ["normal"])
    used = seconds_used(share, turns=50)
    assert abs(used[SMALL] - used[LARGE]) <= 4


def test_a_bucket_with_more_rows_gets_more_time() -> None:
    share, used = BucketShare(), Counter[Bucket]()
    rows = {SMALL: 3, LARGE: 1}
    for _ in range(200):
        bucket = share.choose((SMALL, LARGE))
        assert bucket is not None
        share.charge(bucket, 1.0, ["normal"] * rows[bucket])
        used[bucket] += 1
    assert 2.8 <= used[SMALL] / used[LARGE] <= 3.2


def test_a_bucket_with_higher_priorities_gets_more_time() -> None:
    share, used = BucketShare(), Counter[Bucket]()
    for _ in range(200):
        bucket = share.choose((SMALL, LARGE))
        assert bucket is not None
        share.charge(bucket, 1.0, ["high" if bucket == SMALL else "normal"])
        used[bucket] += 1
    assert 1.8 <= used[SMALL] / used[LARGE] <= 2.2
