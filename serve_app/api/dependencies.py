"""The FastAPI dependencies of the routes: the application's service and its jobs."""

from typing import Annotated

from fastapi import Depends, Request

from serve_app.jobs.manager import Jobs
from serve_app.labels.verification import Verifier
from serve_app.service import DiffusionService


def service_of(request: Request) -> DiffusionService:
    """The service that this application was created for."""
    service: DiffusionService = request.app.state.service
    return service


ServiceDep = Annotated[DiffusionService, Depends(service_of)]


def jobs_of(request: Request) -> Jobs:
    """The jobs of this application."""
    jobs: Jobs = request.app.state.jobs
    return jobs


def verifier_of(request: Request) -> Verifier:
    """What reads the labels of pictures."""
    verifier: Verifier = request.app.state.verifier
    return verifier


VerifierDep = Annotated[Verifier, Depends(verifier_of)]


JobsDep = Annotated[Jobs, Depends(jobs_of)]
