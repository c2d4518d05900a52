"""The nearest tier keeps what was used last, within its bytes."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.protocol.events import ImageDone
from serve_app.cache.entry import CacheEntry
from serve_app.cache.memory_tier import MemoryTier
from serve_app.generation.fingerprint import Fingerprint


def entry(work: str, seed: int = 1, data: bytes = b"") -> CacheEntry:
    return CacheEntry(Fingerprint(work, seed), (ImageDone("", 0, seed, "png", 64, 64, data),), 1.0, 0.0)


SIZE = entry("a").size


def test_the_one_that_was_not_used_for_longest_goes() -> None:
    tier = MemoryTier(2 * SIZE)
    a, b, c = entry("a"), entry("b"), entry("c")
    tier.put(a)
    tier.put(b)
    assert tier.get(a.fingerprint.key) is a
    tier.put(c)
    assert [tier.get(each.fingerprint.key) for each in (a, b, c)] == [a, None, c]
    assert (len(tier), tier.bytes, tier.evictions) == (2, 2 * SIZE, 1)


def test_one_that_does_not_fit_puts_nobody_out() -> None:
    tier = MemoryTier(SIZE)
    a, large = entry("a"), entry("b", data=b"b")
    tier.put(a)
    tier.put(large)
    assert tier.get(a.fingerprint.key) is a
    assert tier.get(large.fingerprint.key) is None
    assert tier.evictions == 0


def test_the_latest_of_a_work_is_found_whatever_its_seed_while_it_is_here() -> None:
    tier = MemoryTier(2 * SIZE)
    first, second = entry("a", seed=1), entry("a", seed=2)
    work = first.fingerprint.work_key
    tier.put(first)
    tier.put(second)
    assert tier.latest(work) is second
    tier.drop(first.fingerprint)
    assert tier.latest(work) is second
    tier.drop(second.fingerprint)
    assert tier.latest(work) is None
    tier.put(first)
    tier.clear()
    assert (tier.latest(work), tier.get(first.fingerprint.key), len(tier), tier.bytes) == (None, None, 0, 0)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 2), st.integers(0, 3 * SIZE)), max_size=30))
def test_it_never_holds_more_than_it_may_and_knows_how_much_it_holds(puts: list[tuple[str, int, int]]) -> None:
    tier = MemoryTier(3 * SIZE)
    for work, seed, length in puts:
        tier.put(entry(work, seed, bytes(length)))
        held = {put[:2]: found for put in puts if (found := tier.get(Fingerprint(*put[:2]).key))}
        assert tier.bytes == sum(each.size for each in held.values()) <= 3 * SIZE
        assert len(tier) == len(held)
        for work in "abcd":
            latest = tier.latest(Fingerprint(work, 0).work_key)
            assert latest is None or latest.fingerprint.work == work
