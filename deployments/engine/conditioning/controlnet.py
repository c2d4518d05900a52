"""Runs ControlNets (Zhang et al. 2023) beside the UNet, in the same step, on the rows that ask for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deployments.engine.conditioning.image_encoder import to_unit_pixels
from deployments.engine.padding import pad, padded_size
from deployments.engine.protocol.inputs import ImageArray

# In guess mode the early, wide maps are trusted least (Zhang's own figures, as in diffusers).
_GUESS_FROM, _GUESS_TO = -1.0, 0.0


class ControlNet:
    """One ControlNet, with its hint encoder taken out: a hint never changes while a row runs."""

    def __init__(self, name: str, network: Any) -> None:
        """`network` is diffusers' `ControlNetModel`; it is changed, and must not be used elsewhere."""
        self.name = name
        self.network = network
        self._embedder = network.controlnet_cond_embedding
        self._is_bgr = network.config.controlnet_conditioning_channel_order == "bgr"
        network.controlnet_cond_embedding = nn.Identity()
        network.register_to_config(controlnet_conditioning_channel_order="rgb")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All modules that have weights."""
        return self.network, self._embedder

    @property
    def is_prompted_only(self) -> bool:
        """True if it never runs on the half without the prompt; its config says so for nets such as shuffle."""
        return bool(self.network.config.global_pool_conditions)

    @torch.inference_mode()
    def embed(self, hint: ImageArray) -> Tensor:
        """Embeds the hint [H, W, 3] as the network adds it to its first map: [C, h, w]."""
        pixels = to_unit_pixels(hint)
        pixels = pixels.flip(0) if self._is_bgr else pixels
        weight = next(self._embedder.parameters())
        embedded: Tensor = self._embedder(pixels[None].to(weight.device, weight.dtype))[0]
        return embedded


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """One ControlNet's part in one image. It acts from `start` to `end`, shares of the schedule in [0, 1]."""

    net: ControlNet
    hint: Tensor
    scale: float
    start: float
    end: float
    guess: bool

    def is_active(self, step: int, steps: int, prompted: bool) -> bool:
        """Returns True if it acts on evaluation `step` of `steps`, for the half with or without the prompt."""
        if not prompted and (self.guess or self.net.is_prompted_only):
            return False
        return step / steps >= self.start and (step + 1) / steps <= self.end and self.scale != 0

    def weights(self, maps: int) -> Tensor:
        """Returns the weight of each of the net's `maps` outputs, the middle one last: [maps]."""
        if self.guess and not self.net.is_prompted_only:
            return torch.logspace(_GUESS_FROM, _GUESS_TO, maps) * self.scale
        return torch.full((maps,), self.scale)


@dataclass(frozen=True, slots=True)
class CallSlot:
    """A row's slot in a UNet call: at `index`, with or without its prompt, before evaluation `step`."""

    index: int
    controls: tuple[Control, ...]
    step: int
    steps: int
    prompted: bool

    @property
    def active_controls(self) -> int:
        """The number of ControlNets that run on it."""
        return sum(control.is_active(self.step, self.steps, self.prompted) for control in self.controls)


_User = tuple[CallSlot, Control]


def compute_residuals(
    places: Sequence[CallSlot], latents: Tensor, time: Tensor, context: Tensor, sizes: tuple[int, ...]
) -> dict[str, Any]:
    """Returns the UNet's extra arguments: what all ControlNets add to its maps, zeros for rows without one.

    `latents` [B, C, h, w], `time` [B] and `context` [B, tokens, dim] are those of the whole, padded call; `sizes` are
    what a ControlNet's own calls are padded to. Empty if no ControlNet acts.
    """
    answers = [
        (_indices(part, latents), _run_net(net, part, latents, time, context, padded_size(len(part), sizes)))
        for net, users in _group_by_net(places).items()
        for part in _split(users, sizes[-1])
    ]
    if not answers:
        return {}
    totals = [
        latents.new_zeros((len(latents), *torch.broadcast_shapes(*(each.shape[1:] for each in level))))
        for level in zip(*(maps for _, maps in answers), strict=True)
    ]
    for where, maps in answers:
        for total, answer in zip(totals, maps, strict=True):
            total.index_add_(0, where, answer.expand(-1, *total.shape[1:]))
    return {"down_block_additional_residuals": tuple(totals[:-1]), "mid_block_additional_residual": totals[-1]}


def _group_by_net(places: Sequence[CallSlot]) -> Mapping[ControlNet, list[_User]]:
    users: dict[ControlNet, list[_User]] = {}
    for place in places:
        for control in place.controls:
            if control.is_active(place.step, place.steps, place.prompted):
                users.setdefault(control.net, []).append((place, control))
    return users


def _split(users: list[_User], limit: int) -> Iterator[list[_User]]:
    return (users[begin : begin + limit] for begin in range(0, len(users), limit))


def _indices(users: list[_User], like: Tensor) -> Tensor:
    return torch.tensor([place.index for place, _ in users], device=like.device)


def _run_net(
    net: ControlNet, users: list[_User], latents: Tensor, time: Tensor, context: Tensor, padded: int
) -> list[Tensor]:
    """Runs one net for its users, and returns its weighted outputs, the middle map last."""
    where = _indices(users, latents)
    down, middle = net.network(
        pad(latents[where], padded),
        pad(time[where], padded),
        encoder_hidden_states=pad(context[where], padded),
        controlnet_cond=pad(torch.stack([control.hint for _, control in users]), padded),
        return_dict=False,
    )
    maps = [answer[: len(users)] for answer in (*down, middle)]
    weights = torch.stack([control.weights(len(maps)) for _, control in users], 1).to(latents)
    return [answer * weight.view(-1, 1, 1, 1) for answer, weight in zip(maps, weights, strict=True)]
