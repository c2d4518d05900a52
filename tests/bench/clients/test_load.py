"""The open-loop load. Its server is a function here, and its clock is real."""

import asyncio
import time
from random import Random
from statistics import mean, pstdev

import pytest

from bench.clients.load import Call, Clock, arrivals, drive, let_some_leave, saturate, steady_calls


def clock_from_now() -> Clock:
    started = time.monotonic()
    return lambda: time.monotonic() - started


async def test_arrivals_do_not_wait_for_answers() -> None:
    """Ten calls within 0.2 s, though each answer takes 0.5 s: a closed loop would take five seconds."""
    clock = clock_from_now()
    asked: list[float] = []

    async def slow(_: Call) -> None:
        asked.append(clock())
        await asyncio.sleep(0.5)

    await drive([Call(str(i), i * 0.02, "cup") for i in range(10)], slow, clock)
    assert len(asked) == 10
    assert max(asked) < 0.4
    assert clock() >= 0.18 + 0.5


async def test_a_call_is_asked_when_it_is_due_and_not_before() -> None:
    clock = clock_from_now()
    asked: dict[str, float] = {}

    async def note(call: Call) -> None:
        asked[call.id] = clock()

    await drive([Call("late", 0.2, "cup"), Call("early", 0.05, "cup")], note, clock)
    assert list(asked) == ["early", "late"]
    assert asked["early"] >= 0.05
    assert 0.2 <= asked["late"] < 0.4


async def test_drive_returns_when_all_have_ended() -> None:
    ended: list[str] = []

    async def slow(call: Call) -> None:
        await asyncio.sleep(0.1 if call.id == "slow" else 0)
        ended.append(call.id)

    await drive([Call("slow", 0.0, "cup"), Call("quick", 0.0, "cup")], slow, clock_from_now())
    assert ended == ["quick", "slow"]


async def test_a_load_that_breaks_is_not_hidden() -> None:
    async def broken(_: Call) -> None:
        raise RuntimeError("a slip in the client")

    with pytest.raises(ExceptionGroup):
        await drive([Call("one", 0.0, "cup")], broken, clock_from_now())


async def test_a_saturating_caller_waits_for_its_answer() -> None:
    at_once, most = 0, 0

    async def slow(_: Call) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1

    await saturate(3, 0.1, ("cup",), slow, clock_from_now())
    assert most == 3


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps of mean 1/rate, as spread as their mean; evenly spaced ones would never come in bunches."""
    times = list(arrivals(5.0, 5000, Random(1)))
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert pstdev(gaps) == pytest.approx(0.2, rel=0.1)
    assert times == sorted(times)


def test_equal_arguments_give_equal_loads() -> None:
    arguments = ("row", 4.0, 50, ("cup", "star"))
    assert steady_calls(*arguments, seed=1) == steady_calls(*arguments, seed=1)
    assert steady_calls(*arguments, seed=1) != steady_calls(*arguments, seed=2)


def test_a_steady_load_uses_both_doors_and_all_pictures() -> None:
    calls = steady_calls("row", 4.0, 50, ("cup", "star"), seed=1, start=7.0)
    assert len({call.id for call in calls}) == 50
    assert {call.delivery for call in calls} == {"json", "stream"}
    assert {call.wanted for call in calls} == {"cup", "star"}
    assert min(call.at for call in calls) > 7.0


def test_about_the_share_that_is_said_leaves() -> None:
    calls = let_some_leave(steady_calls("row", 4.0, 1000, ("cup",), seed=1), 0.5, (0.1, 0.4), seed=2)
    stays = [call.stays for call in calls if call.stays is not None]
    assert 450 < len(stays) < 550
    assert 0.1 <= min(stays) < max(stays) <= 0.4
