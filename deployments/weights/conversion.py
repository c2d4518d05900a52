"""Converts pickled weights, or a checkpoint in one file, to a folder that can be loaded: `darkroom convert`.

Pickles can hold code. They are opened in a separate process (`conversion_process.py`), which takes tensors and
nothing else, whose memory and time are bounded, and which reaches no network. The folder is written whole, or not at
all.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Final

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import PARTS

FILES: Final = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""The suffixes of a checkpoint in one file."""

_COMMIT: Final = 40
_CHUNK: Final = 1 << 20
_GIB: Final = 1 << 30
# The libraries take some of it before anything is loaded; a part is held once as read and once while it is checked.
_BASE_MEMORY: Final = 6 * _GIB
_MEMORY_PER_BYTE: Final = 4
_BASE_SECONDS: Final = 600
_SECONDS_PER_GIB: Final = 120
_LIBRARIES: Final = ("torch", "diffusers", "transformers", "safetensors")
PROVENANCE: Final = "provenance.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings for a file that does not say them itself, as in `ModelSpec`."""

    config: str = ""
    prediction_type: str = ""


def convert(source: str, folder: Path, revision: str | None, settings: Settings) -> None:
    """Writes what `source` holds to `folder`, which must not exist yet.

    `source` is a folder, a repository on the hub at the commit `revision`, or a file. Raises ModelLoadError, which says
    what is wrong with it; then there is no `folder`.
    """
    if folder.exists():
        raise ModelLoadError(f"{folder.name!r} is there already; convert into a new folder, or remove that one")
    if not folder.parent.is_dir():
        raise ModelLoadError(f"there is no folder to put {folder.name!r} into")
    place = _locate(source, revision)
    inputs = {_relative_name(path, place): path for path in _list_inputs(place)}
    provenance = _build_provenance(source, revision, inputs)
    with _make_temporary(folder) as target:
        job = {
            "source": str(place),
            "target": str(target),
            "config": settings.config and str(Path(settings.config).resolve()),
            "prediction_type": settings.prediction_type,
            "metadata": {f"darkroom.{key}": _to_text(value) for key, value in provenance.items()},
        }
        _run_process(job, sum(path.stat().st_size for path in inputs.values()))
        (target / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        (target / "README.md").write_text(_build_readme(provenance))
        if folder.exists():
            raise ModelLoadError(f"{folder.name!r} came to be while its files were written")
        target.rename(folder)


def _locate(source: str, revision: str | None) -> Path:
    """Returns the local folder or file, and fetches it if need be."""
    path = Path(source)
    if path.exists():
        if path.is_file() and path.suffix not in FILES:
            raise ModelLoadError(
                f"{path.name!r} is no checkpoint by its name, which ends with none of {', '.join(FILES)}"
            )
        return path.resolve()
    if path.is_absolute() or source.startswith(".") or path.suffix in FILES:
        raise ModelLoadError(f"there is no {source!r}")
    if revision is None or len(revision) != _COMMIT or not set(revision) <= set("0123456789abcdef"):
        raise ModelLoadError(
            f"{source!r} is not on this machine, and a repository on the hub needs --revision, a commit of 40 digits"
        )
    try:
        files = HfApi().list_repo_files(source, revision=revision)
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_select_files(files)))).resolve()
    except (GatedRepoError, RepositoryNotFoundError):
        raise ModelLoadError(f"the hub shows no repository {source!r}; set HF_TOKEN if it is not public") from None
    except RevisionNotFoundError:
        raise ModelLoadError(f"{source!r} has no commit {revision!r} on the hub") from None
    except Exception as error:  # the client raises all sorts where the hub does not answer
        raise ModelLoadError(f"the hub is out of reach, and {source!r} at that commit is not in the cache") from error


def _select_files(files: Iterable[str]) -> Iterator[str]:
    """Yields configs, vocabularies, and one kind of weights per folder: safetensors before pickles, full precision
    first.
    """
    folders: dict[str, list[str]] = {}
    for name in files:
        folders.setdefault(str(PurePosixPath(name).parent).removesuffix("."), []).append(name)
    for folder, names in folders.items():
        if folder in ("", *PARTS):
            yield from (name for name in names if name.endswith((".json", ".txt")))
            yield from _select_weights(names)


def _select_weights(names: Iterable[str]) -> list[str]:
    weights = [name for name in names if PurePosixPath(name).name.startswith(("model", "pytorch_model", "diffusion_"))]
    for ending in (".safetensors", ".bin"):
        kind = [name for name in weights if name.endswith(ending) and ".non_ema." not in name]
        full = [name for name in kind if ".fp16" not in name]
        if kind:
            return full or kind
    return []


def _list_inputs(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    folders = [place, *(place / part for part in PARTS)]
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()) if path.is_file()]
    weights = [path for path in files if path.suffix in FILES]
    if not weights:
        raise ModelLoadError(f"{place.name!r} has no weights, neither at its top nor under {', '.join(PARTS)}")
    return [path for path in files if path in weights or path.suffix in (".json", ".txt")]


def _relative_name(path: Path, place: Path) -> str:
    return path.name if place.is_file() else path.relative_to(place).as_posix()


def _build_provenance(source: str, revision: str | None, inputs: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "source": Path(source).name if Path(source).exists() else source,
        "revision": revision,
        "sha256": {name: _sha256(path) for name, path in inputs.items()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("darkroom", *_LIBRARIES)},
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _build_readme(provenance: Mapping[str, Any]) -> str:
    revision = f" at {provenance['revision']}" if provenance["revision"] else ""
    return (
        f"# {provenance['source']}{revision}, as safetensors\n\n"
        f"Made by `darkroom convert` on {provenance['date']}; `{PROVENANCE}` has the digests of what it was made of.\n"
        "The licence is the source's.\n"
    )


@contextmanager
def _make_temporary(folder: Path) -> Iterator[Path]:
    """Makes a folder beside `folder`, on the same file system, and removes it unless it was renamed."""
    target = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        target.chmod(0o755)
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _run_process(job: Mapping[str, Any], size: int) -> None:
    """Runs the process that opens the weights, bounded by their size. Raises ModelLoadError."""
    memory, seconds = _BASE_MEMORY + _MEMORY_PER_BYTE * size, _BASE_SECONDS + _SECONDS_PER_GIB * size // _GIB
    limits = {"memory": memory, "seconds": seconds, "file": 2 * size + _GIB}
    home = Path(job["target"]) / ".process"
    home.mkdir()
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "HOME": str(home),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "deployments.weights.conversion_process", json.dumps({**job, "limits": limits})],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=home,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ModelLoadError(f"it took longer than {seconds} s, and was ended") from None
    finally:
        _end_process(process)
        shutil.rmtree(home, ignore_errors=True)
    answer = _parse_answer(output)
    if process.returncode != 0 or "refused" in answer:
        unknown = f"it ended without an answer; it may use {memory / _GIB:.0f} GiB of memory and {seconds} s"
        raise ModelLoadError(answer.get("refused", unknown))


def _end_process(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _parse_answer(output: str) -> dict[str, str]:
    """Parses the last line. The process has read a stranger's file, so its output is not trusted."""
    try:
        answer = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return {key: str(value)[:1000] for key, value in answer.items()} if isinstance(answer, dict) else {}
