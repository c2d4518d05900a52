"""What becomes of requests whose replica is lost: against replicas of our own that die of some requests."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.protocol.errors import (
    EngineLost,
    EngineStopped,
    GenerationFailed,
    InvalidParameter,
    Quarantined,
)
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, Progress, Timings
from deployments.engine.protocol.inputs import Inputs, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from serve_app.backends.redis_quarantine import RedisQuarantine
from serve_app.backends.replays import QUARANTINE_SECONDS, QUARANTINE_SIZE, ReplayingBackend, fingerprint
from tests.serve_app.fakes import FakeBackend, until
from tests.serve_app.virtual_time import in_virtual_time

Attempt = Callable[[Request], AsyncGenerator[Event, None]]
Clock = Callable[[], float]

LOST = EngineLost("gone")
STOPPED = EngineStopped("not there")


def request(name: str = "r1", **asked: object) -> Request:
    fields = {"prompt": "a cup", "seed": 1, "num_images": 2, "model_name": "tiny", "width": 64, "height": 64}
    return Request(name, GenerationParams.model_validate(fields | asked))


def image(request_id: str, index: int) -> ImageDone:
    return ImageDone(request_id, index, 1 + index, "png", 64, 64, b"pixels")


def success(request_id: str) -> list[Event]:
    return [Accepted(request_id, 0), image(request_id, 0), image(request_id, 1), Finished(request_id, Timings())]


@dataclass
class Scripted:
    """Plays one list of events per attempt; the last one again and again. A list without an end waits for ever."""

    attempts: Sequence[Sequence[Event]]
    asked: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    async def __call__(self, asked: Request) -> AsyncGenerator[Event, None]:
        self.asked.append(asked.id)
        events = self.attempts[min(len(self.asked), len(self.attempts)) - 1]
        try:
            for event in events:
                yield replace(event, request_id=asked.id)
            if not isinstance(events[-1], Finished | Failed):
                await asyncio.Event().wait()
        finally:
            self.closed.append(asked.id)


def lost(*before: Event, error: EngineStopped = LOST) -> list[Event]:
    return [*before, Failed("", error)]


class Attempts(FakeBackend):
    """A deployment that does with every attempt of a request what it was told for that request."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: dict[str, Attempt] = {}

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        return self.attempts[request.id.partition(".replay")[0]](request)


class Replays(ReplayingBackend):
    """Replays over such a deployment."""

    def __init__(self, clock: Clock = time.monotonic, shared: RedisQuarantine | None = None) -> None:
        self._deployment = Attempts()
        super().__init__(self._deployment, shared, clock)

    def run(self, request: Request, attempt: Attempt) -> AsyncGenerator[Event, None]:
        """The events of `request`, of which every attempt goes as `attempt` has it."""
        self._deployment.attempts[request.id] = attempt
        return self.generate(request)


async def events_of(replays: Replays, asked: Request, attempt: Attempt) -> list[Event]:
    return [event async for event in replays.run(asked, attempt)]


async def test_a_replica_that_is_lost_is_replaced_and_nothing_is_shown_twice() -> None:
    first = lost(Accepted("", 0), image("", 0))
    second = lost(Accepted("", 3), image("", 0), Progress("", 1, 2))
    attempt, replays = Scripted([first, second, success("")]), Replays()
    events = await events_of(replays, request(), attempt)
    shown = [Accepted("r1", 0), image("r1", 0), Progress("r1", 1, 2), image("r1", 1), Finished("r1", Timings())]
    assert events == shown
    assert len(set(attempt.asked)) == 3
    assert attempt.closed == attempt.asked
    assert replays.counts == {"replays": 2}


async def test_there_are_two_replays_and_no_more() -> None:
    attempt, replays = Scripted([lost(Accepted("", 0))]), Replays()
    *_, last = await events_of(replays, request(), attempt)
    assert len(attempt.asked) == 3
    assert isinstance(last, Failed)
    assert last.request_id == "r1"
    assert isinstance(last.error, GenerationFailed)
    assert not last.error.retryable
    assert replays.counts == {"replays": 2, "quarantined": 1}


async def test_only_an_engine_that_was_lost_convicts() -> None:
    """A deployment that is not running at all says nothing against the request."""
    attempt, replays = Scripted([lost(), lost(), lost(error=STOPPED)]), Replays()
    (last,) = await events_of(replays, request(), attempt)
    assert isinstance(last, Failed)
    assert last.error is STOPPED
    (again, *_) = await events_of(replays, request("r2"), Scripted([success("")]))
    assert isinstance(again, Accepted)


