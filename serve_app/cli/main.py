"""The `darkroom` command. Errors are one line; exit codes are below `--help`."""

import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError

from deployments.annotators.models import check_annotator
from deployments.annotators.spec import network_sources
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import sources_of
from deployments.loras.catalogue import LoraCatalogue
from deployments.registry import with_known_size
from deployments.source_checks import check_source, check_upscaler, is_missing_path
from serve_app.callbacks.signing import WebhookSigner
from serve_app.cli import batch, generate, jobs, keys, listing, webhooks
from serve_app.cli import k8s as kubernetes_commands
from serve_app.cli.exits import EXIT_CODES, EXIT_USAGE, exit_with
from serve_app.cli.pictures import restyle, upscale
from serve_app.cli.training import loras, train
from serve_app.config.deployments import IngressConfig
from serve_app.config.errors import ConfigError, describe_errors
from serve_app.config.server import AppConfig, load_config, packaged_configs
from serve_app.gateway.hosts import EVERY_ADDRESS
from serve_app.gateway.setup import check_gateway
from serve_app.launch import launcher
from serve_app.serving.node_environment import read_head_timeout_s

app = typer.Typer(
    name="darkroom",
    help="Stable Diffusion images, batched at the level of single denoising steps.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def serve(
    config: Annotated[
        str, typer.Option(help=f"A YAML file, or a packaged configuration: {', '.join(packaged_configs())}.")
    ] = "demo",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Let everybody use it who can reach --host, other machines too.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that it is served under besides localhost, as in `ingress.hosts`; may be repeated."),
    ] = None,
) -> None:
    """Serve in the foreground until Ctrl-C. Exit codes: 1 it could not run, 2 port or configuration are wrong."""
    settings = _read_config(config)
    if without_keys and settings.keys is not None:
        raise exit_with("--without-keys, but the configuration has `keys`", EXIT_USAGE)
    settings = settings.model_copy(update={"without_keys": without_keys or settings.without_keys})
    settings = _add_hosts(settings, host, allow_host or [])
    try:
        check_gateway(settings, host)
        if settings.callbacks is not None:
            WebhookSigner(settings.callbacks.webhook_secrets)
        read_head_timeout_s()
    except (ConfigError, ValueError) as error:
        raise exit_with(str(error), EXIT_USAGE) from None
    try:
        launcher.serve(settings, host, port, say=lambda line: print(line, flush=True))
    except launcher.LaunchError as error:
        raise exit_with(str(error), error.exit_code) from None


@app.command()
def fetch(
    config: Annotated[str, typer.Option(help="A YAML file, or a packaged configuration.")],
    attempts: Annotated[int, typer.Option(min=1, help="For each model, with pauses of 10, 20, 40 ... s.")] = 1,
    check: Annotated[bool, typer.Option("--check", help="Only ask the hub for each row: fetch no weights.")] = False,
) -> None:
    """Bring the files of all its models to this machine, into the hub's cache. Exit codes as `serve`."""
    # Imported here because it is slow, and only this needs it.
    from deployments.weights import fetching, hub_check

    settings = _read_config(config, is_elsewhere=check)
    hosted = [
        (spec, "cuda" if deployment.num_gpus else "cpu", deployment.dtype)
        for deployment in settings.deployments
        for spec in settings.specs_of(deployment)
    ]
    annotators, upscalers = settings.annotators.specs(), [upscaler.spec() for upscaler in settings.upscalers]
    loras = settings.loras.catalogue().rows
    if check:
        checks = hub_check.check_hub(hosted, annotators, upscalers, loras)
        answers = list(_print_answers(checks))
        if wrong := answers.count(False):
            raise exit_with(f"{wrong} of {len(answers)} rows cannot be loaded")
        return
    try:
        say = partial(print, flush=True)
        fetching.fetch(hosted, annotators, attempts, say, upscalers=upscalers, loras=loras)
    except ModelLoadError as error:
        raise exit_with(error.message) from None


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A folder, a repository on the hub, or a checkpoint in one file.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; it must not exist yet.")],
    revision: Annotated[str | None, typer.Option(help="The commit, where SOURCE is on the hub.")] = None,
    config: Annotated[
        str, typer.Option(help="For a file: a folder in diffusers' layout whose configs describe it.")
    ] = "",
    prediction_type: Annotated[
        str, typer.Option(help="For a Stable Diffusion 2.x file: epsilon (base, 512 pixels) or v_prediction (768).")
    ] = "",
) -> None:
    """Make a folder of safetensors out of pickled weights or a single file. Exit codes: 1 refused, 2 wrongly asked."""
    # Imported here because it is slow, and only this needs it.
    from deployments.weights import conversion

    if prediction_type not in ("", "epsilon", "v_prediction"):
        raise exit_with("--prediction-type must be epsilon or v_prediction", EXIT_USAGE)
    try:
        conversion.convert(source, folder, revision, conversion.Settings(config, prediction_type))
    except ModelLoadError as error:
        raise exit_with(error.message) from None
    except OSError as error:
        raise exit_with(f"the folder could not be written: {error.strerror}") from None
    print(f"{folder} is ready: set it as `source`")


