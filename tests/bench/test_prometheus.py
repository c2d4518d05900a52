"""Counts read off what is exported."""

from prometheus_client.samples import Sample

from bench.clients.history import Counts
from bench.prometheus import REQUESTS, exported_counts, growth, total


def ended(value: float, outcome: str, code: str = "", worker: str = "a") -> Sample:
    return Sample(f"ray_{REQUESTS}", {"outcome": outcome, "code": code, "WorkerId": worker}, value)


def test_a_total_is_over_all_series_that_have_the_labels() -> None:
    samples = [ended(1, "finished"), ended(2, "finished", worker="b"), ended(4, "refused", "overloaded")]
    assert total(samples, REQUESTS) == 7
    assert total(samples, REQUESTS, outcome="finished") == 3
    assert total(samples, "diffusion_images_total") == 0


def test_growth_leaves_out_who_has_died() -> None:
    before = [ended(5, "finished", worker="dead"), ended(1, "finished")]
    after = [ended(3, "finished"), ended(2, "finished", worker="new")]
    assert growth(before, after, REQUESTS) == 4


def test_every_outcome_is_counted_once() -> None:
    before = [ended(10, "finished")]
    after = [
        ended(15, "finished"),
        ended(2, "finished", "numerical_failure"),
        ended(1, "broken", "internal_error"),
        ended(3, "cancelled"),
        ended(4, "refused", "overloaded"),
    ]
    assert exported_counts(before, after) == Counts("Prometheus", 11, 5, 3, 3, 4)
