"""What the shell is offered for an option: names that the server has, or that come with Darkroom if none answers.

`darkroom --install-completion` installs it; `_DARKROOM_COMPLETE=source_bash darkroom` (`source_zsh`, `source_fish`)
prints what a shell reads.
"""

from collections.abc import Iterable
from typing import Any, Final

import typer

from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS
from deployments.registry import known_models
from serve_app.client import DarkroomClient, DarkroomError
from serve_app.client.messages import DEFAULT_URL, Listed
from serve_app.generation.styles import STYLES

# A key press waits for it.
ANSWER_S: Final = 1.0


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """The models' names and aliases."""
    rows = _ask(ctx, "models")
    names = known_models() if rows is None else (name for row in rows for name in (row["name"], *row["aliases"]))
    return _beginning(names, incomplete)


def complete_adapter(ctx: typer.Context, incomplete: str) -> list[str]:
    """The IP-Adapters' names: those of the model on the command line, or of all."""
    model = ctx.params.get("model")
    rows = _ask(ctx, "models") or ()
    named = [row for row in rows if model is None or model in (row["name"], *row["aliases"])]
    return _beginning((name for row in named for name in row["ip_adapters"]), incomplete)


def complete_sampler(incomplete: str) -> list[str]:
    """The samplers' names; every server of this version has the same."""
    return _beginning((CHECKPOINT, *SAMPLERS), incomplete)


def complete_style(incomplete: str) -> list[str]:
    """The styles' names; every server of this version has the same."""
    return _beginning(STYLES, incomplete)


def complete_job(ctx: typer.Context, incomplete: str) -> list[str]:
    """The ids of one's own newest jobs."""
    try:
        with _client(ctx) as client:
            return _beginning((job["id"] for job in client.jobs()), incomplete)
    except DarkroomError:
        return []


def _ask(ctx: typer.Context, what: Listed) -> list[dict[str, Any]] | None:
    try:
        with _client(ctx) as client:
            return client.list_of(what)
    except DarkroomError:
        return None


def _client(ctx: typer.Context) -> DarkroomClient:
    url, key = ctx.params.get("url") or DEFAULT_URL, ctx.params.get("api_key")
    return DarkroomClient(url, ANSWER_S, api_key=key, retries=0)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
