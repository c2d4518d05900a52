"""What a webhook says of a job: its state and counts, and where to find the rest."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from serve_app.jobs.callbacks import JobEvent, Settlement
from serve_app.jobs.job import Job

JOBS: Final = "/ads/v2/diffusion/jobs"


def end_event(job: Job) -> JobEvent:
    """Returns the event of a job that is over."""
    match job.state:
        case "cancelled":
            return "job.cancelled"
        case "failed":
            return "job.failed"
        case _:
            return "job.succeeded"


def webhook_body(
    event: JobEvent, job: Job, now: float, settlements: Mapping[str, Settlement], uploads: int | None
) -> str:
    """Returns the JSON of a webhook. `uploads` is how many images are put elsewhere, None where that was not asked."""
    path = f"{JOBS}/{job.id}"
    base = "" if job.callbacks is None else job.callbacks.base_url
    data: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "entries": job.entries,
        "succeeded": job.succeeded,
        "failed": len(job.documents) - job.succeeded,
        "images": sum(len(document.get("images", ())) for document in job.documents.values()),
        "created_at": format_time(job.created),
        "finished_at": format_time(job.finished),
        "url": f"{base}{path}",
    }
    if uploads is not None:
        data["uploads"] = count_uploads(settlements, uploads)
    return json.dumps({"type": event, "timestamp": format_time(now), "data": data}, separators=(",", ":"))


def count_uploads(settlements: Mapping[str, Settlement], uploads: int) -> dict[str, int]:
    """Counts the `uploads` of a job by what has come of them."""
    ended = [each.done for place, each in settlements.items() if not place.startswith("job.")]
    return {"uploaded": sum(ended), "upload_failed": len(ended) - sum(ended), "pending": max(0, uploads - len(ended))}


def format_time(seconds: float | None) -> str | None:
    """Returns seconds since 1970 as UTC, in RFC 3339's form."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
