"""The nearest states of one kind are found, and none too far; the oldest leave first."""

import numpy as np
import pytest
import torch

from deployments.engine.similar.saved_states import SavedState, SavedStates, Vector


def vector(*values: float) -> Vector:
    whole = np.array(values, dtype=np.float32)
    unit: Vector = whole / np.linalg.norm(whole)
    return unit


def saved(*values: float, side: int = 4) -> SavedState:
    return SavedState(vector(*values), 3, torch.zeros(8, 4, side, side))


def test_the_nearest_come_first_and_none_is_too_far() -> None:
    states = SavedStates(10**6)
    near, nearer, far = saved(1, 0.2), saved(1, 0.1), saved(0, 1)
    for each in (near, far, nearer):
        states.add("a", each)
    found = states.find("a", vector(1, 0), 0.5, most=3)
    assert [each.saved for each in found] == [nearer, near]
    assert [each.distance for each in found] == pytest.approx([1 - 1 / 1.01**0.5, 1 - 1 / 1.04**0.5], abs=1e-6)
    assert [each.saved for each in states.find("a", vector(1, 0), 0.5, most=1)] == [nearer]
    assert states.find("a", vector(-1, 0), 0.5, most=3) == []


def test_the_index_is_exact() -> None:
    random = np.random.default_rng(1)
    states, all_saved = SavedStates(10**9), [saved(*random.normal(size=8)) for _ in range(200)]
    for each in all_saved:
        states.add("a", each)
    asked = vector(*random.normal(size=8))
    by_distance = sorted(all_saved, key=lambda each: 1 - float(each.vector @ asked))
    assert [each.saved for each in states.find("a", asked, 2.0, most=5)] == by_distance[:5]


def test_another_kind_is_never_found() -> None:
    states = SavedStates(10**6)
    states.add("a", saved(1, 0))
    assert states.find("b", vector(1, 0), 2.0, most=1) == []


def test_what_was_used_longest_ago_leaves_when_the_bytes_are_used_up() -> None:
    one, other, new = saved(1, 0), saved(0, 1), saved(1, 1)
    states = SavedStates(2 * one.bytes)
    states.add("a", one)
    states.add("b", other)
    assert states.find("a", vector(1, 0), 0.1, most=1)
    states.add("a", new)
    assert (len(states), states.bytes) == (2, 2 * one.bytes)
    assert states.find("b", vector(0, 1), 2.0, most=1) == []
    assert [each.saved for each in states.find("a", vector(1, 0), 2.0, most=3)] == [one, new]


def test_a_state_larger_than_all_that_may_be_kept_is_not_kept() -> None:
    states = SavedStates(100)
    states.add("a", saved(1, 0))
    assert (len(states), states.bytes) == (0, 0)


def test_what_began_before_all_was_forgotten_is_neither_kept_nor_told() -> None:
    states, heard = SavedStates(10**6), list[str]()
    states.tell(lambda kind, _: heard.append(kind))
    begun = states.epoch
    states.clear()
    states.add("a", saved(1, 0), begun)
    assert (len(states), heard) == (0, [])
    states.add("a", saved(1, 0), states.epoch)
    assert (len(states), heard) == (1, ["a"])
