"""Simulates the decoding of pictures beside the steps of others, possibly on the same device."""

from collections import deque

from bench.simulation.job import Finish, Job, Usage


class Decoder:
    """Decodes one picture after the other. While a UNet call runs, both are slower by `overlap` (see `Device`)."""

    def __init__(self, overlap: float, usage: Usage, finish: Finish) -> None:
        self._slower = 1.0 + overlap
        self._overlap = overlap
        self._usage = usage
        self._finish = finish
        self._waiting: deque[tuple[Job, float]] = deque()
        self._begun: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is left to decode."""
        return bool(self._waiting)

    def add(self, job: Job, seconds: float) -> None:
        """Adds a picture of `job` that takes so long on an idle device."""
        self._waiting.append((job, seconds))

    def beside(self, now: float, seconds: float) -> float:
        """Returns when a UNet call ends that begins `now` and takes so long on an idle device."""
        while seconds > 0 and self._waiting:
            job, left = self._waiting[0]
            both = min(left, seconds)
            now += both * self._slower
            seconds -= both
            self._worked(job, left, both, now)
        return now + seconds

    def rest(self, now: float) -> float:
        """Returns when the first picture is ready if nothing else runs from `now` on."""
        self._begun = now
        return now + self._waiting[0][1]

    def interrupted(self, now: float) -> None:
        """Counts what was decoded since `rest`: UNet calls begin again, or the picture is ready."""
        if self._begun is not None:
            job, left = self._waiting[0]
            self._worked(job, left, min(left, now - self._begun), now)
            self._begun = None

    def _worked(self, job: Job, left: float, done: float, now: float) -> None:
        # Only where the device is shared is it the device's time.
        self._usage.useful += done * min(1.0, self._overlap)
        self._waiting.popleft()
        if left - done > 1e-9:
            self._waiting.appendleft((job, left - done))
            return
        job.left -= 1
        if not job.left:
            self._finish(job, now)
