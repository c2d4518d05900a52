"""The names that LoRA files give to the layers of a network. No torch."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from deployments.engine.lora.tensor_names import flatten

_SINGLE: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_IN_RESNETS: Final = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK: Final = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def flat_names(network: str, paths: Iterable[str]) -> dict[str, str]:
    """Returns the paths of a network's layers by the names that files may give to them, with underscores for dots.

    A UNet's layers are found by the names of the original layout (CompVis') too, a text encoder's with and without
    `text_model.` in front, which transformers has left out since 5.6.
    """
    paths = list(paths)
    names = {flatten(path): path for path in paths}
    if network.startswith("text_encoder"):
        bare = {name.removeprefix("text_model_"): path for name, path in names.items()}
        return names | bare | {f"text_model_{name}": path for name, path in bare.items()}
    if network == "unet":
        names |= {flatten(original): path for path, original in _original_names(paths)}
    return names


def _original_names(paths: list[str]) -> Iterator[tuple[str, str]]:
    """Yields the layers' paths with their names in the original layout."""
    blocks = [match.groups() for path in paths if (match := _BLOCK.match(path))]
    layers = 1 + max((int(j) for side, i, kind, j in blocks if (side, i, kind) == ("down", "0", "resnets")), default=0)
    attending = {(side, i) for side, i, kind, _ in blocks if kind == "attentions"}
    for path in paths:
        if (match := _BLOCK.match(path)) is not None:
            side, i, kind, j = match.groups()
            place = _place_of(side, int(i), kind, int(j), layers, attends=(side, i) in attending)
            yield path, f"{place}{_inside(kind, path[match.end() :])}"
            continue
        for ours, original in _SINGLE.items():
            if path == ours or path.startswith(f"{ours}."):
                yield path, f"{original}{_inside(ours, path[len(ours) :])}"


def _place_of(side: str, i: int, kind: str, j: int, layers: int, *, attends: bool) -> str:
    """Returns the original layout's place of a part of a block that has so many `layers` on the way down."""
    step = layers + 1
    match kind:
        case "downsamplers":
            return f"input_blocks.{(i + 1) * step}.0"
        case "upsamplers":
            return f"output_blocks.{i * step + layers}.{2 if attends else 1}"
    inner = 0 if kind == "resnets" else 1
    return f"input_blocks.{i * step + j + 1}.{inner}" if side == "down" else f"output_blocks.{i * step + j}.{inner}"


def _inside(kind: str, rest: str) -> str:
    """Returns the original name of what follows a place, with its dot."""
    if kind == "downsamplers":
        return rest.replace(".conv", ".op")
    if "resnets" in kind:
        return f".{_IN_RESNETS.get(rest[1:], rest[1:])}"
    return rest
