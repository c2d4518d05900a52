"""What one replica saved, others find; a Redis that breaks, or holds garbage, costs the sharing and nothing else."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.redis_server import RedisServer, redis_server
from deployments.sharing import packed_state, shared_log
from deployments.sharing.spec import generation_key
from deployments.sharing.state_sharing import MAX_WAITING
from deployments.signing.secret_source import SecretSource
from tests.deployments.sharing.conftest import KIND, OTHER_KIND, Replica, saved, spec_at, values_of, wait_until

Join = Callable[..., Replica]

STATE_BYTES = len(packed_state.pack("test:states:0123456789abcdef:" + "f" * 97, KIND, saved(), b"key"))
"""A small one's, roughly."""


def has(replica: Replica, *values: float) -> bool:
    return values_of(replica.states) == list(values)


def index_of(inside: "redis.Redis") -> bytes:
    names: Any = inside.keys("test:states:*:index")
    (name,) = names
    return bytes(name)


def states_in(inside: "redis.Redis") -> list[bytes]:
    names: Any = inside.keys("test:states:*")
    return [name for name in names if name.count(b":") == 4 and not name.endswith(b":index")]


def test_what_one_replica_saved_another_one_finds(join: Join) -> None:
    one, other = join(), join()
    one.states.add(KIND, saved(1.0))
    other.states.add(OTHER_KIND, saved(2.0))
    wait_until(lambda: has(other, 1.0))
    wait_until(lambda: values_of(one.states, OTHER_KIND) == [2.0])
    told = one.sharing.report()
    assert (told.sent, told.received, told.dropped, told.damaged, told.failures) == (1, 1, 0, 0, 0)
    assert (len(one.states), len(other.states)) == (2, 2)


def test_a_new_replica_begins_with_what_the_others_have(join: Join) -> None:
    one = join()
    for value in (1.0, 2.0, 3.0):
        one.states.add(KIND, saved(value))
    wait_until(lambda: one.sharing.report().sent == 3)
    one.close()
    assert_late = join()
    wait_until(lambda: has(assert_late, 1.0, 2.0, 3.0))


def test_a_new_replica_reads_no_more_than_it_may_keep(join: Join) -> None:
    one = join()
    for value in range(6):
        one.states.add(KIND, saved(float(value)))
    wait_until(lambda: one.sharing.report().sent == 6)
    late = join(memory=3 * STATE_BYTES + 500)
    wait_until(lambda: has(late, 3.0, 4.0, 5.0))
    assert late.sharing.report().received == 3


@pytest.mark.parametrize("changes", [{"family": "e" * 64}, {"prefix": "elsewhere:"}])
def test_another_family_and_another_prefix_share_nothing(changes: dict[str, str], join: Join) -> None:
    one, other = join(), join(**changes)
    one.states.add(KIND, saved(1.0))
    other.states.add(KIND, saved(2.0))
    wait_until(lambda: one.sharing.report().sent == other.sharing.report().sent == 1)
    time.sleep(0.1)
    assert has(one, 1.0)
    assert has(other, 2.0)


def test_what_was_signed_with_another_key_is_not_used(join: Join) -> None:
    forger, other = join(key=SecretSource(file=Path(packed_state.__file__))), join()
    forger.states.add(KIND, saved())
    wait_until(lambda: other.sharing.report().damaged == 1)
    assert has(other)


def test_what_is_forgotten_is_forgotten_everywhere_and_gone(join: Join, inside: "redis.Redis") -> None:
    one, other = join(), join()
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: has(other, 1.0))
    inside.set(generation_key("test:"), "0123456789abcdef")
    wait_until(lambda: has(one) and has(other))
    wait_until(lambda: not states_in(inside))
    late = join()
    one.states.add(KIND, saved(2.0))
    for each in (other, late):
        wait_until(lambda each=each: has(each, 2.0))  # type: ignore[misc]


