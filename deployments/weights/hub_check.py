"""Checks on the hub, without fetching, that the commits and the weights in them are there."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from deployments.annotators.spec import AnnotatorSpecs, network_sources
from deployments.engine.models.components import wants_half
from deployments.engine.models.hub import select_files
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import PARTS, SECOND_PARTS, ModelSpec, PartSpec, UpscalerSpec, as_part
from deployments.loras.catalogue import LoraSpec
from deployments.source_checks import UNPINNED, is_missing_path
from deployments.weights.fetching import Hosted

_WITHOUT_WEIGHTS: Final = ("tokenizer", "scheduler")
_WEIGHTS: Final = ".safetensors"
_CHANGE: Final = "change `revision` of this row, in the configuration or in deployments/pins.py"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A source of files: whose it is, which subfolders are needed, and in which precision; or, if it `is_file`, which
    file.
    """

    title: str
    part: PartSpec
    folders: tuple[str, ...]
    half: bool
    is_file: bool = False


def check_hub(
    models: Iterable[Hosted],
    annotators: AnnotatorSpecs,
    upscalers: Iterable[UpscalerSpec] = (),
    loras: Iterable[LoraSpec] = (),
) -> Iterator[tuple[str, bool | None]]:
    """Yields a line for each repository and folder, and whether it can be loaded; None for an absolute path that this
    machine does not have. No weights are downloaded.
    """
    seen: set[FileSource] = set()
    for row in (*_model_sources(models), *_annotator_sources(annotators)):
        if row not in seen:
            seen.add(row)
            verdict, is_loadable = _check_source(row)
            yield f"{row.title}: {row.part.source}: {verdict}", is_loadable
    files: list[UpscalerSpec | LoraSpec] = [*upscalers, *loras]
    for one in files:
        title = f"{'LoRA' if isinstance(one, LoraSpec) else 'upscaler'} {one.name!r}"
        row = FileSource(title, PartSpec(one.source, one.revision), (one.file,), half=False, is_file=True)
        verdict, is_loadable = _check_source(row)
        yield f"{title}: {one.source}: {verdict}", is_loadable


def _model_sources(models: Iterable[Hosted]) -> Iterator[FileSource]:
    for spec, device, dtype in models:
        half = wants_half(device, dtype)
        own = tuple(name for name in PARTS if name not in spec.parts)
        title = f"model {spec.name!r}"
        needed = (spec.file,) if spec.file else own
        yield FileSource(title, PartSpec(spec.source, spec.revision), needed, half, is_file=bool(spec.file))
        yield from _named_sources(spec, title, half)


def _named_sources(spec: ModelSpec, title: str, half: bool) -> Iterator[FileSource]:
    for name, part in spec.parts.items():
        yield FileSource(f"{title}: its {name}", as_part(part), ("",), half)
    for name, part in spec.controlnets.items():
        yield FileSource(f"{title}: its ControlNet {name!r}", as_part(part), ("",), half)
    for name, adapter in spec.ip_adapters.items():
        named = f"{title}: its IP-Adapter {name!r}"
        yield FileSource(named, PartSpec(adapter.source, adapter.revision), (adapter.file,), half, is_file=True)
        encoder = PartSpec(adapter.image_encoder, adapter.image_encoder_revision)
        yield FileSource(f"{named}, its image encoder", encoder, (adapter.subfolder,), half)


def _annotator_sources(annotators: AnnotatorSpecs) -> Iterator[FileSource]:
    for kind, annotator in annotators.items():
        for place, part in network_sources(annotator).items():
            yield FileSource(
                ": its ".join(step for step in (f"annotator {kind!r}", place) if step), part, ("",), half=False
            )


def _check_source(row: FileSource) -> tuple[str, bool | None]:
    if Path(row.part.source).exists():
        return "on this machine", True
    if is_missing_path(row.part.source):
        return "not on this machine; another that has it can tell", None
    if row.part.revision is UNPINNED:
        return "pin `revision` of this row to a commit", False
    try:
        return _check_file(row) if row.is_file else _check_repository(row)
    except GatedRepoError:
        return "it is gated: accept its terms on the hub, and set HF_TOKEN", False
    except RevisionNotFoundError:
        return f"the hub has no commit {row.part.revision!r} of it: {_CHANGE}", False
    except RepositoryNotFoundError:
        return (
            "the hub shows no such repository: change `source` of this row, or set HF_TOKEN if it is not public",
            False,
        )
    except Exception:  # the client raises all sorts where the hub does not answer
        return "the hub is out of reach", False


def _check_repository(row: FileSource) -> tuple[str, bool]:
    api = HfApi()
    info = api.model_info(row.part.source, revision=row.part.revision, files_metadata=True)
    if info.gated:
        api.auth_check(row.part.source)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    revision = row.part.revision or ""
    try:
        files = list(select_files(row.title, row.part.source, revision, sizes, row.folders, half=row.half))
    except ModelLoadError as error:
        return error.message.removeprefix(f"{row.title}: "), False
    lacking = _missing_folders(row, files)
    if lacking:
        return f"at {revision} it has no {', '.join(lacking)}: {_CHANGE}", False
    weights = [name for name in files if name.endswith(_WEIGHTS)]
    total = sum(sizes[name] for name in files) / 1e9
    gated = ", gated, and open to this token" if info.gated else ""
    return f"{revision} is there; {len(weights)} files of weights, {total:.2f} GB{gated}", True


def _check_file(row: FileSource) -> tuple[str, bool]:
    """Checks a repository of which one file is needed, which stands in place of the folders."""
    (name,), revision = row.folders, row.part.revision
    info = HfApi().model_info(row.part.source, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if name not in sizes:
        return f"at {revision} it has no {name}: change `file` of this row in the configuration", False
    return f"{revision} is there; {name}, {sizes[name] / 1e6:.1f} MB", True


def _missing_folders(row: FileSource, files: Sequence[str]) -> list[str]:
    """Returns the needed folders that are networks, and of which nothing would be fetched."""
    there = {_folder(name) for name in files if name.endswith(_WEIGHTS)}
    # A second text encoder belongs to some models only; one without weights has been refused.
    optional = (*_WITHOUT_WEIGHTS, *SECOND_PARTS)
    return [folder for folder in row.folders if folder and folder not in (*optional, *there)]


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent).removesuffix(".")
