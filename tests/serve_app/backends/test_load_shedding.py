"""A full deployment's refusal is believed for a moment, and for that tenant only."""

import pytest

from deployments.engine.protocol.errors import InvalidParameter, Overloaded
from deployments.engine.protocol.events import Accepted, Failed
from serve_app.backends.load_shedding import BELIEVED_S, REMEMBERED, LoadShedder

FULL = Failed("r1", Overloaded("the queue is full", 3.0))


def is_shed(shedder: LoadShedder, tenant: str = "") -> bool:
    try:
        shedder.check(tenant)
    except Overloaded:
        return True
    return False


def test_who_is_shed_hears_what_the_engine_said() -> None:
    shedder = LoadShedder(lambda: 0.0)
    shedder.record("", FULL)
    with pytest.raises(Overloaded, match="the queue is full") as caught:
        shedder.check("")
    assert caught.value.retry_after == 3.0


def test_a_refusal_is_believed_for_a_moment() -> None:
    now = 10.0
    shedder = LoadShedder(lambda: now)
    assert not is_shed(shedder)
    shedder.record("", FULL)
    assert is_shed(shedder)
    now += BELIEVED_S / 2
    assert is_shed(shedder)
    now += BELIEVED_S
    assert not is_shed(shedder)


def test_another_tenant_may_find_room() -> None:
    shedder = LoadShedder(lambda: 0.0)
    shedder.record("flood", FULL)
    assert not is_shed(shedder, "other")


def test_a_place_that_is_free_sooner_is_asked_for_sooner() -> None:
    now = 0.0
    shedder = LoadShedder(lambda: now)
    shedder.record("", Failed("r1", Overloaded("full", 0.1)))
    now = 0.15
    assert not is_shed(shedder)


@pytest.mark.parametrize("event", [Accepted("r1", 0), Failed("r1", InvalidParameter("width", "is odd"))])
def test_nothing_else_sheds(event: Accepted | Failed) -> None:
    shedder = LoadShedder(lambda: 0.0)
    shedder.record("", event)
    assert not is_shed(shedder)


def test_a_flood_of_tenants_takes_bounded_memory() -> None:
    shedder = LoadShedder(lambda: 0.0)
    for n in range(2 * REMEMBERED):
        shedder.record(str(n), FULL)
    assert len(shedder._full) == REMEMBERED
