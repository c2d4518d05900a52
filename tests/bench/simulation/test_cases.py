"""Cases have names of their own, settings that production takes, and the same day for all."""

import numpy as np
import pytest

from bench.simulation.cases import HEADROOM, STUDIES, Case


@pytest.mark.parametrize("study", STUDIES)
def test_no_two_cases_of_a_study_have_the_same_name(study: str) -> None:
    keys = [case.key for case in STUDIES[study]()]
    assert len(set(keys)) == len(keys)
    assert not any(set(key) & set(" ,/") for key in keys)


@pytest.mark.parametrize("study", STUDIES)
def test_every_case_has_settings_that_production_takes(study: str) -> None:
    for case in STUDIES[study]():
        assert case.config.max_replicas >= HEADROOM * case.gpus


def test_an_engine_or_a_policy_changes_nothing_about_the_load() -> None:
    ours = Case(gpus=2, hours=1.0).trace()
    theirs = Case(gpus=2, hours=1.0, engine="whole", policy="ray").trace()
    assert np.array_equal(ours.at, theirs.at)
    assert np.array_equal(ours.kind, theirs.kind)


def test_hours_of_less_than_a_day_are_those_around_noon() -> None:
    noon = Case(gpus=2, hours=1.0, shape="day").trace()
    assert noon.rates.mean() > 1.3 * Case(gpus=2, shape="day").trace().rates.mean()


def test_what_is_reported_says_what_it_is_of() -> None:
    told = Case(gpus=1, hours=0.05, settings={"target_fill": 0.5}).figures()
    assert told["case"]["settings"] == {"target_fill": 0.5}
    assert 0 < told["attainment"] <= 1
    assert told["samples"][0][0] == 0
    assert len(told["load"]) > 1
