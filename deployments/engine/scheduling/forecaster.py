"""Makes forecasts on a thread of its own, from copies of what the engine's thread knows."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

from deployments.engine.protocol.errors import DeadlineExceeded
from deployments.engine.protocol.request import Request
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.forecast import Estimate, Forecast
from deployments.engine.scheduling.forecast_inputs import ForecastInputs
from deployments.engine.scheduling.running import RunningRows


class Forecaster:
    """Foresees what waits in `admission`. All methods are for the engine's thread.

    What is asked is answered in the order of asking. `on_checked` is called on the forecaster's thread when a deadline
    has been checked. `clock` is the queue's.
    """

    def __init__(
        self, admission: Admission, on_checked: Callable[[], object], clock: Callable[[], float] = perf_counter
    ) -> None:
        self._admission, self._on_checked, self._clock = admission, on_checked, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forecast")
        self._checks: deque[tuple[Arrival, Future[DeadlineExceeded | None]]] = deque()
        self._periodic: Future[Forecast] | None = None
        self._late: dict[str, Arrival] = {}
        """Of the forecaster's thread alone: those that cannot meet their deadlines."""

    def foresee(self, running: RunningRows) -> Future[Forecast]:
        """Has a forecast made of what waits and runs now."""
        return self._thread.submit(self._forecast, self._admission.forecast_inputs(running), self._unsettled())

    def check_deadline(self, arrival: Arrival, running: RunningRows) -> None:
        """Has it checked whether a request with a deadline can meet it. It waits already."""
        inputs = self._admission.forecast_inputs(running)
        check = self._thread.submit(self._check, arrival, inputs, self._unsettled())
        self._checks.append((arrival, check))
        check.add_done_callback(lambda _: self._on_checked())

    def find_late(self) -> Iterator[tuple[Request, DeadlineExceeded]]:
        """Yields the waiting requests that have been found unable to meet their deadlines. They are to be refused."""
        while self._checks and self._checks[0][1].done():
            arrival, check = self._checks.popleft()
            error = check.result()
            if error is not None and self._admission.queue.holds(arrival):
                yield arrival.request, error

    def place_of(self, arrival: Arrival, forecast: Forecast) -> tuple[int, Estimate]:
        """Returns the place of a request by a forecast, and from now when it is likely to start and finish."""
        position, estimate = forecast.place_of(arrival.request, arrival.cost)
        return position, estimate.after(self._clock() - forecast.at)

    def update(self, running: RunningRows) -> Iterator[tuple[Request, Estimate]]:
        """Yields the waiting requests that are foreseen, in the order of starting, if there is a new regular forecast.

        Has the next one made when it is due.
        """
        estimator = self._admission.estimator
        latest = self._periodic
        if latest is not None and latest.done():
            self._periodic, forecast = None, latest.result()
            estimator.keep(forecast)
            age = self._clock() - forecast.at
            for request in forecast.order:
                yield request, forecast.estimates[request.id].after(age)
        if self._periodic is None and estimator.is_due():
            self._periodic = self.foresee(running)

    def close(self) -> None:
        """Ends the thread, and drops what it was asked."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _unsettled(self) -> Collection[str]:
        """Returns the waiting requests that may have been found late, and are not refused yet."""
        return {arrival.request.id for arrival, _ in self._checks if self._admission.queue.holds(arrival)}

    def _check(self, arrival: Arrival, inputs: ForecastInputs, unsettled: Collection[str]) -> DeadlineExceeded | None:
        limit = arrival.request.params.deadline_ms
        _, estimate = self._forecast(inputs, unsettled).place_of(arrival.request, arrival.cost)
        milliseconds = estimate.finish * 1000
        if limit is None or milliseconds <= limit:
            return None
        self._late[arrival.request.id] = arrival
        return DeadlineExceeded(f"it would take about {milliseconds:.0f} ms from now, and may take {limit} ms")

    def _forecast(self, inputs: ForecastInputs, unsettled: Collection[str]) -> Forecast:
        """Makes a forecast without those that are late: they are about to be refused."""
        self._late = {name: arrival for name, arrival in self._late.items() if name in unsettled}
        return inputs.without(self._late).forecast()
