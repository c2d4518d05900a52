"""The JSON of a training, and its events. Its pictures are links."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from deployments.training.lora.run_folder import UNFINISHED
from serve_app.api.problems import Problem, internal_error
from serve_app.api.responses.event_stream import NumberedEvent
from serve_app.trainings.manager import Training

log = logging.getLogger(__name__)

TRAININGS: Final = "/ads/v2/diffusion/trainings"
_POINTS: Final = 500
"""A loss curve has at most so many points; of a longer one, evenly spread ones are shown."""

_LOOK_S: Final = 0.5


def training_path(training: Training) -> str:
    """The training's URL path."""
    return f"{TRAININGS}/{training.id}"


def training_summary(training: Training) -> dict[str, Any]:
    """How it goes. Reads files."""
    settings = training.run.read_settings()
    return {
        "id": training.id,
        "created_at": datetime.fromtimestamp(training.created, UTC).isoformat(timespec="seconds"),
        "name": None if settings is None else settings.name,
        "model_name": None if settings is None else settings.model_name,
        **asdict(training.progress()),
    }


def training_answer(training: Training) -> dict[str, Any]:
    """All there is to know of it. Reads files."""
    settings, losses, run = training.run.read_settings(), training.run.read_losses(), training.run
    every = -(-len(losses) // _POINTS) or 1
    sheet = _picture_link(training, run.sheet.name) if training.shows_pictures and run.sheet.is_file() else None
    return training_summary(training) | {
        "settings": None if settings is None else json.loads(settings.model_dump_json()),
        "losses": [asdict(point) for point in losses[every - 1 :: every]],
        "samples": _sample_links(training),
        "sheet": sheet,
        "evaluation": run.read_evaluation(),
    }


def training_not_found() -> Problem:
    """The answer where a tenant has no such training."""
    return Problem(404, "training_not_found", "there is no such training")


async def training_events(training: Training, seen: int, request_id: str) -> AsyncGenerator[NumberedEvent, None]:
    """Yields `training`, all there is to know now; `progress` whenever it has moved; each `sample` picture as it is
    made; and `done`, again with all, when it is over, or `error` if it is removed meanwhile.

    Samples are numbered, and the first `seen` are left out. It is looked at twice a second: another process makes it.
    """
    try:
        async with aclosing(_follow(training, seen)) as events:
            async for each in events:
                yield each
    except Exception:
        if await asyncio.to_thread(training.run.path.is_dir):
            log.exception("request %s: unexpected error", request_id)
            yield None, ("error", internal_error().body(request_id))
        else:
            yield None, ("error", training_not_found().body(request_id))


async def _follow(training: Training, seen: int) -> AsyncGenerator[NumberedEvent, None]:
    yield None, ("training", await asyncio.to_thread(training_answer, training))
    before: dict[str, Any] | None = None
    while True:
        # Its state is read first: what an end leaves behind is there by then.
        summary = await asyncio.to_thread(training_summary, training)
        for link in (await asyncio.to_thread(_sample_links, training))[seen:]:
            seen += 1
            yield str(seen), ("sample", {"id": training.id, "picture": link})
        if summary["name"] is None:
            raise LookupError("it has been removed")
        if summary["state"] not in UNFINISHED:
            yield None, ("done", await asyncio.to_thread(training_answer, training))
            return
        if before is not None and summary != before:
            yield None, ("progress", summary)
        before = summary
        await asyncio.sleep(_LOOK_S)


def _sample_links(training: Training) -> list[str]:
    samples = training.run.list_samples() if training.shows_pictures else []
    return [_picture_link(training, path.name) for path in samples]


def _picture_link(training: Training, name: str) -> str:
    return f"{training_path(training)}/pictures/{name}"
