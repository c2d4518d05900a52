"""What a converted UNet or ControlNet is told of each row beside its latents, time and prompt: inputs of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deployments.engine.conditioning.added_conditions import SIZES, added_conditions, pooled_width
from deployments.engine.openvino.conversion import Input
from deployments.engine.openvino.program import Shape


class RowInputs:
    """The further inputs [B, width] that a network's config asks for: the embedded guidance scale, the pooled text and
    the sizes; none for most.
    """

    def __init__(self, network: Any) -> None:
        self._guidance_width: int | None = network.config.get("time_cond_proj_dim")
        self._pooled_width = pooled_width(network)
        self._widths: dict[str, int] = {}
        if self._guidance_width is not None:
            self._widths["guidance"] = self._guidance_width
        if self._pooled_width is not None:
            self._widths |= {"pooled": self._pooled_width, "sizes": SIZES}

    def __len__(self) -> int:
        return len(self._widths)

    @property
    def inputs(self) -> list[Input]:
        """The inputs, for a conversion."""
        return [Input(name, torch.zeros(2, width)) for name, width in self._widths.items()]

    def shapes(self, rows: int) -> list[Shape]:
        """Returns their shapes in a call of so many rows."""
        return [(rows, width) for width in self._widths.values()]

    def gather(self, sample: Tensor, more: Mapping[str, Any]) -> list[Tensor]:
        """Returns their values of `more`, further arguments of the network; without guidance embeddings, zeros."""
        found: list[Tensor] = []
        if self._guidance_width is not None:
            guidance = more.get("timestep_cond")
            found.append(sample.new_zeros(len(sample), self._guidance_width) if guidance is None else guidance)
        if self._pooled_width is not None:
            added = more["added_cond_kwargs"]
            found += [added["text_embeds"], added["time_ids"]]
        return found

    def arguments(self, values: Sequence[Tensor]) -> dict[str, Any]:
        """Returns the network's further arguments of `values`, as `gather` gives them."""
        named = dict(zip(self._widths, values, strict=True))
        arguments: dict[str, Any] = {"timestep_cond": named["guidance"]} if "guidance" in named else {}
        return arguments | (added_conditions(named["pooled"], named["sizes"]) if "pooled" in named else {})
