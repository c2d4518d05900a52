"""Locates a model's files: in a local folder, or on the Hugging Face hub at a pinned commit.

Only what is needed is fetched: configs, vocabularies and safetensors of the named parts, in half precision if the
model runs in it and the repository has it. Nothing that could hold code. The hub's own settings apply: `HF_HOME`,
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from huggingface_hub import HfApi, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from deployments.engine.checkpoints.pipeline_index import names_part
from deployments.engine.checkpoints.weight_files import choose_weights, is_weights_file, missing_weights_error
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.safety import CHECKER_PARTS
from deployments.engine.protocol.spec import INDEX, PARTS, SECOND_PARTS

_PLAIN: Final = (".json", ".txt")
_CONFIG: Final = "config.json"
_DESCRIBED: Final = (*PARTS, *CHECKER_PARTS)


def locate(title: str, source: str, revision: str | None, parts: Sequence[str], *, half: bool) -> Path:
    """Returns the folder that holds `parts` (subfolders; "" is the top level) of `source`, and fetches it if need be.

    A progress bar shows what is fetched. Raises ModelLoadError, which begins with `title` and says what to do.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if revision is None:
        raise ModelLoadError(f"{title}: {source!r} is not a local folder and has no pinned revision")
    with _explained(title, source, revision):
        return _fetch(title, source, revision, parts, half)


def locate_file(title: str, source: str, revision: str | None, file: str) -> Path:
    """Returns the file that `source` is, or that the repository `source` has as `file`, and fetches it if need be.

    Raises ModelLoadError, which begins with `title` and says what to do.
    """
    if Path(source).is_file():
        return Path(source)
    if revision is None or not file:
        raise ModelLoadError(f"{title}: {source!r} is no file, and a repository needs `revision` and `file` as well")
    with _explained(title, source, revision):
        return Path(hf_hub_download(source, file, revision=revision))


@contextmanager
def _explained(title: str, source: str, revision: str) -> Iterator[None]:
    """Raises ModelLoadError in place of what the hub's library raises."""
    try:
        yield
    except ModelLoadError:
        raise
    except (GatedRepoError, RepositoryNotFoundError):
        raise ModelLoadError(
            f"{title}: the hub shows no repository {source!r}; check `source`, or set HF_TOKEN if it is not public"
        ) from None
    except RevisionNotFoundError:
        raise ModelLoadError(
            f"{title}: {source!r} has no revision {revision!r} on the hub; change `revision` of this row, in the "
            "configuration or in deployments/pins.py"
        ) from None
    except RemoteEntryNotFoundError:
        raise ModelLoadError(f"{title}: {source!r} has no such file at {revision!r}; change `file`") from None
    except Exception as error:
        raise ModelLoadError(
            f"{title}: the hub is out of reach, and not all of {source!r} at {revision!r} is in the cache; go online "
            "once, point HF_HOME to a cache that has it, or set `source` to a local folder"
        ) from error


def select_files(
    title: str, source: str, revision: str, files: Iterable[str], parts: Sequence[str], *, half: bool
) -> Iterator[str]:
    """Yields those `files` of a repository at `revision` that `parts` need.

    Raises ModelLoadError if the weights of a part cannot be served.
    """
    yield INDEX
    every = [PurePosixPath(file) for file in files]
    for part in parts:
        inside = {path.name: str(path) for path in every if str(path.parent).removesuffix(".") == part}
        weights = choose_weights(inside, half=half)
        if weights is None and _CONFIG in inside:
            raise missing_weights_error(f"{title}: its {part}" if part else title, source, inside, revision)
        for name, path in inside.items():
            if name in weights.names if weights and is_weights_file(name) else name.endswith(_PLAIN):
                yield path


def _fetch(title: str, source: str, revision: str, parts: Sequence[str], half: bool) -> Path:
    # A commit never changes: with a full cache a server starts without the hub.
    try:
        files = [file.path for file in get_cached_repo_tree(source, revision=revision)]
    except CachedRepoTreeNotFoundError:
        cached = _find_cached(source, revision, parts, half)
        if cached is not None:
            return cached
        files = HfApi().list_repo_files(source, revision=revision)
    wanted = list(select_files(title, source, revision, files, parts, half=half))
    return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))


def _find_cached(source: str, revision: str, parts: Sequence[str], half: bool) -> Path | None:
    """Returns the snapshot in a cache without a list of the repository's files, as other programs leave it.

    None if it is incomplete. Half precision may be made from full, but not the other way: the hub may have full
    precision.
    """
    try:
        found = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    # Only of a model's own parts the index says which there are.
    described = not set(parts).intersection(_DESCRIBED) or (found / INDEX).exists()
    needed = [part for part in parts if part not in SECOND_PARTS or names_part(source, found, part)]
    return found if described and all(_is_whole(found / part, half) for part in needed) else None


def _is_whole(folder: Path, half: bool) -> bool:
    """Returns True if `folder` has all it takes to load it.

    Networks have a config.json, tokenizers and schedulers do not.
    """
    if not (folder / _CONFIG).exists():
        return any(folder.glob("*.json"))
    weights = choose_weights((path.name for path in folder.iterdir()), half=half)
    return weights is not None and weights.is_complete and (half or not weights.is_half)
