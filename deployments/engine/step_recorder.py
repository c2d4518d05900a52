"""Records the steps that the device is given: what they take, whose share that is, and how far their requests are."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deployments.engine.protocol.params import Priority
from deployments.engine.protocol.request import Bucket
from deployments.engine.request_tracker import RequestTracker, progress_of
from deployments.engine.row import Row
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.bucket_share import BucketShare
from deployments.engine.steps.denoise import StepResult
from deployments.engine.steps.stepper import StepDone, StepIssued


@dataclass(frozen=True, slots=True)
class _UnfinishedStep:
    """A step that the device was given. `progress` is how far it brings its bucket's requests, `last` whose rows have
    no further one.
    """

    bucket: Bucket
    result: StepResult
    priorities: list[Priority]
    progress: Mapping[str, tuple[int, int]]
    last: list[str]


class StepRecorder:
    """Records steps in the order in which the device is given them, which is the order in which it ends them.

    What the engine does next never waits for this: estimates, shares and progress may be a step or two late.
    """

    def __init__(self, admission: Admission, share: BucketShare, tracker: RequestTracker) -> None:
        self._admission, self._share, self._tracker = admission, share, tracker
        self._unfinished: deque[_UnfinishedStep] = deque()

    def record_issued(self, bucket: Bucket, issued: StepIssued, running: Sequence[Row]) -> None:
        """Records a step of `bucket`, whose rows are `running`."""
        priorities = [self._admission.queue.priority_of(row.ticket) for row in issued.rows]
        last = [row.request.id for row in issued.rows if row.is_done]
        self._unfinished.append(_UnfinishedStep(bucket, issued.result, priorities, progress_of(running), last))

    def record_done(self, steps: Iterable[StepDone]) -> float:
        """Records that the oldest unfinished steps are done, and returns the seconds that they took of the device."""
        return sum(self._record_oldest(done.seconds) for done in steps)

    def _record_oldest(self, seconds: float) -> float:
        step = self._unfinished.popleft()
        estimator, result = self._admission.estimator, step.result
        estimator.record_call(
            step.bucket, result.unet_rows, result.work, result.control_rows, result.changed_rows, seconds
        )
        self._share.charge(step.bucket, seconds, step.priorities)
        self._tracker.report_progress(step.progress, estimator.seconds_left)
        for request_id in step.last:
            self._tracker.record_denoised(request_id)
        return seconds
