"""Where a model's files are: in a folder of this machine, or on the Hugging Face hub at a pinned commit.

Only what is needed is fetched: configs, vocabularies and safetensors of the named parts, in half precision where the
model runs in it and the repository has it. Nothing that could hold code. The hub's own settings hold: `HF_HOME`,
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from deployments.engine.errors import ModelLoadError

HALF: Final = "fp16"
"""The hub's name for half-precision files, as in `model.fp16.safetensors`."""

_PLAIN: Final = (".json", ".txt")
_WEIGHTS: Final = ".safetensors"


def locate(title: str, source: str, revision: str | None, parts: Sequence[str], *, half: bool) -> Path:
    """The folder that holds `parts` (subfolders; "" is the top level) of `source`, fetched first if need be.

    A progress bar shows what is fetched. Raises ModelLoadError, which begins with `title` and says what to do.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if revision is None:
        raise ModelLoadError(f"{title}: {source!r} is not a local folder and has no pinned revision")
    try:
        return _fetch(source, revision, parts, half)
    except (GatedRepoError, RepositoryNotFoundError):
        raise ModelLoadError(
            f"{title}: the hub shows no repository {source!r}; check `source`, or set HF_TOKEN if it is not public"
        ) from None
    except RevisionNotFoundError:
        raise ModelLoadError(
            f"{title}: {source!r} has no revision {revision!r} on the hub; change `revision` of this row, in the "
            "configuration or in deployments/pins.py"
        ) from None
    except Exception as error:
        raise ModelLoadError(
            f"{title}: the hub is out of reach, and not all of {source!r} at {revision!r} is in the cache; go online "
            "once, point HF_HOME to a cache that has it, or set `source` to a local folder"
        ) from error


def variant_of(folder: Path, *, half: bool) -> str | None:
    """What `from_pretrained` must call the weights in `folder`: `HALF`, or None for files without a variant.

    Where there is only one kind it is that one, whatever is asked for.
    """
    weights = [path.name for path in folder.glob(f"*{_WEIGHTS}")]
    halves = [name for name in weights if f".{HALF}." in name]
    return HALF if halves and (half or len(halves) == len(weights)) else None


def _fetch(source: str, revision: str, parts: Sequence[str], half: bool) -> Path:
    # A commit never changes: what is in the cache needs no hub, and a server starts without one.
    cached = _cached(source, revision, parts, half)
    if cached is not None:
        return cached
    files = HfApi().list_repo_files(source, revision=revision)
    needed = list(wanted(files, parts, half=half))
    return Path(snapshot_download(source, revision=revision, allow_patterns=needed))


def _cached(source: str, revision: str, parts: Sequence[str], half: bool) -> Path | None:
    """The snapshot in the cache, in either precision; None where it is not whole."""
    prefixes = [f"{part}/" if part else "" for part in parts]
    plain = [f"{prefix}*{kind}" for prefix in prefixes for kind in (*_PLAIN, _WEIGHTS)]
    halves = [pattern.replace(_WEIGHTS, f".{HALF}{_WEIGHTS}") for pattern in plain]
    others = ["*.non_ema.*"]
    for allowed, ignored in [(halves, others)] * half + [(plain, [*others, f"*.{HALF}.*"])]:
        try:
            found = snapshot_download(
                source, revision=revision, allow_patterns=allowed, ignore_patterns=ignored, local_files_only=True
            )
        except LocalEntryNotFoundError:
            continue
        if all(_has(Path(found) / part) for part in parts):
            return Path(found)
    return None


def _has(folder: Path) -> bool:
    """Whether `folder` has what it takes to load it; other programs may have cached a part of a repository only.

    Networks have a config.json, and weights beside it; tokenizers and schedulers have neither.
    """
    needs_weights = (folder / "config.json").exists()
    return any(folder.glob("*.json")) and (not needs_weights or any(folder.glob(f"*{_WEIGHTS}")))


def wanted(files: Iterable[str], parts: Sequence[str], *, half: bool) -> Iterator[str]:
    """Of a repository's `files`, those of `parts` that are needed to load them."""
    inside = [path for path in map(PurePosixPath, files) if str(path.parent).removesuffix(".") in parts]
    halves = {path.parent for path in inside if path.suffixes[-2:] == [f".{HALF}", _WEIGHTS]}
    for path in inside:
        variant = [f".{HALF}"] if half and path.parent in halves else []
        if path.suffix in _PLAIN or path.suffixes == [*variant, _WEIGHTS]:
            yield str(path)