async def test_a_refusal_is_passed_on_and_not_repeated() -> None:
    attempt = Scripted([[Failed("", InvalidParameter("prompt", "is too long"))]])
    (refused,) = await events_of(Replays(), request(), attempt)
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, InvalidParameter)
    assert attempt.asked == ["r1"]


async def test_the_like_of_a_convicted_request_is_refused_for_ten_minutes() -> None:
    now = 0.0
    replays = Replays(lambda: now)
    await events_of(replays, request(), Scripted([lost()]))
    now = QUARANTINE_SECONDS - 1
    fine = Scripted([success("")])
    (refused,) = await events_of(replays, request("r2", seed=99), fine)
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, Quarantined)
    assert not refused.error.retryable
    assert fine.asked == []
    assert replays.counts["quarantine_refusals"] == 1
    assert len(await events_of(replays, request("r3", prompt="a shoe"), fine)) == 4
    now = QUARANTINE_SECONDS
    assert len(await events_of(replays, request("r4"), fine)) == 4


async def test_the_quarantine_has_a_bound() -> None:
    replays = Replays()
    for number in range(QUARANTINE_SIZE + 1):
        await events_of(replays, request(prompt=f"poison {number}"), Scripted([lost()]))
    assert len(await events_of(replays, request(prompt="poison 0"), Scripted([success("")]))) == 4
    assert len(await events_of(replays, request(prompt="poison 1"), Scripted([success("")]))) == 1


async def test_last_replays_run_one_at_a_time_beside_fresh_requests() -> None:
    replays = Replays()
    suspects = [Scripted([lost(), lost(), [Accepted("", 0)]]) for _ in range(3)]
    running = [asyncio.create_task(events_of(replays, request(f"r{i}"), suspects[i])) for i in range(3)]
    await until(lambda: sum(len(suspect.asked) for suspect in suspects) == 7)
    await asyncio.sleep(0.02)
    assert [len(suspect.asked) for suspect in suspects] == [3, 2, 2]
    assert len(await events_of(replays, request("fresh"), Scripted([success("")]))) == 4
    # Leaving frees the turn, whether one has it or waits for it.
    running[1].cancel()
    running[0].cancel()
    await until(lambda: len(suspects[2].asked) == 3)
    assert len(suspects[1].asked) == 2
    assert suspects[0].closed == suspects[0].asked
    running[2].cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert len(await events_of(replays, request(), Scripted([lost(), lost(), success("")]))) == 4


async def test_closing_the_stream_of_a_replay_ends_it() -> None:
    replays, attempt = Replays(), Scripted([lost(), lost(), [Accepted("", 0)]])
    async with aclosing(replays.run(request(), attempt)) as events:
        assert await anext(events) == Accepted("r1", 0)
    assert attempt.closed == attempt.asked
    assert len(attempt.asked) == 3
    assert len(await events_of(replays, request(), Scripted([lost(), lost(), success("")]))) == 4


@dataclass
class Replica:
    """Runs everything at once, and dies of a poisonous request after `fuse` seconds; is back at once."""

    fuse: float
    died: asyncio.Event = field(default_factory=asyncio.Event)
    deaths: int = 0

    async def attempt(self, asked: Request) -> AsyncGenerator[Event, None]:
        poison = asked.params.prompt.startswith("poison")
        yield Accepted(asked.id, 0)
        died = self.died
        lasts = self.fuse if poison else float(asked.params.num_inference_steps)
        try:
            async with asyncio.timeout(lasts):
                await died.wait()
        except TimeoutError:
            if not poison:
                yield Finished(asked.id, Timings())
                return
            if not died.is_set():
                died.set()
                self.deaths, self.died = self.deaths + 1, asyncio.Event()
        yield Failed(asked.id, LOST)


async def outcomes(arrivals: Sequence[tuple[str, float, int]], fuse: float) -> list[Event]:
    """The last event of each request, given as prompt, arrival and seconds of work, on one replica."""
    replica = Replica(fuse)
    replays = Replays(asyncio.get_running_loop().time)

    async def asks(number: int, prompt: str, at: float, steps: int) -> Event:
        await asyncio.sleep(at)
        asked = request(f"r{number}", prompt=f"{prompt} {number}", num_inference_steps=steps)
        return [event async for event in replays.run(asked, replica.attempt)][-1]

    return await asyncio.gather(*(asks(number, *arrival) for number, arrival in enumerate(arrivals)))


