"""What is kept for A1111's callers: their options, and the generations that they have running. A key is a caller."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serve_app.api.a1111 import options, running_jobs
from serve_app.api.a1111.options import CallerOptions
from serve_app.api.a1111.running_jobs import RunningJobs
from serve_app.api.principal import principal_of
from serve_app.store.caller_state import CallerState
from serve_app.store.redis import RedisTier


@dataclass(frozen=True, slots=True)
class Callers:
    """The options and the running jobs of all callers."""

    options: CallerOptions
    jobs: RunningJobs


def create_callers(redis: RedisTier | None) -> Callers:
    """Creates what is kept for callers, in Redis where there is one."""
    return Callers(
        CallerOptions(CallerState("a1111-options", options.TTL_S, redis)),
        RunningJobs(
            CallerState("a1111-jobs", running_jobs.TTL_S, redis),
            CallerState("a1111-looks", running_jobs.LOOKS_S, redis),
        ),
    )


def callers_of(request: Request) -> Callers:
    """The application's callers."""
    callers: Callers = request.app.state.a1111_callers
    return callers


CallersDep = Annotated[Callers, Depends(callers_of)]


def caller_of(request: Request) -> str:
    """The caller: its key's id. Where no keys are needed, all are one."""
    return principal_of(request).key
