"""Who may begin: the queue's order, what memory holds, and the knee beyond which more rows help nobody."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter

from deployments.engine.protocol.errors import DeadlineExceeded, DoesNotFit, Overloaded
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.row import Row, Ticket
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.estimator import Estimator
from deployments.engine.scheduling.forecast import Estimate
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.scheduling.queue import RequestQueue
from deployments.engine.scheduling.running import RunningRows

TRAYS = 4
"""Full calls' worth of UNet rows that are in the making at once, of all buckets together. A bucket more takes device
time from all others: with ever new sizes none would ever be done, and nobody would be told that there is too much."""


class Admission:
    """`decode_batch` is how many images a VAE call decodes; `sizes` are what UNet calls are padded to, ascending."""

    def __init__(
        self,
        queue_limit: int,
        sizes: Sequence[int],
        device: DeviceMemory,
        decode_batch: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.queue = RequestQueue(queue_limit, clock)
        self.costs = CostModel(sizes)
        self.device = device
        self.plan = MemoryPlan(device.budget, sizes, clock)
        self.estimator = Estimator(self.costs, clock)
        self._decode_batch = decode_batch
        self._largest = sizes[-1]
        self._weights = 0
        self._paused: dict[tuple[str, int], Row] = {}

    def count_weights(self, weights: int) -> None:
        """The models in memory take so many bytes from now on."""
        self._weights = weights

    def arrive(self, request: Request, running: RunningRows) -> None:
        """Lets a request into the queue. Raises Overloaded, DoesNotFit, and DeadlineExceeded where that is foreseen."""
        if self._rows_that_fit(request, 0, self.device.held(self._weights)) < request.unet_rows:
            raise DoesNotFit("an image of this size does not fit into the memory that there is")
        self.check_room(request.tenant)
        self.queue.arrive(request, self.estimator.cost(request))
        limit = request.params.deadline_ms
        if limit is not None:
            finish = self.estimates(running)[request.id].finish
            if finish * 1000 > limit:
                self.queue.remove(request.id)
                raise DeadlineExceeded(f"it would take about {finish * 1000:.0f} ms from now, and may take {limit} ms")

    def check_room(self, tenant: str) -> None:
        """Raises Overloaded, with the time until there is a place, where the queue has none. From any thread."""
        try:
            self.queue.check_room(tenant)
        except Overloaded as error:
            raise Overloaded(error.message, retry_after=self.estimator.seconds_to_next_place()) from None

    def capacity(self, bucket: Bucket) -> int:
        """The UNet rows of `bucket` that run at once when nothing else does."""
        fitting = self.plan.rows(bucket, self.device.held(self._weights), pictures=self._decode_batch)
        return min(fitting, self.costs.knee(bucket))

    def begin(self, running: RunningRows) -> Iterable[Ticket]:
        """The images that begin now. Each must be added to `running`, or given up, before the next is asked for."""
        yield from self.queue.take(self._room(running))

    def make_way(self, running: RunningRows) -> list[Ticket]:
        """Pauses low images where a high one waits for their places; those that it paused."""
        room = self._room(running)
        for bucket, rows in list(running.rows.items()):
            victims = self.queue.victims(bucket, [row.ticket for row in rows], room)
            for ticket in victims:
                self._pause(ticket, running)
            if victims:
                return victims
        return []

    def _pause(self, ticket: Ticket, running: RunningRows) -> None:
        key = (ticket.request.id, ticket.index)
        (self._paused[key],) = running.drop(lambda row: (row.request.id, row.index) == key)
        self.queue.give_back(ticket)

    def resumed(self, ticket: Ticket) -> Row | None:
        """The row of an image that had to make way, as it was then; None for one that begins."""
        return self._paused.pop((ticket.request.id, ticket.index), None)

    def remove(self, request_id: str) -> tuple[Request | None, list[Row]]:
        """Forgets what waits of a request: the request if there was anything, and its images that had made way."""
        gone = [row for key, row in self._paused.items() if key[0] == request_id]
        self._paused = {key: row for key, row in self._paused.items() if key[0] != request_id}
        return self.queue.remove(request_id), gone

    def forecast(self, running: RunningRows) -> Mapping[str, Estimate]:
        """A new forecast, now and then; else nothing."""
        if not self.estimator.is_due():
            return {}
        estimates = self.estimates(running)
        self.estimator.keep(estimates)
        return estimates

    def estimates(self, running: RunningRows) -> Mapping[str, Estimate]:
        """Seconds to begin and to finish, by request, in the order of beginning."""
        paused = {key[0]: len(row.schedule) - row.step for key, row in self._paused.items()}
        waiting = (
            (request, paused.get(request.id, request.evaluations), images) for request, images in self.queue.order()
        )
        return self.estimator.estimate(running, waiting, self.capacity)

    def memory_used(self, running: RunningRows) -> tuple[int | None, int, int]:
        """The budget; the bytes in use between calls; and those that are planned for at the most, calls included."""
        held = self.device.held(self._held(running))
        buckets = [bucket for bucket, rows in list(running.rows.items()) if rows]
        call = max((self.plan.call(b, running.unet_rows(b), pictures=self._decode_batch) for b in buckets), default=0)
        return self.plan.budget, held, held + call

    def _room(self, running: RunningRows) -> Callable[[Request], int]:
        """The UNet rows that are free for a request, asked in the order of the queue.

        One that finds no memory though nothing of its bucket runs, or no place among the rows of all buckets, has the
        first claim on what becomes free: later ones in other buckets would take it away for ever.
        """
        claimed = False

        def room(request: Request) -> int:
            nonlocal claimed
            rows = running.unet_rows(request.bucket)
            crowded = sum(row.request.unet_rows for row in running) + request.unet_rows > TRAYS * self._largest
            controls = sum(row.request.unet_rows * len(row.controls) for row in running.of(request.bucket))
            fitting = self._rows_that_fit(request, controls, self.device.held(self._held(running)))
            if claimed or crowded or (not rows and fitting < request.unet_rows):
                claimed = True
                return 0
            return min(fitting, max(self.costs.knee(request.bucket), request.unet_rows)) - rows

        return room

    def _held(self, running: RunningRows) -> int:
        rows: list[Row] = [*list(running), *list(self._paused.values())]
        return self._weights + sum(row.bytes for row in rows)

    def _rows_that_fit(self, request: Request, control_rows: int, held: int) -> int:
        control_rows += request.unet_rows * len(request.params.controls)
        return self.plan.rows(request.bucket, held, control_rows, self._decode_batch)
