"""The JSON of a job. Its images are links: a job may have gigabytes of them."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from serve_app.callbacks.payload import JOBS, count_uploads, end_event, format_time
from serve_app.jobs.callbacks import JOB_EVENTS, JobEvent, Settlement, upload_place
from serve_app.jobs.job import Document, Job

NOTHING_SETTLED: Final[Mapping[str, Settlement]] = MappingProxyType({})


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
        "created_at": format_time(job.created),
        "started_at": format_time(job.started),
        "finished_at": format_time(job.finished),
        "durable": job.durable,
        "url": job_path(job),
    }


def job_answer(job: Job, settlements: Mapping[str, Settlement] = NOTHING_SETTLED) -> dict[str, Any]:
    """The job with the results so far, in the entries' order; `settlements` are what has come of its callbacks."""
    results = [entry_link(job, job.documents[index]) for index in sorted(job.documents)]
    if job.callbacks is None:
        return {**job_summary(job), "results": results}
    uploads = [image for entry in results for image in _with_uploads(job, entry, settlements)]
    callbacks: dict[str, Any] = {"webhooks": list(_webhooks_of(job, settlements))} if job.callbacks.webhook_url else {}
    if job.callbacks.has_uploads:
        callbacks["uploads"] = count_uploads(settlements, sum("upload" in image for image in uploads))
    return {**job_summary(job), **callbacks, "results": results}


def entry_link(job: Job, document: Document) -> Document:
    """An entry's document, with the URLs of its images."""
    if "images" not in document:
        return document
    place = f"{job_path(job)}/images/{document['index']}"
    return {**document, "images": [{**image, "url": f"{place}/{image['index']}"} for image in document["images"]]}


def _with_uploads(job: Job, entry: Document, settlements: Mapping[str, Settlement]) -> list[dict[str, Any]]:
    """Adds to each of the entry's images what has come of putting it elsewhere, and returns them."""
    images: list[dict[str, Any]] = entry.get("images", [])
    for image in images:
        number = image["index"]
        if job.callbacks and job.callbacks.upload_target(job.id, entry["index"], number, image["format"]) is not None:
            image["upload"] = _upload_state(settlements.get(upload_place(entry["index"], number)))
    return images


def _upload_state(settlement: Settlement | None) -> dict[str, Any]:
    if settlement is None:
        return {"state": "pending"}
    if settlement.done:
        return {"state": "uploaded", "size": settlement.size, "sha256": settlement.sha256}
    return {"state": "upload_failed", "reason": settlement.reason, "attempts": settlement.attempts}


def _webhooks_of(job: Job, settlements: Mapping[str, Settlement]) -> Iterator[dict[str, Any]]:
    """Yields the webhooks that are due by now, and what has come of each."""
    due: set[JobEvent] = {end_event(job)} if job.over else set()
    if job.over and job.callbacks is not None and job.callbacks.has_uploads:
        due.add("job.uploaded")
    for event in JOB_EVENTS:
        if job.callbacks is None or event not in due or not job.callbacks.wants(event):
            continue
        settlement = settlements.get(event)
        if settlement is None:
            yield {"event": event, "state": "pending"}
        else:
            reason = {} if settlement.done else {"reason": settlement.reason}
            state = "delivered" if settlement.done else "failed"
            yield {"event": event, "state": state, "attempts": settlement.attempts, **reason}