_MARKS: Final = {True: "ok   ", False: "WRONG", None: "?    "}


def _print_answers(answers: Iterator[tuple[str, bool | None]]) -> Iterator[bool | None]:
    """Prints each line as soon as it is known."""
    for line, verdict in answers:
        print(f"{_MARKS[verdict]} {line}", flush=True)
        yield verdict


for _command in (generate.generate, generate.img2img, generate.inpaint, generate.control):
    app.command()(_command)
app.add_typer(keys.app, name="keys")
app.command()(batch.batch)
app.add_typer(jobs.app, name="jobs")
app.command("list")(listing.list_names)
app.command()(restyle.restyle)
app.command()(upscale.upscale)
app.command()(train.train)
app.add_typer(loras.app, name="loras")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(kubernetes_commands.app, name="k8s")


def _add_hosts(settings: AppConfig, bound: str, allowed: list[str]) -> AppConfig:
    """Returns `settings` with the names from the command line, and the bound address if names are restricted."""
    named = [*settings.ingress.hosts, *allowed]
    if (named or settings.keys is None) and bound not in EVERY_ADDRESS:
        named.append(bound.partition("%")[0])
    try:
        ingress = IngressConfig.model_validate(settings.ingress.model_dump(exclude_unset=True) | {"hosts": named})
    except ValidationError as error:
        raise exit_with(f"--allow-host: {next(describe_errors(error)).partition(': ')[2]}", EXIT_USAGE) from None
    return settings.model_copy(update={"ingress": ingress})


def _read_config(config: str, *, is_elsewhere: bool = False) -> AppConfig:
    """Loads the configuration, and checks that all files that it names can be expected to exist.

    If what it configures `is_elsewhere`, absolute paths that are not on this machine may be there.
    """
    try:
        settings = load_config(config)
        for sources, check in _source_checks(settings):
            if not (is_elsewhere and any(is_missing_path(source) for source in sources)):
                check()
    except (ConfigError, ModelLoadError) as error:
        raise exit_with(str(error), EXIT_USAGE) from None
    return settings


def _source_checks(settings: AppConfig) -> Iterator[tuple[list[str], Callable[[], object]]]:
    """Yields the sources of each model, annotator, upscaler and LoRA, and their check, which raises ModelLoadError."""
    for deployment in settings.deployments:
        for spec in settings.specs_of(deployment):
            sources = [part.source for part in sources_of(spec)]
            yield sources, partial(check_source, spec)
            yield sources, partial(with_known_size, spec)
    for kind, annotator in settings.annotators.specs().items():
        yield [part.source for part in network_sources(annotator).values()], partial(check_annotator, kind, annotator)
    for upscaler in (each.spec() for each in settings.upscalers):
        yield [upscaler.source], partial(check_upscaler, upscaler)
    for row in settings.loras.catalogue().rows:
        yield [row.source], LoraCatalogue([row]).check_rows


def main() -> None:
    """The entry point of the `darkroom` command."""
    # Names of files need not be text, and servers tell what they like: it is printed as standard error has it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
