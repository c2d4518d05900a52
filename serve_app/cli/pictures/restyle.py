"""`darkroom restyle`: makes the pictures of a folder take after reference images, as jobs, and saves them."""

import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.completion import complete_adapter, complete_model, complete_sampler, complete_style
from serve_app.cli.exits import EXIT_NO_IMAGE, exit_on_errors, exit_with
from serve_app.cli.options import FIELDS, ApiKey, AsJson, Priority, Url, option_of
from serve_app.cli.progress import check_url
from serve_app.cli.results import SavedJob, make_folder, save_all, say, summary_of
from serve_app.cli.waiting import submit
from serve_app.client import DarkroomClient
from serve_app.client.messages import DEFAULT_URL
from serve_app.generation.prepare import draw_seed
from serve_app.jobs.pictures import MAX_SET

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")

MAX_SET_BYTES: Final = 24 * 1024 * 1024
"""What is sent in one call: servers take 32 MiB unless they are told otherwise."""


def restyle(
    folder: Annotated[Path, typer.Argument(help="The pictures: its PNG, JPEG and WebP files.")],
    reference: Annotated[list[Path], typer.Option(help="A picture to take after; up to four times.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder; pictures are named as theirs are.")],
    prompt: Annotated[str, typer.Option(help="What all of them show; may be left out.")] = "",
    strength: Annotated[float | None, typer.Option(help="How far to leave the pictures: more than 0, to 1.")] = None,
    reference_scale: Annotated[float | None, typer.Option(help="How strongly to take after it, 0 to 2.")] = None,
    reference_adapter: Annotated[
        str | None, typer.Option(help="The IP-Adapter, where the model has several.", autocompletion=complete_adapter)
    ] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(help="One for all; drawn if not given.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    style: Annotated[str | None, typer.Option(help="A preset's name, or text.", autocompletion=complete_style)] = None,
    sampler: Annotated[str | None, typer.Option(autocompletion=complete_sampler)] = None,
    model: Annotated[str | None, typer.Option(autocompletion=complete_model)] = None,
    num_images: Annotated[int | None, typer.Option(help="Of each picture.")] = None,
    priority: Priority = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Restyle a folder of pictures after others, each in its own shape. Ctrl-C cancels what is not done."""
    options = {
        "prompt": prompt,
        "strength": strength,
        "steps": steps,
        # Drawn here: a folder may take several calls, and each would draw its own.
        "seed": draw_seed() if seed in (None, -1) else seed,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
        "style": style,
        "sampler": sampler,
        "model": model,
        "num_images": num_images,
        "priority": priority,
    }
    how = {"scale": reference_scale, "adapter": reference_adapter}
    fields: dict[str, Any] = {FIELDS.get(name, name): value for name, value in options.items() if value is not None}
    fields["reference"] = {name: value for name, value in how.items() if value is not None}
    with exit_on_errors(as_json=as_json, url=url, name_of=option_of):
        paths = _pictures_in(folder)
        references = [_read(path, "reference") for path in reference]
        check_url(url)
        _check_sources_stay([*paths.values(), *reference], paths, folder, output)
        make_folder(output)
        with DarkroomClient(url, api_key=api_key) as client:
            calls = _in_calls(paths, references)
            failed = sum(_restyle_some(client, some, references, fields, output, as_json) for some in calls)
    if failed:
        raise exit_with(f"{failed} of {len(paths)} pictures could not be restyled", EXIT_NO_IMAGE)


def _restyle_some(
    client: DarkroomClient,
    paths: dict[str, Path],
    references: Sequence[bytes],
    fields: dict[str, Any],
    output: Path,
    as_json: bool,
) -> int:
    """Restyles what one call can have, and returns how many of it failed."""
    names = list(paths)
    saved = SavedJob(output, as_json, names.__getitem__, "picture")
    files = [_read(path, "folder") for path in paths.values()]
    key = uuid.uuid4().hex
    job_id = submit(client, lambda client: client.submit_restyle(files, references, idempotency_key=key, **fields))
    job = save_all(client, job_id, saved)
    if as_json:
        say("", summary_of(job))
    return saved.errors + len(names) - len(saved.seen)


def _pictures_in(folder: Path) -> dict[str, Path]:
    """Returns the folder's pictures by the names that the restyled ones get. Raises InvalidParameter."""
    if not folder.is_dir():
        raise InvalidParameter("folder", f"there is no folder {str(folder)!r}")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise InvalidParameter("folder", f"{str(folder)!r} cannot be read: {error.strerror}") from None
    if not paths:
        raise InvalidParameter("folder", f"has no picture: no {', '.join(SUFFIXES)}")
    stems, names = Counter(path.stem for path in paths), {path.name for path in paths}
    # Of a.png, a.jpg and a.png.png, the last one's stem is the first one's name.
    return {path.stem if stems[path.stem] == 1 and path.stem not in names else path.name: path for path in paths}


def _check_sources_stay(sources: list[Path], names: Collection[str], folder: Path, output: Path) -> None:
    """Raises InvalidParameter if a restyled picture could take the place of one that it is made from."""
    if output.resolve() == folder.resolve():
        raise InvalidParameter("output", "must be another folder than that of the pictures, which would be replaced")
    for real in (source.resolve() for source in sources):
        if real.parent == output.resolve() and real.stem.rpartition("-")[0] in names:
            raise InvalidParameter("output", f"has {real.name!r}, which is a source and could be replaced")


def _in_calls(paths: dict[str, Path], references: Sequence[bytes]) -> Iterator[dict[str, Path]]:
    """Yields what goes into each call: as many pictures as it may have, and as many bytes as servers take."""
    room = MAX_SET_BYTES - sum(map(len, references))
    some: dict[str, Path] = {}
    size = 0
    for name, path in paths.items():
        own = path.stat().st_size
        if some and (len(some) == MAX_SET or size + own > room):
            yield some
            some, size = {}, 0
        some[name] = path
        size += own
    yield some


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidParameter(option, f"{path.name!r} cannot be read: {error.strerror}") from None
