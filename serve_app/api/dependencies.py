"""The FastAPI dependencies of the routes: the application's service and its jobs."""

from typing import Annotated

from fastapi import Depends, Request

from serve_app.api.problems import Problem
from serve_app.jobs.manager import Jobs
from serve_app.labels.verification import Verifier
from serve_app.service import DiffusionService
from serve_app.trainings.manager import Trainings


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


def trainings_of(request: Request) -> Trainings:
    """The trainings of this application. Raises Problem 404 if it does not train."""
    trainings: Trainings | None = request.app.state.trainings
    if trainings is None:
        raise Problem(404, "training_off", "this server does not train; its configuration has no `training`")
    return trainings


TrainingsDep = Annotated[Trainings, Depends(trainings_of)]


JobsDep = Annotated[Jobs, Depends(jobs_of)]
