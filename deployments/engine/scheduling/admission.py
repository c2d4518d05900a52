"""Decides what may start: by the queue's order, what fits in memory, and the knee beyond which more rows do not pay."""

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from deployments.engine.padding import padded_size
from deployments.engine.protocol.errors import DoesNotFit, Overloaded
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.row import Row, Ticket
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.device import NO_ADAPTERS, AdapterMemory, DeviceMemory
from deployments.engine.scheduling.estimator import Estimator
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.forecast_inputs import ForecastInputs
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.scheduling.queue import RequestQueue
from deployments.engine.scheduling.running import RunningRows
from deployments.engine.stack_size import size_of_stacks

MAX_FULL_CALLS = 4
"""The most rows that run at once, in full calls, all buckets together. Each further bucket takes device time from all
others: with ever new sizes none would ever finish, and nobody would be told that there is too much.
"""


class Admission:
    """Admits images to the running rows.

    `decode_batch` is how many images a VAE call decodes; `sizes` are what UNet calls are padded to, ascending.
    `adapters` are what requests have brought into memory: LoRAs, IP-Adapters, and what waits prepared.
    """

    def __init__(
        self,
        queue_limit: int,
        sizes: Sequence[int],
        device: DeviceMemory,
        decode_batch: int,
        clock: Callable[[], float] = perf_counter,
        adapters: AdapterMemory = NO_ADAPTERS,
    ) -> None:
        self.queue = RequestQueue(queue_limit, clock)
        self.costs = CostModel(sizes)
        self.device = device
        self.plan = MemoryPlan(device.budget, sizes, clock)
        self.estimator = Estimator(self.costs, clock)
        self._decode_batch = decode_batch
        self._sizes = tuple(sizes)
        self._largest = sizes[-1]
        self._weights = 0
        self._adapters = adapters
        self._paused: dict[tuple[str, int], Row] = {}
        self._decoding: list[Row] = []

    def set_weight_bytes(self, weights: int) -> None:
        """Sets the bytes that the models in memory take."""
        self._weights = weights

    def enqueue(self, request: Request) -> Arrival:
        """Queues a request. Raises Overloaded, and DoesNotFit for one that could not even run beside the weights alone:
        whatever else is in memory leaves, and it can wait for that.
        """
        second = request.second_pass
        for each in (request, *([] if second is None else [second])):
            if not self._rows_that_fit(each, self._weights, request.encoded_bucket):
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
        held = self._weights + self._adapters.count_bytes()
        fitting = self.plan.rows(bucket, held, decode_batch=self._decode_batch)
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
        the first claim on what becomes free: otherwise later ones in other buckets would take it for ever. It does
        not wait where nothing runs: then nothing becomes free, and whether it fits shows when it runs.
        """
        claimed = False

        def room(request: Request) -> int:
            nonlocal claimed
            rows = running.unet_rows(request.bucket)
            crowded = sum(row.most_unet_rows for row in running) + request.unet_rows > MAX_FULL_CALLS * self._largest
            beside, encoded = running.of(request.bucket), self._largest_encoded(running, request)
            counted = self._held_bytes(running, request.bucket)
            fitting = self._rows_that_fit(request, self.device.held_bytes(counted), encoded, beside)
            if not fitting and not len(running):
                # More than is counted is held by what the plan has counted with its call: a picture being decoded.
                if not self._rows_that_fit(request, counted, encoded):
                    self._adapters.evict_unused()
                fitting = request.unet_rows
            if claimed or crowded or (not rows and not fitting):
                claimed = True
                return 0
            return min(fitting, max(self.costs.knee(request.bucket), request.unet_rows)) - rows

        return room

    def _held_bytes(self, running: RunningRows, apart_from: Bucket | None = None) -> int:
        """Returns the bytes that are held between steps, but for the stacks of one bucket."""
        rows: list[Row] = [*list(running), *list(self._paused.values())]
        stacks = sum(self._stack_bytes(each) for bucket, each in list(running.rows.items()) if bucket != apart_from)
        return self._weights + self._adapters.count_bytes() + sum(row.bytes for row in rows) + stacks

    def _stack_bytes(self, rows: Sequence[Row]) -> int:
        """Returns the bytes of the stacks of a bucket's `rows`, which stay from one of its steps to the next."""
        entries = min(sum(row.most_unet_rows for row in rows), self._largest)
        is_exact = any(row.request.params.exact for row in rows)
        return size_of_stacks(rows).bytes(self._largest if is_exact else padded_size(entries, self._sizes))

    def _largest_encoded(self, running: RunningRows, *others: Request) -> Bucket | None:
        """Returns the largest size that the VAE will encode for images that have begun, and for `others`."""
        begun = (row.request for row in (*running, *list(self._paused.values()), *self._decoding))
        sizes = (request.encoded_bucket for request in (*begun, *others) if request.params.hires is not None)
        encoded = (size for size in sizes if size is not None)
        return max(encoded, key=lambda size: size.height * size.width, default=None)

    def _rows_that_fit(self, request: Request, held: int, encoded: Bucket | None, beside: Sequence[Row] = ()) -> int:
        """Returns the UNet rows of the request's bucket that fit into one call, with the rows `beside`; 0 if they leave
        no call that it can be in: one with an exact row has the largest size, and so do those of its ControlNets.
        """
        requests = [request, *(row.request for row in beside)]
        is_exact = any(each.params.exact for each in requests)
        least = self._largest if is_exact else request.unet_rows
        controls = sum(each.unet_rows * len(each.params.controls) for each in requests)
        if is_exact:
            controls = self._largest * len({control.type for each in requests for control in each.params.controls})
        prepared = self._adapters.find_prepared(request.id)
        stacks = size_of_stacks([*beside, *([] if prepared is None else [prepared])])
        rows = self.plan.rows(request.bucket, held, controls, self._decode_batch, encoded, stacks, least)
        return rows if rows >= least else 0
