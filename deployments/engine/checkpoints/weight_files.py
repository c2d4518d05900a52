"""Chooses and checks the files that hold a network's weights. No torch.

diffusers and transformers read `STEM.safetensors`, or `STEM.safetensors.index.json` and the shards that it lists; a
variant stands before the last ending: `STEM.fp16.safetensors`, `STEM.safetensors.index.fp16.json`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.engine.checkpoints.file_integrity import read_config
from deployments.engine.checkpoints.safetensors_header import Tensor, read_header
from deployments.engine.protocol.errors import ModelLoadError

SUFFIX: Final = ".safetensors"
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")

HALVES: Final = ("fp16", "bf16")
"""The variants in half precision. Others, such as `ema` and `non_ema`, are different weights, and never chosen."""

DIFFUSERS: Final = "diffusion_pytorch_model"
TRANSFORMERS: Final = "model"
_STEM: Final = f"(?:{DIFFUSERS}|{TRANSFORMERS})"
_VARIANT: Final = r"(?:\.(?P<{}>\w+))?"
# A variant stands before the shard's number or, as older versions of diffusers wrote it, after it.
_WEIGHTS: Final = re.compile(
    _STEM
    + _VARIANT.format("before")
    + r"(?P<shard>-\d+-of-(?P<shards>\d+))?"
    + _VARIANT.format("behind")
    + r"\.safetensors"
)
_INDEX: Final = re.compile(
    _STEM + r"\.safetensors" + _VARIANT.format("before") + r"\.index" + _VARIANT.format("behind") + r"\.json"
)

_FLOATING: Final = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one `variant`: one with all weights, or an index with its shards; both if a folder has both."""

    variant: str | None
    names: tuple[str, ...]

    @property
    def is_half(self) -> bool:
        """True if their name says that they are in half precision."""
        return self.variant in HALVES

    @property
    def index(self) -> str | None:
        return next((name for name in self.names if _INDEX.fullmatch(name)), None)

    @property
    def whole(self) -> str | None:
        """The file that holds all weights."""
        return next((name for name in self.names if (found := _WEIGHTS.fullmatch(name)) and not found["shard"]), None)

    @property
    def is_complete(self) -> bool:
        """True if, judging by names, none of the files is missing."""
        shards = [found["shards"] for name in self.names if (found := _WEIGHTS.fullmatch(name)) and found["shard"]]
        return self.whole is not None or (
            self.index is not None and len(set(shards)) == 1 and len(shards) == int(shards[0])
        )


def choose_weights(names: Iterable[str], *, half: bool, stem: str = "") -> WeightFiles | None:
    """Chooses the files to load among a folder's; None if it has no weights as safetensors.

    `stem` is what the names begin with, DIFFUSERS or TRANSFORMERS, if only one is wanted. For half precision `fp16`
    files are preferred; for full precision they are taken only if there is nothing else.
    """
    variants: dict[str | None, list[str]] = {}
    for name in sorted(name for name in names if name.startswith(stem)):
        found = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
        if found:
            variants.setdefault(found["before"] or found["behind"], []).append(name)
    wanted = ("fp16", None, "bf16") if half else (None, "fp16", "bf16")
    groups = (WeightFiles(variant, tuple(variants[variant])) for variant in wanted if variant in variants)
    return next((group for group in groups if group.whole or group.index), None)


def is_weights_file(name: str) -> bool:
    """Returns True if `name` is that of a safetensors file with weights, or of an index of such files."""
    return bool(_WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name))


def missing_weights_error(title: str, source: str, names: Iterable[str], revision: str | None = None) -> ModelLoadError:
    """Returns the error for a folder in which `choose_weights` finds nothing: why its files `names` cannot be loaded.

    `source` is the folder, or a repository on the hub at `revision`.
    """
    names, at = sorted(names), f" --revision {revision}" if revision else ""
    if any(name.endswith(PICKLES) for name in names):
        return ModelLoadError(
            f"{title} has its weights as a pickle only, which may hold code and is not opened here: run "
            f"`darkroom convert {source} FOLDER{at}` and set `source` to that folder"
        )
    others = [name for name in names if name.endswith(SUFFIX)]
    if others:
        return ModelLoadError(
            f"{title} has no weights by a name that is read: there is {', '.join(others[:3])}, and wanted is "
            "diffusion_pytorch_model.safetensors (model.safetensors for networks of transformers'), or its index"
        )
    return ModelLoadError(f"{title} has no weights as safetensors; bring the whole folder again from where it came")


def check_weights(title: str, folder: Path, files: WeightFiles) -> None:
    """Raises ModelLoadError, which names the file, if one is missing, cut off, or not what it should be."""
    index = files.index
    # With both, diffusers reads the shards and transformers the one file; the one that is loaded is checked.
    if index is None or (files.whole and files.whole.startswith(TRANSFORMERS)):
        assert files.whole is not None
        _check_kinds(title, files.whole, read_header(title, folder / files.whole).tensors)
        return
    listed = read_config(title, folder / index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(_is_name(shard) for shard in listed.values()):
        raise ModelLoadError(f"{title}: {index} must list a file of its own folder for every weight in `weight_map`")
    for shard in sorted(set(listed.values())):
        if not (folder / shard).is_file():
            raise ModelLoadError(f"{title}: {index} lists {shard}, which is not there; bring it as well")
        header = read_header(title, folder / shard).tensors
        _check_kinds(title, shard, header)
        absent = [key for key, where in listed.items() if where == shard and key not in header]
        if absent:
            raise ModelLoadError(f"{title}: {shard} lacks {list_first(absent)}, which {index} says it has")


def list_first(keys: Iterable[str], shown: int = 3) -> str:
    """Lists the first of `keys`, and how many more there are."""
    every = sorted(keys)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def _check_kinds(title: str, name: str, header: Mapping[str, Tensor]) -> None:
    integers = [
        key for key, tensor in header.items() if key.endswith((".weight", ".bias")) and tensor.dtype not in _FLOATING
    ]
    check_floating(title, name, integers)


def check_floating(title: str, name: str, integers: Sequence[str]) -> None:
    """Raises ModelLoadError, which begins with `title`, if some weights of the file `name` are `integers`.

    Loading would silently turn them into floats, and quantised weights would mean nothing that way.
    """
    if integers:
        raise ModelLoadError(
            f"{title}: {name} has weights that are not floating-point numbers ({list_first(integers)}): quantised "
            "checkpoints are not served; take the one that it was made from"
        )


def _is_name(given: object) -> bool:
    return isinstance(given, str) and given == Path(given).name and given.endswith(SUFFIX)
