"""`darkroom loras`: the commands for LoRAs that were trained here, and their versions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from deployments.engine.protocol.errors import InvalidParameter
from deployments.loras.versions import CARD, LoraVersions
from deployments.training.lora.registration import register as register_run
from deployments.training.lora.run_folder import RunFolder
from serve_app.cli.exits import exit_on_errors
from serve_app.cli.options import AsJson
from serve_app.cli.results import say
from serve_app.config.server import AppConfig, load_config

app = typer.Typer(help="LoRAs that were trained here.", no_args_is_help=True)

Config = Annotated[str, typer.Option(help="The configuration in whose `loras.folder` they are.")]
LoraName = Annotated[str, typer.Argument(help="What requests call it.")]


@app.command("list")
def list_versions(config: Config, as_json: AsJson = False) -> None:
    """All versions of all LoRAs that a training has made; the ones that are served have a star."""
    with _versions(config, as_json) as versions:
        found = versions.find()
        if as_json:
            rows = [{"name": each.name, "version": each.number, "is_served": each.is_served} for each in found]
            say("", {"loras": rows})
            return
        for each in found:
            print(f"{each.name}  {each.number}{'  *' if each.is_served else ''}")


@app.command()
def card(name: LoraName, version: int, config: Config) -> None:
    """The card of a version: what it was made from, and its scores."""
    with _versions(config) as versions:
        print((versions.get(name, version).folder / CARD).read_text(), end="")


@app.command()
def register(
    run: Annotated[Path, typer.Argument(help="The folder of a training that has ended well.")],
    config: Config,
    name: Annotated[str | None, typer.Option(help="What to call it; what the training called it if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve what a training has made, as the newest version of its name."""
    with _versions(config, as_json) as versions:
        made = register_run(RunFolder(run), versions, name)
        say(f"{made.name} is version {made.number}", {"name": made.name, "version": made.number} if as_json else None)


@app.command()
def rollback(
    name: LoraName,
    config: Config,
    to: Annotated[int | None, typer.Option(help="The version; the one before what is served if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve an earlier version again, or with --to any."""
    with _versions(config, as_json) as versions:
        made = versions.roll_back(name) if to is None else versions.serve(name, to)
        say(f"{made.name} is version {made.number}", {"name": made.name, "version": made.number} if as_json else None)


@app.command()
def delete(
    name: LoraName,
    config: Config,
    version: Annotated[int | None, typer.Option(help="One version, which is not served; all if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Delete a LoRA with all its versions, or one version."""
    with _versions(config, as_json) as versions:
        versions.delete(name, version)
        say(f"{name} is deleted", {"name": name, "version": version} if as_json else None)


def versions_of(settings: AppConfig) -> LoraVersions:
    """Returns the versions in a configuration's folder. Raises InvalidParameter if it names none."""
    if settings.loras.folder is None:
        raise InvalidParameter("config", "names no `loras.folder` to serve trained LoRAs from")
    folder = Path(settings.loras.folder)
    folder.mkdir(parents=True, exist_ok=True)
    return LoraVersions(folder, frozenset(row.name for row in settings.loras.named))


@contextmanager
def _versions(config: str, as_json: bool = False) -> Iterator[LoraVersions]:
    """The versions in the configuration's folder; errors end the command in one line."""
    with exit_on_errors(as_json=as_json):
        yield versions_of(load_config(config))
