"""The fault bench on a real local Ray, cut short: a few faults under a few requests, on one server."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench.clients.goldens import ALL, Goldens, request_body
from bench.faults.__main__ import demo_goldens
from bench.faults.runs import Servers, run_row
from bench.faults.targets import misses

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(290)]

REQUESTS = 40


@pytest.fixture(scope="module")
def goldens() -> Goldens:
    return demo_goldens()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("faults")) as servers:
        yield servers


def run(name: str, servers: Servers, goldens: Goldens) -> dict[str, Any]:
    return run_row(name, servers, goldens, REQUESTS)


@pytest.mark.parametrize("name", ["sigkill-idle", "out-of-memory", "leavers"])
def test_nothing_is_lost_swapped_or_failed(name: str, servers: Servers, goldens: Goldens) -> None:
    row = run(name, servers, goldens)
    assert misses(row) == []
    assert row["sent"] == REQUESTS
    assert row["succeeded"] + row["cancelled"] == REQUESTS
    assert row["first_success_s"] is not None
    assert [counts["source"] for counts in row["counted_by"]] == [
        "the clients",
        "the server's statistics",
        "Prometheus",
    ]


def test_a_swap_would_be_seen(servers: Servers, goldens: Goldens) -> None:
    """The same run, judged by golden pictures whose names have gone round: every picture is somebody else's."""
    names = [*ALL]
    assert len({str(request_body(name)) for name in names}) == len(names)
    row = run("nan", servers, goldens.renamed(dict(zip(names, [*names[1:], names[0]], strict=True))))
    assert row["swapped"] == row["succeeded"] > REQUESTS / 2
    assert any("another's picture" in miss for miss in misses(row))
