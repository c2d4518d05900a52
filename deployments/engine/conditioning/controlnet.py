"""Runs ControlNets (Zhang et al. 2023) beside the UNet, in the same step, on the rows that ask for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deployments.engine.conditioning.image_encoder import to_unit_pixels
from deployments.engine.device.streams import copy_to_device
from deployments.engine.padding import padded_size
from deployments.engine.protocol.inputs import ImageArray

AddedMaps = Literal["none", "whole", "averages"]
"""What the ControlNets of a call add to the UNet's maps: averages if all of them answer with averages."""

# In guess mode the early, wide maps are trusted least (Zhang's own figures, as in diffusers).
_GUESS_FROM, _GUESS_TO = -1.0, 0.0


class ControlNet:
    """One ControlNet, with its hint encoder taken out: a hint never changes while a row runs.

    `maps` is the number of its outputs, the middle one included.
    """

    def __init__(self, name: str, network: Any, embedder: Any = None) -> None:
        """`network` is diffusers' `ControlNetModel`; it is changed, and must not be used elsewhere. With an `embedder`
        it is a `UnionKind`, whose hint encoder that is.
        """
        self.name = name
        # Counted now: what runs the network later, in its place, need not have its modules.
        self.maps = len(network.controlnet_down_blocks) + 1
        self.network: Any = network
        self.embedder: Any = take_out_hint_encoder(network) if embedder is None else embedder
        weight = next(self.embedder.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._is_bgr = network.config.controlnet_conditioning_channel_order == "bgr"
        if self._is_bgr:
            network.register_to_config(controlnet_conditioning_channel_order="rgb")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All modules that have weights."""
        return self.network, self.embedder

    @property
    def is_prompted_only(self) -> bool:
        """True if it never runs on the half without the prompt; its config says so for nets such as shuffle."""
        return bool(self.network.config.global_pool_conditions)

    @torch.inference_mode()
    def embed(self, hint: ImageArray) -> Tensor:
        """Embeds the hint [H, W, 3] as the network adds it to its first map: [C, h, w]."""
        pixels = to_unit_pixels(hint)
        pixels = pixels.flip(0) if self._is_bgr else pixels
        embedded: Tensor = self.embedder(pixels[None].to(self._device, self._dtype))[0]
        return embedded


def take_out_hint_encoder(network: Any) -> Any:
    """Takes the hint encoder out of a ControlNet of diffusers', whose hints are embedded ones from now on."""
    embedder = network.controlnet_cond_embedding
    network.controlnet_cond_embedding = nn.Identity()
    return embedder


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
    """A row's entry in a UNet call: at `index`, with or without its prompt, before evaluation `step`."""

    index: int
    controls: tuple[Control, ...]
    step: int
    steps: int
    prompted: bool

    @property
    def active_controls(self) -> int:
        """The number of ControlNets that run on it."""
        return sum(control.is_active(self.step, self.steps, self.prompted) for control in self.controls)


@dataclass(frozen=True, slots=True, eq=False)
class ControlCall:
    """A call of one net for N of the UNet call's entries, padded to P by repeating the first.

    `entries` [P] are their indices, the first `users` of them real, and `hints` [P, C, h, w] what they see; `weights`
    are what each of the net's maps is multiplied by, [N, 1, 1, 1] each, the middle one last.
    """

    net: ControlNet
    users: int
    entries: Tensor
    hints: Tensor
    weights: tuple[Tensor, ...]


_User = tuple[CallSlot, Control]


def plan_controls(
    places: Sequence[CallSlot], sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[ControlCall, ...]:
    """Returns the calls of all ControlNets that act on `places`; `sizes` are what they are padded to."""
    return tuple(
        _plan_call(net, part, padded_size(len(part), sizes), device, dtype)
        for net, users in _group_by_net(places).items()
        for part in _split(users, sizes[-1])
    )


def compute_residuals(
    calls: Sequence[ControlCall],
    latents: Tensor,
    time: Tensor,
    embeddings: Tensor,
    added: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Returns the UNet's extra arguments: what all ControlNets add to its maps, zeros for entries without one.

    `latents` [U, C, h, w], `time` [U], `embeddings` [U, tokens, dim] and the `added` conditions, if the UNet takes any,
    are those of the whole, padded UNet call. `calls` has at least one.
    """
    answers = [_run_net(call, latents, time, embeddings, added) for call in calls]
    totals = [
        latents.new_zeros((len(latents), *torch.broadcast_shapes(*(each.shape[1:] for each in level))))
        for level in zip(*answers, strict=True)
    ]
    for call, maps in zip(calls, answers, strict=True):
        for total, answer in zip(totals, maps, strict=True):
            total.index_add_(0, call.entries[: call.users], answer.expand(-1, *total.shape[1:]))
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


def _plan_call(
    net: ControlNet, users: list[_User], padded: int, device: torch.device, dtype: torch.dtype
) -> ControlCall:
    repeated = users + users[:1] * (padded - len(users))
    weights = torch.stack([control.weights(net.maps) for _, control in users], 1).to(dtype)
    weights = copy_to_device(weights, device)
    return ControlCall(
        net,
        len(users),
        copy_to_device(torch.tensor([place.index for place, _ in repeated]), device),
        torch.stack([control.hint for _, control in repeated]),
        tuple(weights.view(*weights.shape, 1, 1, 1).unbind()),
    )


def _run_net(
    call: ControlCall, latents: Tensor, time: Tensor, embeddings: Tensor, added: Mapping[str, Mapping[str, Tensor]]
) -> list[Tensor]:
    """Runs one net for its users, and returns its weighted outputs, the middle map last."""
    down, middle = call.net.network(
        latents.index_select(0, call.entries),
        time.index_select(0, call.entries),
        encoder_hidden_states=embeddings.index_select(0, call.entries),
        controlnet_cond=call.hints,
        **{
            argument: {name: each.index_select(0, call.entries) for name, each in conditions.items()}
            for argument, conditions in added.items()
        },
        return_dict=False,
    )
    return [answer[: call.users] * weight for answer, weight in zip((*down, middle), call.weights, strict=True)]