def test_the_oldest_leave_redis_when_its_bytes_are_used_up(join: Join, inside: "redis.Redis") -> None:
    one = join(max_bytes=3 * STATE_BYTES + 500)
    for sent, value in enumerate((1.0, 2.0, 3.0, 4.0, 5.0), 1):
        one.states.add(KIND, saved(value))
        wait_until(lambda sent=sent: one.sharing.report().sent == sent)  # type: ignore[misc]
    wait_until(lambda: len(states_in(inside)) == 3)
    assert inside.xlen(index_of(inside)) == 3
    late = join()
    wait_until(lambda: has(late, 3.0, 4.0, 5.0))


def test_everything_in_redis_ends_by_itself(join: Join, inside: "redis.Redis") -> None:
    join(ttl_s=100).states.add(KIND, saved())
    wait_until(lambda: len(states_in(inside)) == 1)
    ends: list[Any] = [inside.ttl(name) for name in (index_of(inside), *states_in(inside))]
    assert all(0 < end <= 100 for end in ends)


def test_states_that_are_older_than_they_may_be_leave_the_index(join: Join, inside: "redis.Redis") -> None:
    one = join(ttl_s=1)
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: one.sharing.report().sent == 1)
    inside.persist(index_of(inside))
    time.sleep(1.2)
    one.states.add(KIND, saved(2.0))
    wait_until(lambda: one.sharing.report().sent == 2)
    wait_until(lambda: inside.xlen(index_of(inside)) == 1)


def test_a_state_that_is_too_large_stays_here(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_log, "MAX_STATE_BYTES", STATE_BYTES + 500)
    one, other = join(), join()
    one.states.add(KIND, saved(1.0, side=64))
    one.states.add(KIND, saved(2.0))
    wait_until(lambda: has(other, 2.0))
    wait_until(lambda: (one.sharing.report().sent, one.sharing.report().dropped) == (1, 1))
    assert has(one, 1.0, 2.0)


GARBAGE = {
    "no state": lambda redis, name: redis.set(name, b"\x80\x04 a pickle"),
    "too long": lambda redis, name: redis.set(name, bytes(2 * STATE_BYTES)),
    "a cut one": lambda redis, name: redis.set(name, redis.get(name)[:-1]),
    "another type": lambda redis, name: (redis.delete(name), redis.lpush(name, "x")),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_in_a_state_s_place_is_counted_and_not_used(
    garbage: Callable[[Any, bytes], object], join: Join, inside: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_log, "MAX_STATE_BYTES", STATE_BYTES + 500)
    one = join()
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: len(states_in(inside)) == 1)
    garbage(inside, states_in(inside)[0])
    one.states.add(KIND, saved(2.0))
    other = join()
    wait_until(lambda: has(other, 2.0))
    assert (other.sharing.report().damaged, other.sharing.report().failures) == (1, 0)


def test_a_state_that_has_gone_is_no_damage(join: Join, inside: "redis.Redis") -> None:
    """Redis may drop what has an end when it is full."""
    one = join()
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: len(states_in(inside)) == 1)
    inside.delete(*states_in(inside))
    one.states.add(KIND, saved(2.0))
    other = join()
    wait_until(lambda: has(other, 2.0))
    assert other.sharing.report().damaged == 0


@pytest.mark.parametrize(
    "line",
    [
        {"more": "x"},
        {"name": "../x", "writer": "a" * 32, "bytes": "1"},
        {"name": "a" * 32, "writer": "b" * 32, "bytes": "-1"},
        {"name": "a" * 32, "writer": "b" * 32, "bytes": "9" * 12},
    ],
    ids=range(4),
)
def test_a_line_of_another_form_is_counted_and_passed_over(line: Any, join: Join, inside: "redis.Redis") -> None:
    one = join()
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: len(states_in(inside)) == 1)
    inside.xadd(index_of(inside), line)
    one.states.add(KIND, saved(2.0))
    other = join()
    wait_until(lambda: has(other, 1.0, 2.0))
    assert (other.sharing.report().damaged, other.sharing.report().failures) == (1, 0)


