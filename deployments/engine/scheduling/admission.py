"""Decides what may start: by the queue's order, what fits in memory, and the knee beyond which more rows do not pay."""

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from deployments.engine.protocol.errors import DoesNotFit, Overloaded
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.row import Row, Ticket
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.estimator import Estimator
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.forecast_inputs import ForecastInputs
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.scheduling.queue import RequestQueue
from deployments.engine.scheduling.running import RunningRows

MAX_FULL_CALLS = 4
"""The most rows that run at once, in full calls, all buckets together. Each further bucket takes device time from all
others: with ever new sizes none would ever finish, and nobody would be told that there is too much.
"""


class Admission:
    """Admits images to the running rows.

    `decode_batch` is how many images a VAE call decodes; `sizes` are what UNet calls are padded to, ascending.
    `adapter_bytes` returns, from any thread, what LoRAs and IP-Adapters take in memory.
    """

    def __init__(
        self,
        queue_limit: int,
        sizes: Sequence[int],
        device: DeviceMemory,
        decode_batch: int,
        clock: Callable[[], float] = perf_counter,
        adapter_bytes: Callable[[], int] = int,
    ) -> None:
        self.queue = RequestQueue(queue_limit, clock)
        self.costs = CostModel(sizes)
        self.device = device
        self.plan = MemoryPlan(device.budget, sizes, clock)
        self.estimator = Estimator(self.costs, clock)
        self._decode_batch = decode_batch
        self._largest = sizes[-1]
        self._weights = 0
        self._adapter_bytes = adapter_bytes
        self._paused: dict[tuple[str, int], Row] = {}
        self._decoding: list[Row] = []

    def set_weight_bytes(self, weights: int) -> None:
        """Sets the bytes that the models in memory take."""
        self._weights = weights

    def enqueue(self, request: Request) -> Arrival:
        """Queues a request. Raises Overloaded and DoesNotFit."""
        second = request.second_pass
        for each in (request, *([] if second is None else [second])):
            needed = self._largest if each.params.exact else each.unet_rows
            held = self.device.held_bytes(self._weights)
            if self._rows_that_fit(each, 0, held, request.encoded_bucket) < needed:
                raise DoesNotFit("an image of this size does not fit into the memory that there is")
        self.check_room(request.tenant)
        return self.queue.enqueue(request, self.estimator.cost(request))

    def check_room(self, tenant: str) -> None:
        """Raises Overloaded, with the time until there is a place, if the queue is full. From any thread."""
        try:
            self.queue.check_room(tenant)
        except Overloaded as error:
            raise Overloaded(error.message, retry_after=self.estimator.seconds_to_next_place()) from None

    def capacity(self, bucket: Bucket) -> int:
        """Returns the UNet rows of `bucket` that run at once when nothing else does."""
        fitting = self.plan.rows(bucket, self.device.held_bytes(self._weights), decode_batch=self._decode_batch)
        return min(fitting, self.costs.knee(bucket))

    def may_capture(self, bucket: Bucket, size: int) -> bool:
        """Returns True if there is memory to capture a step of `size` rows of `bucket`, when nothing runs."""
        return self.plan.may_capture(bucket, size, self.device.held_bytes(self._weights), self._decode_batch)

    def admit(self, running: RunningRows) -> Iterable[Ticket]:
        """Yields the images that start now. Each must be added to `running`, or given up, before the next is taken."""
        yield from self.queue.take(self._room(running))

    def preempt(self, running: RunningRows) -> list[Ticket]:
        """Pauses low images where a high one waits for their places, and returns them."""
        room = self._room(running)
        for bucket, rows in list(running.rows.items()):
            victims = self.queue.choose_victims(bucket, [row.ticket for row in rows], room)
            for ticket in victims:
                self._pause(ticket, running)
            if victims:
                return victims
        return []

    def _pause(self, ticket: Ticket, running: RunningRows) -> None:
        key = (ticket.request.id, ticket.index)
        (row,) = running.drop(lambda row: (row.request.id, row.index) == key)
        self.requeue(row)

    def requeue(self, row: Row) -> None:
        """Lets a row that does not run wait for its place again."""
        self._paused[row.request.id, row.index] = row
        self.queue.requeue(row.ticket)

    def resume(self, ticket: Ticket) -> Row | None:
        """Returns the row of an image that was requeued, as it was; None for an image that starts anew."""
        return self._paused.pop((ticket.request.id, ticket.index), None)

    def begin_decoding(self, row: Row) -> None:
        """Takes note of a finished row whose picture will be enlarged and encoded beside the calls of others."""
        if row.request.encoded_bucket is not None:
            self._decoding.append(row)

    def end_decoding(self, row: Row) -> None:
        """Takes note that the VAE is done with a row."""
        self._decoding = [each for each in self._decoding if each is not row]

    def remove(self, request_id: str) -> tuple[Request | None, list[Row]]:
        """Drops what waits of a request. Returns the request, if there was anything, and its preempted images."""
        gone = [row for key, row in self._paused.items() if key[0] == request_id]
        self._paused = {key: row for key, row in self._paused.items() if key[0] != request_id}
        return self.queue.remove(request_id), gone

    def forecast_inputs(self, running: RunningRows) -> ForecastInputs:
        """Returns what a forecast is made from now."""
        waiting = self._paused.values()
        paused = {(row.request.id, row.request.bucket): len(row.schedule) - row.step for row in waiting}
        return self.estimator.inputs(self.queue.snapshot(), running, paused, self.capacity)

    def memory_used(self, running: RunningRows) -> tuple[int | None, int, int]:
        """Returns the budget, the bytes in use between calls, and the most that are planned for, calls included."""
        held = self.device.held_bytes(self._held_bytes(running)) + self.plan.pool_bytes()
        buckets = [bucket for bucket, rows in list(running.rows.items()) if rows]
        encoded = self._largest_encoded(running)
        calls = (self.plan.call_bytes(b, running.unet_rows(b), 0, self._decode_batch, encoded) for b in buckets)
        return self.plan.budget, held, held + max(calls, default=0)

    def _room(self, running: RunningRows) -> Callable[[Request], int]:
        """Returns a function that says how many UNet rows are free for a request; it is called in the order of the
        queue.

        A request that finds no memory though nothing of its bucket runs, or no place among the rows of all buckets, has
        the first claim on what becomes free: otherwise later ones in other buckets would take it for ever.
        """
        claimed = False

        def room(request: Request) -> int:
            nonlocal claimed
            rows = running.unet_rows(request.bucket)
            crowded = sum(row.most_unet_rows for row in running) + request.unet_rows > MAX_FULL_CALLS * self._largest
            controls = sum(row.request.unet_rows * len(row.controls) for row in running.of(request.bucket))
            held = self.device.held_bytes(self._held_bytes(running))
            fitting = self._rows_that_fit(request, controls, held, self._largest_encoded(running, request))
            if claimed or crowded or (not rows and fitting < request.unet_rows):
                claimed = True
                return 0
            return min(fitting, max(self.costs.knee(request.bucket), request.unet_rows)) - rows

        return room

    def _held_bytes(self, running: RunningRows) -> int:
        rows: list[Row] = [*list(running), *list(self._paused.values())]
        return self._weights + self._adapter_bytes() + sum(row.bytes for row in rows)

    def _largest_encoded(self, running: RunningRows, *others: Request) -> Bucket | None:
        """Returns the largest size that the VAE will encode for images that have begun, and for `others`."""
        begun = (row.request for row in (*running, *list(self._paused.values()), *self._decoding))
        sizes = (request.encoded_bucket for request in (*begun, *others) if request.params.hires is not None)
        encoded = (size for size in sizes if size is not None)
        return max(encoded, key=lambda size: size.height * size.width, default=None)

    def _rows_that_fit(self, request: Request, control_rows: int, held: int, encoded: Bucket | None) -> int:
        control_rows += request.unet_rows * len(request.params.controls)
        return self.plan.rows(request.bucket, held, control_rows, self._decode_batch, encoded)
