"""The answer to one entry of a batch: what text-to-image would have answered, with `index` and `status`."""

from typing import Any

from deployments.engine.protocol.request import part_name
from serve_app.api.problems import Problem, problem_of
from serve_app.api.responses.schemas import answer_of
from serve_app.generation.result import Result
from serve_app.jobs.batch import Outcome
from serve_app.jobs.job import DONE, Document, Job

REQUESTS = "requests"


def entry_answer(index: int, batch: str, outcome: Outcome | Problem) -> dict[str, Any]:
    """The entry's answer, or its problem, which points into the batch's body."""
    name = part_name(batch, index)
    if isinstance(outcome, Result):
        return {"index": index, "status": DONE, **answer_of(outcome), "id": name}
    problem = outcome if isinstance(outcome, Problem) else problem_of(outcome)
    return {"index": index, "id": name, **problem.relocate(f"{REQUESTS}/{index}").body(name)}


def entry_document(job: Job, index: int, outcome: Outcome) -> tuple[Document, tuple[bytes, ...]]:
    """The same for a job, with the image files apart; the document keeps their places."""
    if not isinstance(outcome, Result):
        return entry_answer(index, job.id, outcome), ()
    answer = entry_answer(index, job.id, outcome)
    answer["images"] = [{name: value for name, value in image.items() if name != "data"} for image in answer["images"]]
    return answer, tuple(image.data for image in outcome.images)


def count_entries(entries: list[dict[str, Any]]) -> dict[str, int]:
    """Counts the entries that have images, and those that have a problem."""
    succeeded = sum(entry["status"] == DONE for entry in entries)
    return {"succeeded": succeeded, "failed": len(entries) - succeeded}