def test_an_index_of_another_type_is_replaced(join: Join, inside: "redis.Redis") -> None:
    one, other = join(), join()
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: has(other, 1.0))
    name = index_of(inside)
    with inside.pipeline(transaction=True) as pipe:
        pipe.delete(name)
        pipe.set(name, "x")
        pipe.execute()
    wait_until(lambda: inside.type(name) != b"string")
    one.states.add(KIND, saved(2.0))
    wait_until(lambda: has(other, 1.0, 2.0))


@pytest.mark.parametrize("type_", ["string", "list"])
def test_a_generation_of_another_form_is_replaced_and_nothing_forgotten(
    type_: str, join: Join, inside: "redis.Redis"
) -> None:
    one, other = join(), join()
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: has(other, 1.0))
    key = generation_key("test:")
    before = inside.get(key)
    with inside.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        pipe.set(key, "../x") if type_ == "string" else pipe.lpush(key, "x")
        pipe.execute()
    wait_until(lambda: inside.type(key) == b"string" and inside.get(key) == before)
    assert has(one, 1.0)
    assert one.sharing.report().damaged + other.sharing.report().damaged >= 1


def test_a_redis_that_has_lost_everything_is_shared_through_again(join: Join, inside: "redis.Redis") -> None:
    one, other = join(), join()
    one.states.add(KIND, saved(1.0))
    wait_until(lambda: has(other, 1.0))
    inside.flushall()
    other.states.add(KIND, saved(2.0))
    wait_until(lambda: has(one, 1.0, 2.0))
    assert has(other, 1.0, 2.0)


def test_a_redis_that_dies_and_comes_back_costs_what_was_saved_meanwhile(quick: None) -> None:
    with redis_server() as server:
        one, other = Replica(spec_at(server.url), 10**8), Replica(spec_at(server.url), 10**8)
        one.states.add(KIND, saved(1.0))
        wait_until(lambda: has(other, 1.0))
        server.stop()
        begun = time.monotonic()
        for value in range(2, 5 + MAX_WAITING):
            one.states.add(KIND, saved(float(value)))
        assert time.monotonic() - begun < 0.1
        wait_until(lambda: not one.sharing.report().is_well and not other.sharing.report().is_well)
        # Here they are found all the same.
        assert len(one.states) == 4 + MAX_WAITING
        wait_until(lambda: one.sharing.report().dropped > 0)
        server.start()
        wait_until(lambda: one.sharing.report().is_well)
        one.states.add(KIND, saved(99.0))
        wait_until(lambda: 99.0 in values_of(other.states))
        told = one.sharing.report()
        assert told.sent + told.dropped == len(one.states)
        one.close()
        other.close()


def test_a_redis_that_is_silent_holds_nobody_up(quick: None) -> None:
    with redis_server() as server:
        one = Replica(spec_at(server.url), 10**8)
        one.states.add(KIND, saved(1.0))
        wait_until(lambda: one.sharing.report().sent == 1)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        one.states.add(KIND, saved(2.0))
        assert has(one, 1.0, 2.0)
        assert time.monotonic() - begun < 0.1
        wait_until(lambda: one.sharing.report().failures > 0)
        one.close()
        assert not one.sharing._thread.is_alive()
        os.kill(server.process.pid, signal.SIGCONT)


def test_a_redis_that_takes_no_more_is_a_failure_and_no_damage(quick: None) -> None:
    with redis_server("--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as server:
        one = Replica(spec_at(server.url), 10**8)
        one.states.add(KIND, saved(1.0, side=64))
        wait_until(lambda: one.sharing.report().failures > 0)
        assert (one.sharing.report().dropped, one.sharing.report().damaged) == (1, 0)
        assert has(one, 1.0)
        one.close()


def test_a_burst_is_bounded(server: RedisServer, inside: "redis.Redis") -> None:
    """States come as quickly as images are made; what waits for Redis is memory."""
    one = Replica(spec_at("redis://127.0.0.1:1/0"), 10**8)
    for value in range(3 * MAX_WAITING):
        one.states.add(KIND, saved(float(value)))
    wait_until(lambda: one.sharing.report().failures > 0)
    assert one.sharing.report().dropped >= MAX_WAITING
    assert one.sharing._waiting.qsize() <= MAX_WAITING
    one.close()
