"""A job: a batch that runs though nobody waits for it, and its state so far."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from deployments.engine.protocol.params import GenerationParams
from serve_app.config.strict import Strict
from serve_app.jobs.callbacks import CallbackRequest
from serve_app.jobs.pictures import NO_PICTURES, JobPictures, PictureLayout

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Document = dict[str, Any]
"""An entry that has ended, as JSON: its answer without the images, or its problem."""

UNFINISHED: Final = frozenset(("queued", "running"))
LATEST: Final = 4e9
"""Seconds since 1970 that a job may tell of."""

DONE: Final = 200
"""The `status` of an entry's document that has images."""


@dataclass(slots=True, eq=False)
class Job:
    """`params` are the entries to be made, with seeds, by their numbers; of the `drawn` ones, the seed is not the
    caller's own. Of `entries`, some may have been refused before. `documents` are in the order in which entries ended,
    `files` the image files that this process holds; `unsaved` are entries that only this process knows. Times are
    seconds since 1970. Jobs run in the order of their `round` (`fair_order.py`), and `ahead` unfinished jobs come
    before it. `callbacks` is what its caller wants to be called back about. `pictures` are those that entries start
    from or take after, as long as it is not over.

    It has `succeeded` where at least one entry has images, and `failed` where none has.
    """

    id: str
    tenant: str
    created: float
    entries: int
    params: Mapping[int, GenerationParams]
    callbacks: CallbackRequest | None = None
    pictures: JobPictures = NO_PICTURES
    drawn: frozenset[int] = frozenset()
    state: State = "queued"
    started: float | None = None
    finished: float | None = None
    documents: dict[int, Document] = field(default_factory=dict)
    files: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    unsaved: set[int] = field(default_factory=set)
    durable: bool = False
    round: int = 0
    ahead: int = 0
    last_progress: float = 0.0
    gauge: Callable[[], float] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        return self.state not in UNFINISHED

    @property
    def left(self) -> dict[int, GenerationParams]:
        """The entries that are still to be made."""
        return {index: params for index, params in self.params.items() if index not in self.documents}

    @property
    def succeeded(self) -> int:
        return sum(document["status"] == DONE for document in self.documents.values())

    @property
    def size(self) -> int:
        """Bytes of the image files held here; the entries' own pictures have a budget of their own."""
        return sum(len(file) for files in self.files.values() for file in files)

    @property
    def progress(self) -> float:
        """How much of it is done, from 0 to 1."""
        return self.last_progress if self.gauge is None else self.gauge()

    def begin(self, now: float, gauge: Callable[[], float]) -> None:
        """Marks it as running; `gauge` says how far its entries are."""
        self.state, self.started, self.gauge, self.ahead = "running", self.started or now, gauge, 0
        self._notify()

    def add(self, index: int, document: Document, files: tuple[bytes, ...]) -> None:
        """Adds an entry that has ended."""
        self.documents[index], self.files[index] = document, files
        self.unsaved.add(index)
        self._notify()

    def end(self, now: float, cancelled: bool = False) -> None:
        """Marks it as over."""
        self.last_progress = self.progress if cancelled else 1.0
        self.gauge, self.finished = None, now
        self.pictures = self.pictures.without_files()
        self.state = "cancelled" if cancelled else "succeeded" if self.succeeded else "failed"
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


def spec_of(job: Job) -> dict[str, Any]:
    """Returns what never changes of a job, as JSON."""
    # What nobody has set is left to the model's own defaults, whichever process makes the entry.
    params = {str(index): params.model_dump(mode="json", exclude_unset=True) for index, params in job.params.items()}
    spec = {"tenant": job.tenant, "created": job.created, "entries": job.entries, "params": params}
    # Left out where there is none: during an update, processes of the version before read it as well.
    if job.callbacks is not None:
        spec["callbacks"] = job.callbacks.model_dump(mode="json")
    if job.pictures.layout.size:
        spec["pictures"] = job.pictures.layout.model_dump(mode="json")
    return spec


def notes_of(job: Job) -> dict[str, Any]:
    """Returns what goes beside a spec, as JSON: processes of the version before pass over it, and do without."""
    return {"drawn": sorted(job.drawn)} if job.drawn else {}


def state_of(job: Job) -> dict[str, Any]:
    """Returns what changes of a job, besides its documents and files, as JSON."""
    return {
        "state": job.state,
        "started": job.started,
        "finished": job.finished,
        "progress": job.progress,
        "order": list(job.documents),
    }


class _Spec(Strict):
    tenant: str
    created: float = Field(ge=0, le=LATEST)
    entries: int = Field(ge=1)
    params: dict[int, GenerationParams]
    callbacks: CallbackRequest | None = None
    pictures: PictureLayout = PictureLayout()


class _Notes(BaseModel):
    """A later version may note more."""

    drawn: frozenset[int] = frozenset()


class _State(Strict):
    state: State
    started: float | None = Field(ge=0, le=LATEST)
    finished: float | None = Field(ge=0, le=LATEST)
    progress: float = Field(ge=0, le=1.01)
    order: list[int]


class _Image(BaseModel):
    index: int
    format: str


class _Document(BaseModel):
    """The fields of an entry's document that are relied upon."""

    index: int
    status: int
    images: list[_Image] = []


class UnknownForm(Exception):
    """A job was saved in a form that this version does not know; the one that saved it does."""


def restore(job_id: str, spec: Any, state: Any, documents: Mapping[int, Any], notes: Any = None) -> Job:
    """Rebuilds a job from what was saved of it. Raises UnknownForm, and ValueError where that makes no sense."""
    try:
        saved, noted = _Spec.model_validate(spec), _Notes.model_validate(notes or {})
        now = _State.model_validate(state)
        described = {index: _Document.model_validate(document) for index, document in documents.items()}
    except ValidationError as error:
        raise UnknownForm(f"job {job_id} was saved by another version") from error
    if (now.finished is None) != (now.state in UNFINISHED):
        raise ValueError("a job is over from its end on")
    if any(document.index != index for index, document in described.items()):
        raise ValueError("a document is another entry's")
    if now.state not in UNFINISHED and not documents.keys() >= set(now.order):
        raise ValueError("a finished job has lost some of its entries")
    # An entry may have been saved a moment after the state that was read.
    order = [index for index in now.order if index in documents]
    ordered = dict.fromkeys([*order, *documents])
    return Job(
        id=job_id,
        tenant=saved.tenant,
        created=saved.created,
        entries=saved.entries,
        params=saved.params,
        callbacks=saved.callbacks,
        pictures=JobPictures(saved.pictures, {}),
        drawn=noted.drawn,
        state=now.state,
        started=now.started,
        finished=now.finished,
        documents={index: documents[index] for index in ordered},
        durable=True,
        last_progress=now.progress,
    )
