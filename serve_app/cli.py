"""The command line: `darkroom serve` and `darkroom generate`. Errors are one line; exit codes are in `--help`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from deployments.engine.errors import EngineError, InvalidParameter, ModelLoadError
from deployments.engine.params import GenerationParams
from deployments.registry import check_source
from serve_app import launcher, making
from serve_app.config import AppConfig, load_config
from serve_app.config_errors import ConfigError, complaints
from serve_app.local_backend import sized

app = typer.Typer(
    name="darkroom",
    help="Stable Diffusion images, batched at the level of single denoising steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Where the command line has a shorter word for a parameter than the HTTP API.
OPTIONS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "style_preset": "style",
    "model_name": "model",
}


@app.command()
def serve(
    config: Annotated[str, typer.Option(help="A YAML file, or a packaged configuration: demo, production.")] = "demo",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Serve in the foreground until Ctrl-C. Exit codes: 1 it could not run, 2 port or configuration are wrong."""
    settings = _settings(config)
    try:
        launcher.serve(settings, host, port, say=lambda line: print(line, flush=True))
    except launcher.LaunchError as error:
        raise _failed(str(error), error.exit_code) from None


@app.command()
def generate(
    prompt: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file; .png, .webp or .jpg says the format.")],
    url: Annotated[str, typer.Option(help="The server to ask.", envvar="DARKROOM_URL")] = "http://127.0.0.1:8000",
    local: Annotated[bool, typer.Option("--local", help="Make it in this process, with no server.")] = False,
    config: Annotated[str, typer.Option(help="The configuration whose models --local uses.")] = "demo",
    steps: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(help="Drawn if not given; the answer tells it.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own size if not given.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own size if not given.")] = None,
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    sampler: Annotated[str | None, typer.Option()] = None,
    style: Annotated[str | None, typer.Option(help="A preset's name, or free text.")] = None,
    num_images: Annotated[int | None, typer.Option(help="Image i uses seed + i and is saved as NAME-i.")] = None,
    model: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Make a picture. Exit codes: 1 it could not be made, 2 a parameter is wrong, 130 Ctrl-C."""
    given = {
        "prompt": prompt,
        "num_inference_steps": steps,
        "seed": seed,
        "width": width,
        "height": height,
        "negative_prompt": negative_prompt,
        "guidance_scale": guidance,
        "sampler": sampler,
        "style_preset": style,
        "num_images": num_images,
        "model_name": model,
    }
    try:
        params = _params({name: value for name, value in given.items() if value is not None}, output)
        life = _made_here(config, params) if local else making.from_server(url, params)
        _save(making.watch(life, output.name, Console(stderr=True)), output, numbered=params.num_images > 1)
    except ConfigError as error:
        raise _failed(str(error), EXIT_USAGE) from None
    except InvalidParameter as error:
        raise _failed(f"{OPTIONS.get(error.field, error.field)}: {error.message}", EXIT_USAGE) from None
    except EngineError as error:
        raise _failed(error.message) from None
    except OSError as error:
        raise _failed(f"the picture could not be saved: {error.strerror}") from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _params(given: dict[str, Any], output: Path) -> GenerationParams:
    """Checked here, so that a slip is told without a server and without loading a model."""
    try:
        return GenerationParams(**given, output_format=making.output_format(output))
    except ValidationError as error:
        field, _, rule = next(complaints(error)).partition(": ")
        raise InvalidParameter(field, rule) from None


def _made_here(config: str, params: GenerationParams) -> making.Life:
    service = making.local_service(load_config(config), params.model_name)
    return making.from_engine(service, params)


def _save(made: Iterator[making.Picture | making.Failure], output: Path, *, numbered: bool) -> None:
    """Writes each picture when it comes, so that one that fails does not cost the others."""
    failures: list[str] = []
    for item in made:
        if isinstance(item, making.Failure):
            failures.append(f"image {item.index}: {item.message}" if numbered else item.message)
            continue
        path = making.path_of(item, output, numbered=numbered)
        path.write_bytes(item.data)
        print(f"{path} (seed {item.seed})", flush=True)
    if failures:
        raise EngineError("; ".join(failures))


def _settings(config: str) -> AppConfig:
    """The configuration, with models whose files can be expected to be there."""
    try:
        settings = load_config(config)
        for deployment in settings.deployments:
            for spec in settings.specs_of(deployment):
                check_source(spec)
                sized(spec)
    except (ConfigError, ModelLoadError) as error:
        raise _failed(str(error), EXIT_USAGE) from None
    return settings


def _failed(message: str, exit_code: int = EXIT_FAILED) -> typer.Exit:
    typer.secho(f"darkroom: {message}", err=True, fg="red")
    return typer.Exit(exit_code)


def main() -> None:
    """The entry point of the `darkroom` command."""
    app()


if __name__ == "__main__":
    main()
