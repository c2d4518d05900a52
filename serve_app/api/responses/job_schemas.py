"""The JSON of a job. Its images are links: a job may have gigabytes of them."""

from datetime import UTC, datetime
from typing import Any

from serve_app.jobs.job import Document, Job

JOBS = "/ads/v2/diffusion/jobs"


def job_path(job: Job) -> str:
    """The job's URL path."""
    return f"{JOBS}/{job.id}"


def job_summary(job: Job) -> dict[str, Any]:
    """The job without its results."""
    done = len(job.documents)
    return {
        "id": job.id,
        "state": job.state,
        "queue_position": job.ahead if job.state == "queued" else 0,
        "progress": round(job.progress, 3),
        "entries": job.entries,
        "succeeded": job.succeeded,
        "failed": done - job.succeeded,
        "created_at": _format_time(job.created),
        "started_at": _format_time(job.started),
        "finished_at": _format_time(job.finished),
        "durable": job.durable,
        "url": job_path(job),
    }


def job_answer(job: Job) -> dict[str, Any]:
    """The job with the results so far, in the entries' order."""
    return {**job_summary(job), "results": [entry_link(job, job.documents[index]) for index in sorted(job.documents)]}


def entry_link(job: Job, document: Document) -> Document:
    """An entry's document, with the URLs of its images."""
    if "images" not in document:
        return document
    place = f"{job_path(job)}/images/{document['index']}"
    return {**document, "images": [{**image, "url": f"{place}/{image['index']}"} for image in document["images"]]}


def _format_time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
