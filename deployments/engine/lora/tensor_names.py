"""Reads the names of the tensors in a LoRA's file: which network, which layer, and what of it. No torch.

kohya's scripts and LyCORIS name a layer with underscores for dots behind a prefix (`lora_unet_`, `lora_te_`),
diffusers and peft by its path behind the network's name (`unet.`). Every name must be understood, or the file is
refused: a tensor left out would make another picture.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

_PREFIXES: Final = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
"""The networks by what a name begins with."""

_OLD_UNET: Final = ("down_blocks.", "mid_block.", "up_blocks.")
"""What names in the first files of diffusers begin with: of the UNet alone, without its name."""

EMBEDDING: Final = "bundle_emb."

# What stands behind the layer, by format.
_PARTS: Final = {
    **{
        f"{name}{adapter}.weight": part
        for part, names in (
            ("down", ("lora_down", "lora.down", "lora_linear_layer.down", "lora_A")),
            ("up", ("lora_up", "lora.up", "lora_linear_layer.up", "lora_B")),
            ("mid", ("lora_mid",)),
        )
        for name in names
        for adapter in ("", ".default", ".default_0")
    },
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    **{f"lora_magnitude_vector{end}": "magnitude" for end in ("", ".weight", ".default", ".default.weight")},
    **{f"hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "diff": "diff",
    "weight": "ia3",
    "on_input": "on_input",
}

# What cannot be done exactly in a layer that other rows use too, by the end of its tensors' names.
_REFUSED: Final = (
    (r"(^|\.)(w_norm|b_norm)$", "differences of norms (LyCORIS' `train_norm`)"),
    (r"(^|\.)diff_b$", "differences of biases (LyCORIS' `full`)"),
    (r"(^|\.)(oft_blocks|oft_diag|oft_r|oft_R\..*|rescale)$", "OFT or BOFT"),
    (r"(^|\.)([ab][12]|bm)\.weight$", "GLoRA"),
    (r"(^|\.)(q_layer|p_layer|lambda_layer|base_q|base_p|base_lambda)(\..*)?$", "T-LoRA"),
    (r"(^|\.)(lora_up|lora_down|lora_[AB](\.default)?|lora\.(up|down))\.bias$", "LoRA with biases"),
    (r"(^|\.)bias_(indices|values|size)$", "sparse differences of biases"),
    (r"(^|\.)lora_embedding_[AB](\..*)?$", "LoRA of an embedding"),
    (r"(^|\.)scalar$", "LyCORIS with trained scalars that are not merged"),
    (r"(^|\.)hada_.*$", "an unknown kind of LoHa"),
    (r"(^|\.)lokr_.*$", "an unknown kind of LoKr"),
)

_ENDS: Final = sorted(_PARTS, key=len, reverse=True)
# The layer's name is part of the tensor's in the first files of diffusers: `attn1.processor.to_q_lora.down.weight`.
_OLD: Final = re.compile(r"^(.*?)\.(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight$")
_PROJECTIONS: Final = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}


@dataclass(frozen=True, slots=True)
class TensorName:
    """The tensor `key` of a file is the `part` (down, up, alpha, ...) of a `layer` in a `network`. A layer of kohya's
    has underscores for dots.
    """

    key: str
    network: str
    layer: str
    part: str


@dataclass(frozen=True, slots=True)
class FileNames:
    """A file's tensors: their keys by network, layer (with underscores for dots) and part, the layers' own spelling,
    and the keys of its embeddings by token.
    """

    networks: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    spellings: dict[tuple[str, str], str] = field(default_factory=dict)
    embeddings: dict[str, str] = field(default_factory=dict)


def read_names(keys: Iterable[str]) -> FileNames:
    """Sorts a file's tensors by what they are. Raises ValueError, which tells the format and the tensor, if there is
    one that is not understood.
    """
    found = FileNames()
    for key in keys:
        if key.startswith(EMBEDDING):
            _add(found.embeddings, _token_of(key), key)
            continue
        name = _read_name(key)
        layer = flatten(name.layer)
        _add(found.networks.setdefault(name.network, {}).setdefault(layer, {}), name.part, key)
        found.spellings[name.network, layer] = name.layer
    return found


def flatten(path: str) -> str:
    """Returns the layer's name as kohya's scripts write it, with underscores for dots."""
    return path.replace(".", "_")


def _add(names: dict[str, str], name: str, key: str) -> None:
    if name in names:
        raise ValueError(f"its tensors {names[name]!r} and {key!r} are the same part of a layer")
    names[name] = key


def _read_name(key: str) -> TensorName:
    network, rest = _split_network(key)
    if (old := _OLD.match(rest)) is not None:
        place, projection, part = old.groups()
        if network == "unet":
            return TensorName(key, network, f"{place}.to_{projection}{'.0' if projection == 'out' else ''}", part)
        return TensorName(key, network, f"{place}.{_PROJECTIONS[projection]}", part)
    for end in _ENDS:
        if rest.endswith(f".{end}"):
            return TensorName(key, network, rest.removesuffix(f".{end}").replace(".processor.", "."), _PARTS[end])
    raise ValueError(f"its tensor {key!r} is not of a kind that is known")


def _split_network(key: str) -> tuple[str, str]:
    """Returns the network and the rest of a name, if its format is one that can be applied."""
    for pattern, what in _REFUSED:
        if re.search(pattern, key) and not _is_known(key):
            raise ValueError(f"it is {what}, which cannot be applied row by row (its tensor {key!r})")
    if key.startswith("base_model.model."):
        raise ValueError(
            "it was saved by peft alone, whose alpha is in another file; save it with diffusers' `save_lora_weights` "
            f"(its tensor {key!r})"
        )
    for prefix, network in _PREFIXES.items():
        if key.startswith(prefix):
            return network, key.removeprefix(prefix)
    if key.startswith(_OLD_UNET):
        return "unet", key
    raise ValueError(f"its tensor {key!r} belongs to no network of Stable Diffusion's")


def _is_known(key: str) -> bool:
    return any(key.endswith(f".{end}") for end in _ENDS if end != "weight")


def _token_of(key: str) -> str:
    token, _, part = key.removeprefix(EMBEDDING).rpartition(".string_to_param.*")
    if not token or part:
        token, _, part = key.removeprefix(EMBEDDING).rpartition(".emb_params")
    if not token or part:
        raise ValueError(f"its bundled embedding {key!r} is not one for Stable Diffusion 1.x or 2.x")
    return token
