"""The commands that make pictures: from words, from a picture, inside a mask, along a control image."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from pydantic import ValidationError
from rich.console import Console

from deployments.engine.protocol.errors import EngineError, InvalidParameter
from deployments.engine.protocol.inputs import MaskAlpha, Uploads
from deployments.engine.protocol.params import ControlSettings, GenerationParams
from serve_app.cli import progress
from serve_app.client.client import API_KEY_VARIABLE
from serve_app.config.errors import ConfigError, complaints
from serve_app.config.server import load_config

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Where the command line has a shorter word for a parameter than the HTTP API.
OPTIONS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "style_preset": "style",
    "model_name": "model",
    "mask_feather": "feather",
    "init_image": "image",
    "controlnet_type": "type",
}

Output = Annotated[Path, typer.Option("--output", "-o", help="The file; .png, .webp or .jpg says the format.")]
Url = Annotated[str, typer.Option(help="The server to ask.", envvar="DARKROOM_URL")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        help="For servers that ask for one. Others here can see a command line: better set it.", envvar=API_KEY_VARIABLE
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Make it in this process, with no server.")]
Config = Annotated[str, typer.Option(help="The configuration whose models --local uses.")]
Steps = Annotated[int | None, typer.Option()]
Seed = Annotated[int | None, typer.Option(help="Drawn if not given; the answer tells it.")]
Side = Annotated[int | None, typer.Option(help="Pixels; what suits the model and the picture if not given.")]
Negative = Annotated[str | None, typer.Option()]
Guidance = Annotated[float | None, typer.Option(help="How closely to follow the prompt.")]
Sampler = Annotated[str | None, typer.Option()]
Style = Annotated[str | None, typer.Option(help="A preset's name, or free text.")]
Images = Annotated[int | None, typer.Option(help="Image i uses seed + i and is saved as NAME-i.")]
Model = Annotated[str | None, typer.Option()]
Priority = Annotated[str | None, typer.Option(help="low, normal or high.")]
Strength = Annotated[float | None, typer.Option(help="How far to leave the picture: more than 0, to 1.")]
DEFAULT_URL = "http://127.0.0.1:8000"


def generate(
    context: typer.Context,
    prompt: str,
    output: Output,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    config: Config = "demo",
    steps: Steps = None,
    seed: Seed = None,
    width: Side = None,
    height: Side = None,
    negative_prompt: Negative = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    style: Style = None,
    num_images: Images = None,
    model: Model = None,
    priority: Priority = None,
) -> None:
    """Make a picture. Exit codes: 1 it could not be made, 2 a parameter is wrong, 130 Ctrl-C."""
    _make(context, lambda: (None, ()))


def img2img(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="The picture to start from.")],
    prompt: str,
    output: Output,
    strength: Strength = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    config: Config = "demo",
    steps: Steps = None,
    seed: Seed = None,
    width: Side = None,
    height: Side = None,
    negative_prompt: Negative = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    style: Style = None,
    num_images: Images = None,
    model: Model = None,
    priority: Priority = None,
) -> None:
    """Change a picture as the prompt says. Exit codes as `generate`."""
    _make(context, lambda: (Uploads(image=_read(image, "image"), image_field="image"), ()))


def inpaint(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="The picture to paint in.")],
    prompt: str,
    output: Output,
    mask: Annotated[Path | None, typer.Option(help="Of the picture's size; white is painted anew.")] = None,
    mask_type: Annotated[str, typer.Option(help="Without --mask: center, border, top_left, ellipse, ...")] = "center",
    mask_alpha: Annotated[
        str | None,
        typer.Option(help="What a mask's transparency means where its colours leave it open: strokes, holes."),
    ] = None,
    feather: Annotated[int | None, typer.Option(help="Pixels inside the mask's edge over which both mix.")] = None,
    strength: Strength = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    config: Config = "demo",
    steps: Steps = None,
    seed: Seed = None,
    width: Side = None,
    height: Side = None,
    negative_prompt: Negative = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    style: Style = None,
    num_images: Images = None,
    model: Model = None,
    priority: Priority = None,
) -> None:
    """Paint a part of a picture anew, and leave the rest to the byte. Exit codes as `generate`."""

    def uploads() -> Uploads:
        if mask is None:
            return Uploads(image=_read(image, "image"), mask_type=mask_type)
        meaning = None if mask_alpha is None else _mask_alpha(mask_alpha)
        return Uploads(image=_read(image, "image"), mask=_read(mask, "mask"), mask_alpha=meaning)

    _make(context, lambda: (uploads(), ()))


def control(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="A hint; with --preprocess, a photo to make one from.")],
    prompt: str,
    output: Output,
    type: Annotated[str, typer.Option(help="The ControlNet: canny, depth, ...")] = "canny",
    scale: Annotated[float, typer.Option(help="How strongly it acts, 0 to 2.")] = 1.0,
    preprocess: Annotated[bool, typer.Option("--preprocess", help="Make the hint from a photo.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    config: Config = "demo",
    steps: Steps = None,
    seed: Seed = None,
    width: Side = None,
    height: Side = None,
    negative_prompt: Negative = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    style: Style = None,
    num_images: Images = None,
    model: Model = None,
    priority: Priority = None,
) -> None:
    """Make a picture that follows another's edges, depth, ... Exit codes as `generate`."""
    settings = {"type": type, "scale": scale}
    _make(context, lambda: (Uploads(hints=(_read(image, "image"),), preprocess=preprocess), (settings,)))


