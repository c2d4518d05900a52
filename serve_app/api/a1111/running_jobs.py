"""The generations that a caller has running, for the calls that ask how far they are, or end them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from deployments.engine.protocol.events import Accepted, Event, ImageDone, Preview, Progress
from serve_app.store.caller_state import CallerState, StateEntry

TTL_S: Final = 30.0
"""How long a job is believed to run that nothing is heard of: its ingress may have ended."""

_EVERY_S: Final = 0.5

LOOKS_S: Final = 60.0
"""How long after a look at progress the next one is expected: previews are made for those who look."""


@dataclass(slots=True)
class RunningJob:
    """A generation: how far it is, and its newest preview (JPEG). Times are seconds since 1970."""

    request_id: str
    images: int
    begun: float = field(default_factory=time.time)
    step: int = 0
    steps: int = 0
    done: int = 0
    seconds_left: float | None = None
    preview: bytes = b""

    def follow(self, event: Event) -> None:
        """Takes note of an event."""
        match event:
            case Accepted():
                self.steps, self.seconds_left = event.steps, event.seconds_to_finish
            case Progress():
                self.step, self.steps, self.seconds_left = event.step, event.steps, event.seconds_left
            case Preview():
                self.preview = event.data
            case ImageDone():
                self.done += 1


class RunningJobs:
    """The running jobs of all callers, and which of them look at their pictures: `looks` are kept for `LOOKS_S`."""

    def __init__(self, state: CallerState, looks: CallerState) -> None:
        self._state, self._looks = state, looks

    async def note_look(self, caller: str) -> None:
        """Takes note that a caller looks at its pictures while they are made."""
        await self._looks.put(caller, "look", True)

    async def is_watched(self, caller: str) -> bool:
        """Returns True if the caller has looked lately."""
        return bool(await self._looks.read(caller))

    async def tell(self, caller: str, job: RunningJob) -> None:
        """Lets the caller's other calls know of a job, and how far it is."""
        value = [job.images, job.begun, job.step, job.steps, job.done, job.seconds_left]
        await self._state.put(caller, job.request_id, value, job.preview)

    async def keep_telling(self, caller: str, job: RunningJob) -> None:
        """Tells how far a job is again and again. Never returns; to be cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.tell(caller, job)

    async def end(self, caller: str, job: RunningJob) -> None:
        """Forgets a job."""
        await self._state.remove(caller, job.request_id)

    async def read(self, caller: str) -> list[RunningJob]:
        """Returns the caller's jobs, the oldest first."""
        entries = (await self._state.read(caller)).items()
        return sorted((_job_of(name, entry) for name, entry in entries), key=lambda job: job.begun)


def describe_progress(jobs: Sequence[RunningJob], encode: Callable[[bytes], str], *, picture: bool) -> dict[str, Any]:
    """Returns the progress of the oldest of `jobs`, as A1111 answers it; `encode` writes a preview as text."""
    job = jobs[0] if jobs else None
    share = 0.0 if job is None else min(job.step / job.steps if job.steps else 0.0, 0.99)
    return {
        # While anything runs it is not 0, which clients take for nothing.
        "progress": share if job is None else max(share, 0.01),
        "eta_relative": 0.0 if job is None else job.seconds_left or 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "" if job is None else job.request_id,
            "job_count": len(jobs),
            "job_timestamp": "0" if job is None else timestamp(job.begun),
            "job_no": 0,
            "sampling_step": 0 if job is None else job.step,
            "sampling_steps": 0 if job is None else job.steps,
        },
        "current_image": encode(job.preview) if picture and job is not None and job.preview else None,
        "textinfo": None,
    }


def timestamp(seconds: float) -> str:
    """Returns seconds since 1970 as A1111 writes a time."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y%m%d%H%M%S")


def _job_of(name: str, entry: StateEntry) -> RunningJob:
    images, begun, step, steps, done, seconds_left = entry.value
    return RunningJob(name, images, begun, step, steps, done, seconds_left, entry.file)
