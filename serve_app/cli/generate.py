"""The commands that generate images: from text, from an image, inside a mask, along a control image."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from pydantic import ValidationError
from rich.console import Console

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import MaskAlpha, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import ControlSettings
from serve_app.cli import progress
from serve_app.cli.exits import EXIT_NO_IMAGE, exit_on_errors, exit_with
from serve_app.cli.options import OwnInputs, ReadInputs, option_of, parameters_of, with_shared_options
from serve_app.cli.results import save, say
from serve_app.config.errors import describe_errors
from serve_app.config.server import load_config

_Strength = Annotated[float | None, typer.Option(help="How far to leave the picture: more than 0, to 1.")]


def _run(read_inputs: ReadInputs, options: Mapping[str, Any]) -> None:
    """Makes a command's images with its `options`, here or on a server, and saves them. Raises typer.Exit."""
    output, url = Path(options["output"]), options["url"]
    hint = "; start one with `make serve`, or make it here with --local"
    with exit_on_errors(as_json=options["json"], url=url, hint=hint, name_of=option_of) as done:
        if options["config"] is not None and not options["local"]:
            raise InvalidParameter("config", "is of --local: a server has its own")
        own = read_inputs()
        params = _read_params(parameters_of(options, own.parameters), output)
        uploads = _with_references(own.uploads, options["reference"] or ())
        if options["local"]:
            service = progress.create_local_service(load_config(options["config"] or "demo"), params.model_name)
            events = progress.run_in_process(service, params, uploads)
        else:
            events = progress.stream_from_server(url, params, uploads, options["api_key"])
        with closing(events):
            images = progress.show_progress(events, output.name, Console(stderr=True))
            failures = _save(images, output, done, numbered=params.num_images > 1, as_json=options["json"])
        if options["json"]:
            say("", done)
        if failures:
            raise exit_with("; ".join(failures), EXIT_NO_IMAGE)


@with_shared_options(_run)
def generate() -> OwnInputs:
    """Make a picture. Ctrl-C ends the server's work as well. Exit codes are below `darkroom --help`."""
    return OwnInputs()


@with_shared_options(_run)
def img2img(
    image: Annotated[Path, typer.Argument(help="The picture to start from.")], strength: _Strength = None
) -> OwnInputs:
    """Change a picture as the prompt says."""
    return OwnInputs(Uploads(image=_read_file(image, "image"), image_field="image"), {"strength": strength})


@with_shared_options(_run)
def inpaint(
    image: Annotated[Path, typer.Argument(help="The picture to paint in.")],
    mask: Annotated[Path | None, typer.Option(help="Of the picture's size; white is painted anew.")] = None,
    mask_type: Annotated[
        str | None, typer.Option(help="Without --mask: center (if not given), border, top_left, ellipse, ...")
    ] = None,
    mask_alpha: Annotated[
        str | None,
        typer.Option(help="What a mask's transparency means where its colours leave it open: strokes, holes."),
    ] = None,
    feather: Annotated[int | None, typer.Option(help="Pixels inside the mask's edge over which both mix.")] = None,
    invert_mask: Annotated[bool, typer.Option("--invert-mask", help="Keep the mask, and paint the rest.")] = False,
    fill: Annotated[
        str | None, typer.Option(help="What it begins from below strength 1: original, surroundings, noise, zero.")
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(help="Make only the masked part, with that many pixels around it, and paste it back."),
    ] = None,
    strength: _Strength = None,
) -> OwnInputs:
    """Paint a part of a picture anew, and leave the rest to the byte."""
    parameters = {
        "feather": feather,
        "invert_mask": invert_mask or None,
        "fill": fill,
        "crop": crop,
        "strength": strength,
    }
    if mask is None:
        if mask_alpha is not None:
            raise InvalidParameter("mask_alpha", "is of a --mask, and there is none")
        return OwnInputs(Uploads(image=_read_file(image, "image"), mask_type=mask_type or "center"), parameters)
    if mask_type is not None:
        raise InvalidParameter("mask_type", "is in place of a --mask, and there is one")
    alpha = None if mask_alpha is None else _check_mask_alpha(mask_alpha)
    uploads = Uploads(image=_read_file(image, "image"), mask=_read_file(mask, "mask"), mask_alpha=alpha)
    return OwnInputs(uploads, parameters)


@with_shared_options(_run)
def control(
    image: Annotated[Path, typer.Argument(help="A hint; with --preprocess, a photo to make one from.")],
    type: Annotated[str, typer.Option(help="The ControlNet: canny, depth, ...")] = "canny",
    scale: Annotated[float, typer.Option(help="How strongly it acts, 0 to 2.")] = 1.0,
    preprocess: Annotated[bool, typer.Option("--preprocess", help="Make the hint from a photo.")] = False,
) -> OwnInputs:
    """Make a picture that follows another's edges, depth, ..."""
    uploads = Uploads(hints=(_read_file(image, "image"),), preprocess=preprocess)
    return OwnInputs(uploads, {"controls": (_check(ControlSettings, {"type": type, "scale": scale}),)})


def _with_references(uploads: Uploads | None, references: Sequence[Path]) -> Uploads | None:
    """Returns a command's uploads with reference images. Raises InvalidParameter."""
    if not references:
        return uploads
    return replace(uploads or Uploads(), references=tuple(_read_file(path, "reference") for path in references))


def _check_mask_alpha(value: str) -> MaskAlpha:
    if value not in get_args(MaskAlpha):
        raise InvalidParameter("mask_alpha", f"must be one of {', '.join(get_args(MaskAlpha))}")
    return cast(MaskAlpha, value)


def _read_params(fields: dict[str, Any], output: Path) -> GenerationParams:
    """Checks parameters here, so that a mistake is reported without a server and without loading a model."""
    params: GenerationParams = _check(GenerationParams, fields | {"output_format": progress.output_format(output)})
    return params


def _check(kind: Any, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except ValidationError as error:
        field, _, rule = next(describe_errors(error)).partition(": ")
        raise InvalidParameter(field, rule) from None


def _read_file(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidParameter(field, f"{path.name!r} cannot be read: {error.strerror}") from None


def _save(
    images: Iterator[progress.FinishedImage | progress.Failure],
    output: Path,
    done: dict[str, Any],
    *,
    numbered: bool,
    as_json: bool,
) -> list[str]:
    """Writes each image as soon as it is there, so that one that fails does not cost the others.

    Notes all of them in `done`, and returns what to say of those that failed.
    """
    done |= {"images": [], "failures": []}
    told = []
    for item in images:
        if isinstance(item, progress.Failure):
            done["failures"].append({"index": item.index, "message": item.message})
            told.append(f"image {item.index}: {item.message}" if numbered else item.message)
            continue
        path = progress.path_of(item, output, numbered=numbered)
        save(path, item.data)
        done["images"].append({"index": item.index, "seed": item.seed, "path": str(path), "bytes": len(item.data)})
        if not as_json:
            print(f"{path} (seed {item.seed})", flush=True)
    return told