def _mask_alpha(said: str) -> MaskAlpha:
    if said not in get_args(MaskAlpha):
        raise InvalidParameter("mask_alpha", f"must be one of {', '.join(get_args(MaskAlpha))}")
    return cast(MaskAlpha, said)


Pictures = Callable[[], tuple[Uploads | None, tuple[dict[str, Any], ...]]]
"""Gives the pictures that go along, and the ControlNets' settings. Raises InvalidParameter."""

_NOT_PARAMETERS = frozenset(
    (
        "output",
        "url",
        "api_key",
        "local",
        "config",
        "image",
        "mask",
        "mask_type",
        "mask_alpha",
        "type",
        "scale",
        "preprocess",
    )
)


def failed(message: str, exit_code: int = EXIT_FAILED) -> typer.Exit:
    """Says what went wrong, in one line, and gives what to raise."""
    typer.secho(f"darkroom: {message}", err=True, fg="red")
    return typer.Exit(exit_code)


def _make(context: typer.Context, pictures: Pictures) -> None:
    """What all these commands do; the parameters are those of the command line, as they were parsed."""
    said = context.params
    output = Path(said["output"])
    try:
        uploads, controls = pictures()
        params = _params(said, controls, output)
        if said["local"]:
            service = progress.local_service(load_config(said["config"]), params.model_name)
            life = progress.from_engine(service, params, uploads)
        else:
            life = progress.from_server(said["url"], params, uploads, said["api_key"])
        _save(progress.watch(life, output.name, Console(stderr=True)), output, numbered=params.num_images > 1)
    except ConfigError as error:
        raise failed(str(error), EXIT_USAGE) from None
    except InvalidParameter as error:
        raise failed(f"{OPTIONS.get(error.field, error.field)}: {error.message}", EXIT_USAGE) from None
    except EngineError as error:
        raise failed(error.message) from None
    except OSError as error:
        raise failed(f"the picture could not be saved: {error.strerror}") from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _params(said: dict[str, Any], controls: tuple[dict[str, Any], ...], output: Path) -> GenerationParams:
    """Checked here, so that a slip is told without a server and without loading a model."""
    theirs = {short: name for name, short in OPTIONS.items()}
    given = {
        theirs.get(name, name): value
        for name, value in said.items()
        if value is not None and name not in _NOT_PARAMETERS
    }
    if controls:
        given["controls"] = tuple(_checked(ControlSettings, settings) for settings in controls)
    params: GenerationParams = _checked(GenerationParams, given | {"output_format": progress.output_format(output)})
    return params


def _checked(kind: Any, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except ValidationError as error:
        field, _, rule = next(complaints(error)).partition(": ")
        raise InvalidParameter(field, rule) from None


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidParameter(field, f"{path.name!r} cannot be read: {error.strerror}") from None


def _save(made: Iterator[progress.Picture | progress.Failure], output: Path, *, numbered: bool) -> None:
    """Writes each picture when it comes, so that one that fails does not cost the others."""
    failures: list[str] = []
    for item in made:
        if isinstance(item, progress.Failure):
            failures.append(f"image {item.index}: {item.message}" if numbered else item.message)
            continue
        path = progress.path_of(item, output, numbered=numbered)
        path.write_bytes(item.data)
        print(f"{path} (seed {item.seed})", flush=True)
    if failures:
        raise EngineError("; ".join(failures))