innocent = st.tuples(st.just("a cup"), st.floats(0, 50), st.integers(1, 30))


@settings(deadline=None, max_examples=60)
@given(st.lists(innocent, max_size=12), st.floats(0, 30), st.floats(0.1, 20))
def test_no_neighbour_of_a_poisonous_request_ever_fails(
    neighbours: list[tuple[str, float, int]], at: float, fuse: float
) -> None:
    poisoned, *others = in_virtual_time(outcomes([("poison", at, 1), *neighbours], fuse))
    assert isinstance(poisoned, Failed)
    assert isinstance(poisoned.error, GenerationFailed)
    assert all(isinstance(event, Finished) for event in others)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["poison", "a cup"]), min_size=1, max_size=12))
def test_of_requests_that_came_together_only_the_poisonous_fail(prompts: list[str]) -> None:
    ends = in_virtual_time(outcomes([(prompt, 0.0, 5) for prompt in prompts], 1.0))
    assert [isinstance(end, Finished) for end in ends] == [prompt == "a cup" for prompt in prompts]


async def test_identical_poison_kills_no_more_than_three_replicas() -> None:
    replica, replays = Replica(0.01), Replays()
    asked = [request(f"r{number}", prompt="poison", seed=number) for number in range(5)]
    ends = await asyncio.gather(*(_last(replays.run(one, replica.attempt)) for one in asked))
    assert replica.deaths == 3
    assert sorted(type(end.error).__name__ for end in ends if isinstance(end, Failed)) == [
        "GenerationFailed",
        *["Quarantined"] * 4,
    ]


async def _last(events: AsyncGenerator[Event, None]) -> Event:
    return [event async for event in events][-1]


files = st.none() | st.binary(max_size=3)
uploads = st.builds(
    Uploads,
    image=files,
    mask=files,
    hints=st.lists(st.binary(max_size=3), max_size=2).map(tuple),
    preprocess=st.booleans(),
    fit=st.sampled_from(["cover", "pad"]),
)
prompts = st.sampled_from(["a cup", "a shoe"])
works = st.tuples(prompts, st.integers(1, 2), st.integers(0, 1), st.none() | uploads)


def request_of(work: tuple[str, int, int, Uploads | None], name: str, seed: int) -> Request:
    prompt, steps, previews, brought = work
    asked = request(name, prompt=prompt, num_inference_steps=steps, seed=seed)
    return replace(asked, previews=previews, uploads=brought)


@given(works, works)
def test_a_fingerprint_is_the_work_and_nothing_but_the_work(
    one: tuple[str, int, int, Uploads | None], other: tuple[str, int, int, Uploads | None]
) -> None:
    same = fingerprint(request_of(one, "r1", 1)) == fingerprint(request_of(other, "r2", 2))
    assert same == (one == other)


def test_a_fingerprint_knows_decoded_pictures() -> None:
    grey, black = np.full((8, 16, 3), 128, np.uint8), np.zeros((8, 16, 3), np.uint8)
    inputs = [Inputs(), Inputs(grey), Inputs(black), Inputs(grey.reshape(16, 8, 3)), Inputs(hints=(grey,))]
    assert len({fingerprint(replace(request(), inputs=each)) for each in inputs}) == len(inputs)
    assert fingerprint(replace(request(), inputs=inputs[1])) == fingerprint(
        replace(request("r2"), inputs=Inputs(grey.copy()))
    )


def test_no_byte_of_a_file_counts_as_the_next_files() -> None:
    pairs = [(b"ab", b"c"), (b"a", b"bc"), (b"abc", b""), (b"abc", None), (None, b"abc"), (b"", b"abc")]
    assert len({fingerprint(replace(request(), uploads=Uploads(*pair))) for pair in pairs}) == len(pairs)


async def test_a_replay_has_what_is_left_of_the_deadline() -> None:
    now, deadlines = 0.0, []

    async def attempt(asked: Request) -> AsyncGenerator[Event, None]:
        nonlocal now
        deadlines.append(asked.params.deadline_ms)
        now += 0.6
        yield Failed(asked.id, LOST)

    async for _ in Replays(lambda: now).run(request(deadline_ms=1000), attempt):
        pass
    # Too late is said by the engine, which counts it.
    assert deadlines == [1000, 400, 1]
