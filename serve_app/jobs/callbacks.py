"""What a job's caller wants to be called back about, and what has come of that."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, Protocol

from pydantic import Field

from serve_app.config.strict import Strict

if TYPE_CHECKING:
    from serve_app.jobs.job import Job

JobEvent = Literal["job.succeeded", "job.failed", "job.cancelled", "job.uploaded"]
"""How a job has ended; and that nothing is left to be put elsewhere of its images."""

JOB_EVENTS: Final[tuple[JobEvent, ...]] = ("job.succeeded", "job.failed", "job.cancelled", "job.uploaded")


class CallbackRequest(Strict):
    """`webhook_url` hears of `webhook_events`. Images are put to `upload_url`, with `{job}`, `{entry}`, `{image}` and
    `{format}` filled in, or to `upload_urls`, by entry and image; an entry without any (None) stays here only.
    `upload_headers` go with each. Links begin with `base_url`.
    """

    base_url: str = ""
    webhook_url: str | None = None
    webhook_events: tuple[JobEvent, ...] = JOB_EVENTS
    upload_url: str | None = None
    upload_urls: tuple[tuple[str, ...] | None, ...] | None = None
    upload_headers: dict[str, str] = Field(default_factory=dict)

    @property
    def has_uploads(self) -> bool:
        return self.upload_url is not None or self.upload_urls is not None

    def wants(self, event: JobEvent) -> bool:
        """Whether the webhook is to hear of `event`."""
        return self.webhook_url is not None and event in self.webhook_events

    def upload_target(self, job_id: str, entry: int, image: int, image_format: str) -> str | None:
        """Returns where an image is to be put; None where it is to stay here."""
        if self.upload_url is not None:
            return fill_in(self.upload_url, job_id, entry, image, image_format)
        if self.upload_urls is None or entry >= len(self.upload_urls):
            return None
        targets = self.upload_urls[entry]
        return targets[image] if targets is not None and image < len(targets) else None


PLACEHOLDERS: Final = ("{job}", "{entry}", "{image}", "{format}")


def fill_in(template: str, job_id: str, entry: int, image: int, image_format: str) -> str:
    """Returns the address that a template means for one image."""
    for place, value in zip(PLACEHOLDERS, (job_id, str(entry), str(image), image_format), strict=True):
        template = template.replace(place, value)
    return template


def upload_place(entry: int, image: int) -> str:
    """Returns the name of an image among what is called back about a job; a webhook's is its event."""
    return f"{entry}/{image}"


class Settlement(Strict):
    """What has come of a callback after `attempts` tries: it was `done`, or `reason` says why not (a code).

    `size` in bytes and `sha256` in hexadecimal digits are an upload's.
    """

    done: bool
    attempts: int = Field(ge=0)
    reason: str = ""
    size: int = Field(default=0, ge=0)
    sha256: str = ""


class JobListener(Protocol):
    """Hears of jobs with a `CallbackRequest`. None of its methods waits for anybody's answer, or raises anything."""

    async def entry_ended(self, job: "Job", index: int) -> None:
        """An entry has ended, and was saved."""

    async def ended(self, job: "Job") -> None:
        """The job is over, and was saved. May be called again for the same one."""

    async def settlements(self, job: "Job") -> Mapping[str, Settlement]:
        """Returns what has come of the job's callbacks so far, by their places."""
