"""Runs many requests side by side, a bounded number at a time; each ends on its own.

Equal entries are made once. A full engine is no reason to fail: nobody is there to come back later, so the entry itself
waits and asks again, as long as its deadline allows.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from deployments.engine.protocol.errors import Cancelled, DeadlineExceeded, EngineError, Overloaded
from deployments.engine.protocol.events import Event, Progress
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request, part_name
from serve_app.backends.cancellation import CancelSignal
from serve_app.generation.prepared import Prepared
from serve_app.generation.result import Result, collect_result
from serve_app.jobs.pictures import NO_PICTURES, JobPictures
from serve_app.service import PROGRESS_INTERVAL_S, DiffusionService
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)

Clock = Callable[[], float]
Outcome = Result | EngineError

# Where a refusal does not say when to come back; and so that those who were refused together do not return together.
RETRY_S: Final = 2.0
JITTER: Final = 0.25


@dataclass(frozen=True, slots=True)
class EntryGroup:
    """A request, and the entries that it answers: more than one where they are equal."""

    prepared: Prepared
    indices: Sequence[int]


class Batch:
    """The entries of `params` by their numbers, under one `name`, which `DiffusionService.cancel` knows it by.

    At most `in_flight` run at a time, so that a batch does not fill the engines' queues all by itself. Deadlines count
    from the batch's beginning, `age_s` seconds ago. `pictures` are those that entries start from or take after, and
    `drawn` the entries whose seeds were drawn for them before.
    """

    def __init__(
        self,
        service: DiffusionService,
        params: Mapping[int, GenerationParams],
        *,
        name: str,
        tenant: str = "",
        in_flight: int,
        age_s: float = 0.0,
        clock: Clock = time.monotonic,
        pictures: JobPictures = NO_PICTURES,
        drawn: Collection[int] = (),
    ) -> None:
        self._service = service
        self._params = params
        self._name, self._tenant = name, tenant
        self._in_flight = in_flight
        self._clock = clock
        self._begun = clock() - age_s
        self._pictures = pictures
        self._drawn = drawn
        self._progress_of: dict[int, float] = {}

    @property
    def progress(self) -> float:
        """How much of it is done, from 0 to 1, by steps."""
        return sum(self._progress_of.values()) / len(self._params) if self._params else 1.0

    async def outcomes(self) -> AsyncGenerator[tuple[int, Outcome], None]:
        """Yields each entry's number and outcome as it ends. Closing this cancels what is not done."""
        groups: dict[tuple[GenerationParams, str | None], list[int]] = {}
        prepared: dict[tuple[GenerationParams, str | None], Prepared] = {}
        for index, params in self._params.items():
            try:
                ready = await self._service.prepare(
                    params,
                    uploads=self._pictures.uploads_of(index),
                    request_id=part_name(self._name, index),
                    tenant=self._tenant,
                    seed_drawn=index in self._drawn,
                )
            except EngineError as error:
                self._progress_of[index] = 1.0
                yield index, error
                await asyncio.sleep(0)
                continue
            asked = ready.asked, self._pictures.identity_of(index)
            prepared.setdefault(asked, ready)
            groups.setdefault(asked, []).append(index)
            # Preparing takes a tenth of a millisecond, but there may be a thousand.
            await asyncio.sleep(0)
        todo = [EntryGroup(prepared[asked], indices) for asked, indices in groups.items()]
        async with aclosing(self._run_groups(todo)) as made:
            async for work, outcome in made:
                for index in work.indices:
                    self._progress_of[index] = 1.0
                    yield index, outcome

    async def _run_groups(self, groups: Sequence[EntryGroup]) -> AsyncGenerator[tuple[EntryGroup, Outcome], None]:
        todo = deque(groups)
        # Bounded: where nobody takes the results, no more are made.
        done: asyncio.Queue[tuple[EntryGroup, Outcome]] = asyncio.Queue(self._in_flight)
        with self._service.running.track(self._name, self._tenant) as signal:
            makers = [
                asyncio.ensure_future(self._make_all(todo, done, signal))
                for _ in range(min(self._in_flight, len(groups)))
            ]
            try:
                for _ in groups:
                    yield await done.get()
            finally:
                await cancel_and_wait(*makers)

    async def _make_all(
        self, todo: deque[EntryGroup], done: "asyncio.Queue[tuple[EntryGroup, Outcome]]", signal: CancelSignal
    ) -> None:
        while todo:
            work = todo.popleft()
            await done.put((work, await self._outcome(work, signal)))

    async def _outcome(self, work: EntryGroup, signal: CancelSignal) -> Outcome:
        try:
            return await self._make(work, signal)
        except Cancelled as error:
            # Said through another process, which knows of those entries only that are in an engine now.
            if error.name == self._name and not signal.done():
                signal.set_result(None)
            return error
        except EngineError as error:
            return error
        except Exception:
            log.exception("request %s: unexpected error", work.prepared.request.name)
            return EngineError("something went wrong here; quote the request id when you report it")

    async def _make(self, work: EntryGroup, signal: CancelSignal) -> Result:
        def note_progress(event: Event) -> None:
            if isinstance(event, Progress):
                self._progress_of.update(dict.fromkeys(work.indices, event.step / max(1, event.steps)))

        async def wait(request: Request, full: Overloaded) -> Request:
            seconds = (full.retry_after or RETRY_S) * random.uniform(1, 1 + JITTER)
            if seconds * 1000 > self._left_ms(work):
                raise DeadlineExceeded("the engines are full until after the deadline")
            await asyncio.wait((signal,), timeout=seconds)
            if signal.done():
                raise Cancelled
            return self._with_deadline_left(work, request)

        if signal.done():
            raise Cancelled
        request = replace(work.prepared.request, progress_interval_s=PROGRESS_INTERVAL_S)
        asked = replace(work.prepared, request=self._with_deadline_left(work, request))
        return await collect_result(asked, self._service.run(asked, wait), note_progress)

    def _with_deadline_left(self, work: EntryGroup, request: Request) -> Request:
        """Returns the request with what is left of its deadline. Raises DeadlineExceeded where nothing is."""
        if request.params.deadline_ms is None:
            return request
        left = self._left_ms(work)
        if left < 1:
            raise DeadlineExceeded("the deadline passed before it was begun")
        return replace(request, params=request.params.model_copy(update={"deadline_ms": int(left)}))

    def _left_ms(self, work: EntryGroup) -> float:
        deadline = work.prepared.request.params.deadline_ms
        return float("inf") if deadline is None else deadline - (self._clock() - self._begun) * 1000
