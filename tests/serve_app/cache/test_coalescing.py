"""Work that several want is done once, belongs to nobody, and ends when nobody wants it any more."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from deployments.engine.protocol.errors import Cancelled, EngineStopped, GenerationFailed
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, Progress, Timings
from serve_app.cache.coalescing import RequestCoalescer
from tests.serve_app.fakes import until

IMAGE = ImageDone("r", 0, 7, "png", 64, 64, b"png")
END = Finished("r", Timings())
LOST = Failed("r", EngineStopped("gone"))
CANCELLED = Failed("r", Cancelled())


class Work:
    """Does what it is told, step by step, and knows how often it was begun and how often it was ended early."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.steps: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    def __call__(self) -> AsyncGenerator[Event, None]:
        self.begun += 1
        return self._do()

    def tell(self, *steps: Event | Exception | None) -> None:
        """None is an end without a last word."""
        for step in steps:
            self.steps.put_nowait(step)

    async def _do(self) -> AsyncGenerator[Event, None]:
        try:
            while (step := await self.steps.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                yield step
                if isinstance(step, Finished | Failed):
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.ended += 1
            raise


class Listener:
    """A request that follows the work, on a task of its own."""

    def __init__(self, coalescer: RequestCoalescer, work: Work, name: str, key: Any = "work") -> None:
        self.heard: list[Event] = []
        self.task = asyncio.create_task(self._listen(coalescer, work, name, key))

    async def _listen(self, coalescer: RequestCoalescer, work: Work, name: str, key: Any) -> None:
        async with aclosing(coalescer.follow(name, key, work)) as events:
            async for event in events:
                self.heard.append(event)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


async def listeners(coalescer: RequestCoalescer, work: Work, *names: str, key: Any = "work") -> list[Listener]:
    """In the order of their names; the first is the one that the work is begun for."""
    made = [Listener(coalescer, work, name, key) for name in names]
    await until(lambda: work.begun > 0)
    await asyncio.sleep(0)
    return made


async def test_it_is_done_once_and_everybody_hears_it_under_its_own_name() -> None:
    coalescer, work = RequestCoalescer(), Work()
    a, b = await listeners(coalescer, work, "a", "b")
    work.tell(Accepted("r", 3), Progress("r", 1, 2))
    await until(lambda: len(b.heard) == 2)
    (late,) = await listeners(coalescer, work, "late")
    work.tell(IMAGE, END)
    await asyncio.gather(a.task, b.task, late.task)
    assert work.begun == 1
    assert (work.ended, coalescer.joined) == (0, 2)
    for listener, name, source in ((a, "a", "made"), (b, "b", "shared"), (late, "late", "shared")):
        told = [
            Accepted(name, 3, source=source),  # type: ignore[arg-type]
            Progress(name, 1, 2),
            replace(IMAGE, request_id=name),
            replace(END, request_id=name),
        ]
        assert listener.heard == told


async def test_progress_that_nobody_read_gives_way_and_nothing_else_does() -> None:
    coalescer, work = RequestCoalescer(), Work()
    other = replace(IMAGE, index=1)
    work.tell(Accepted("r", 0), *(Progress("r", step, 9) for step in range(9)), IMAGE, Progress("r", 9, 9), other, END)
    (a,) = await listeners(coalescer, work, "a")
    await a.task
    heard = [event if isinstance(event, Progress) else type(event) for event in a.heard]
    assert heard[0] is Accepted
    assert [each for each in heard if isinstance(each, type)] == [Accepted, ImageDone, ImageDone, Finished]
    steps = [each.step for each in heard if isinstance(each, Progress)]
    assert steps[-2:] == [8, 9]


@pytest.mark.parametrize("leaves", ["a", "b"])
async def test_whoever_leaves_the_others_get_their_images(leaves: str) -> None:
    coalescer, work = RequestCoalescer(), Work()
    both = dict(zip("ab", await listeners(coalescer, work, "a", "b"), strict=True))
    work.tell(Accepted("r", 0))
    await until(lambda: all(each.heard for each in both.values()))
    await both.pop(leaves).leave()
    work.tell(IMAGE, END)
    (stays,) = both.values()
    await stays.task
    assert [type(event) for event in stays.heard] == [Accepted, ImageDone, Finished]
    assert (work.begun, work.ended) == (1, 0)


async def test_it_ends_at_once_when_the_last_one_leaves_and_who_comes_then_begins_anew() -> None:
    coalescer, work = RequestCoalescer(), Work()
    a, b = await listeners(coalescer, work, "a", "b")
    await a.leave()
    assert work.ended == 0
    await b.leave()
    assert work.ended == 1
    (c,) = await listeners(coalescer, work, "c")
    work.tell(Accepted("r", 0), IMAGE, END)
    await c.task
    assert work.begun == 2
    assert c.heard[0] == Accepted("c", 0)


@pytest.mark.parametrize(
    "loss", [LOST, CANCELLED, RuntimeError("bug"), None], ids=["stopped", "cancelled", "broken", "no last word"]
)
async def test_work_that_is_lost_is_lost_for_one_and_begun_anew_for_the_others(loss: Event | Exception | None) -> None:
    coalescer, work = RequestCoalescer(), Work()
    a, b, c = await listeners(coalescer, work, "a", "b", "c")
    work.tell(Accepted("r", 0), IMAGE, loss)
    await until(lambda: work.begun == 2)
    assert [type(event) for event in a.heard] == [
        Accepted,
        ImageDone,
        *([Failed] if isinstance(loss, Failed) else []),
    ]
    await asyncio.wait((a.task,))
    assert isinstance(a.task.exception(), RuntimeError) == isinstance(loss, RuntimeError)
    work.tell(Accepted("r", 0), IMAGE, END)
    await asyncio.gather(b.task, c.task)
    # Once each, though it was told twice.
    assert [type(event) for event in b.heard] == [type(event) for event in c.heard] == [Accepted, ImageDone, Finished]
    assert work.begun == 2


async def test_nobody_waits_for_strangers_work_to_be_lost_again_and_again() -> None:
    coalescer, work = RequestCoalescer(), Work()
    everybody = await listeners(coalescer, work, *"abcdefgh")
    for begun in (1, 2, 8):
        await until(lambda begun=begun: work.begun == begun)  # type: ignore[misc]
        work.tell(LOST)
    work.tell(*[LOST] * 8)
    await asyncio.gather(*(each.task for each in everybody))
    assert all(isinstance(each.heard[-1], Failed) for each in everybody)
    assert work.begun == 8


async def test_an_outcome_is_everybodys() -> None:
    """What the work itself comes to would come again: a refusal of it, or an engine that it has killed."""
    coalescer, work = RequestCoalescer(), Work()
    a, b = await listeners(coalescer, work, "a", "b")
    work.tell(Failed("r", GenerationFailed("every engine that worked on this request was lost")))
    await asyncio.gather(a.task, b.task)
    assert work.begun == 1
    assert [type(each.heard[-1]) for each in (a, b)] == [Failed, Failed]


async def test_other_work_is_done_beside_it_and_work_without_a_name_is_never_joined() -> None:
    coalescer, work = RequestCoalescer(), Work()
    await listeners(coalescer, work, "a")
    for key in ("other", None, None):
        await listeners(coalescer, work, "b", key=key)
    assert work.begun == 4
    assert coalescer.joined == 0
