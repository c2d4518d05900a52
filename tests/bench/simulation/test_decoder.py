"""Pictures beside UNet calls: on a shared device both are slower, on one's own nothing is."""

from bench.simulation.decoder import Decoder
from bench.simulation.job import Job, Usage
from deployments.engine.protocol.request import Request
from tests.bench.simulation.scenes import kind


class Studio:
    def __init__(self, overlap: float) -> None:
        self.usage = Usage()
        self.ends: list[float] = []
        self.decoder = Decoder(overlap, self.usage, lambda job, at: self.ends.append(at))

    def add(self, seconds: float) -> None:
        asked = kind()
        self.decoder.add(Job(0, asked, Request("0", asked.params), 0.0, 1.0), seconds)


def test_on_a_device_of_its_own_a_call_is_not_slowed() -> None:
    studio = Studio(overlap=0.0)
    studio.add(2.0)
    assert studio.decoder.beside(10.0, 5.0) == 15.0
    assert studio.ends == [12.0]
    assert studio.usage.busy == 0.0


def test_on_a_shared_device_both_take_twice_as_long_while_they_overlap() -> None:
    studio = Studio(overlap=1.0)
    studio.add(2.0)
    assert studio.decoder.beside(10.0, 5.0) == 17.0
    assert studio.ends == [14.0]
    assert studio.usage.useful == 2.0


def test_a_picture_goes_on_in_the_next_call() -> None:
    studio = Studio(overlap=1.0)
    studio.add(2.0)
    assert studio.decoder.beside(0.0, 1.0) == 2.0
    assert studio.ends == []
    assert studio.decoder.beside(2.0, 5.0) == 8.0
    assert studio.ends == [4.0]


def test_what_was_decoded_on_an_idle_device_counts_when_calls_begin_again() -> None:
    studio = Studio(overlap=1.0)
    studio.add(2.0)
    assert studio.decoder.rest(0.0) == 2.0
    studio.decoder.interrupted(1.5)
    assert studio.decoder.beside(1.5, 5.0) == 7.0
    assert studio.ends == [2.5]


def test_one_picture_after_the_other() -> None:
    studio = Studio(overlap=0.0)
    studio.add(1.0)
    studio.add(1.0)
    studio.decoder.beside(0.0, 5.0)
    assert studio.ends == [1.0, 2.0]
    assert not studio.decoder
