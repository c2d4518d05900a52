"""What routes depend on: the service and the jobs of the application that they belong to."""

from typing import Annotated

from fastapi import Depends, Request

from serve_app.jobs.manager import Jobs
from serve_app.service import DiffusionService


def service_of(request: Request) -> DiffusionService:
    """The service that this application was made for."""
    service: DiffusionService = request.app.state.service
    return service


ServiceDep = Annotated[DiffusionService, Depends(service_of)]


def jobs_of(request: Request) -> Jobs:
    """The jobs of this application."""
    jobs: Jobs = request.app.state.jobs
    return jobs


JobsDep = Annotated[Jobs, Depends(jobs_of)]
