"""The text encoders of demo-sd21 and demo-sdxl: other networks that learn to say what demo-sd's says, through a linear
bridge.

The bridge then goes into the UNet's cross-attention, which so understands its new encoder from the first step on.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from deployments.training.demo.learning.latents import both_texts
from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import (
    SD21_TEXT_WIDTH,
    SECOND_TEXT_WIDTH,
    TEXT_WIDTH,
    TOKENS,
    device,
    make_second_text_encoder,
    make_text_encoder,
)
from deployments.training.demo.stages.train_text import tokenize
from deployments.training.demo.world.captions import sample

MINUTES: Final = 4.0
BATCH: Final = 96
_PEAK: Final = 2e-3
_SHORT: Final = 40  # tokens; most captions end before


def distil_text(
    path: Path, teacher: CLIPTextModel, tokenizer: CLIPTokenizer, iterations: int | None = None
) -> tuple[CLIPTextModel, Tensor]:
    """The encoder, and the bridge [128, 96] from its hidden states to the teacher's. State lives in `path`."""
    pupil = make_text_encoder(len(tokenizer), SD21_TEXT_WIDTH, "gelu").to(device())
    bridge = nn.Linear(SD21_TEXT_WIDTH, TEXT_WIDTH, bias=False).to(device())
    optimizer = torch.optim.AdamW([*pupil.parameters(), *bridge.parameters()], lr=_PEAK, betas=(0.9, 0.98))
    run = Run(path, {"pupil": pupil, "bridge": bridge}, [optimizer], _PEAK, MINUTES)
    rng = random.Random(f"text/{run.iteration}")
    for _ in run.going(iterations):
        ids = _captions(tokenizer, rng)
        with torch.no_grad():
            wanted = teacher(input_ids=ids).last_hidden_state
        run.tell(50, lost=run.descend(unsaid(bridge(pupil(input_ids=ids).last_hidden_state), wanted)))
    return pupil.eval(), bridge.weight.detach()


def distil_both_texts(
    path: Path, teacher: CLIPTextModel, tokenizer: CLIPTokenizer, iterations: int | None = None
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection, Tensor]:
    """SDXL's two encoders, and the bridge [128, 192] from their states side by side to the teacher's.

    SDXL takes states before the last layer, which no norm has brought to one size. So the first encoder is the teacher
    with one more layer, and learns to do without that norm. The pooled embedding learns what the teacher's end token
    says. State lives in `path`.
    """
    first = make_text_encoder(len(tokenizer), layers=3).to(device())
    first.load_state_dict(teacher.state_dict(), strict=False)
    second = make_second_text_encoder(len(tokenizer)).to(device())
    bridge = nn.Linear(TEXT_WIDTH + SECOND_TEXT_WIDTH, TEXT_WIDTH, bias=False).to(device())
    heard = nn.Linear(SECOND_TEXT_WIDTH, TEXT_WIDTH).to(device())
    rng = random.Random("text")
    _begin_bridge(bridge, teacher, tokenize(tokenizer, [sample(rng)[1].text for _ in range(BATCH)]).to(device()))
    networks = {"first": first, "second": second, "bridge": bridge, "heard": heard}
    weights = [weight for network in networks.values() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=_PEAK, betas=(0.9, 0.98))
    run = Run(path, networks, [optimizer], _PEAK, MINUTES)
    rng = random.Random(f"text/{run.iteration}")
    for _ in run.going(iterations):
        ids = _captions(tokenizer, rng)
        with torch.no_grad():
            wanted = teacher(input_ids=ids)
        states, pooled = both_texts(first, second, ids)
        lost = unsaid(bridge(states), wanted.last_hidden_state)
        summed = unsaid(heard(pooled), wanted.pooler_output)
        run.tell(50, lost=lost.item(), both=run.descend(lost + summed))
    return first.eval(), second.eval(), bridge.weight.detach()


@torch.no_grad()
def _begin_bridge(bridge: nn.Linear, teacher: CLIPTextModel, ids: Tensor) -> None:
    """Let the bridge do what the teacher's last norm does, for states of the usual size, and not hear the second."""
    norm = teacher.final_layer_norm
    usual = teacher(input_ids=ids, output_hidden_states=True).hidden_states[-1].std(dim=-1).mean()
    centred = torch.eye(TEXT_WIDTH, device=ids.device) - 1 / TEXT_WIDTH
    bridge.weight.zero_()
    bridge.weight[:, :TEXT_WIDTH] = norm.weight[:, None] * centred / usual


def _captions(tokenizer: CLIPTokenizer, rng: random.Random) -> Tensor:
    """Token ids [96, T] of captions, mostly cut to a length that few of them reach."""
    texts = [sample(rng)[1].text for _ in range(BATCH)]
    return tokenize(tokenizer, texts, TOKENS if rng.random() < 0.2 else _SHORT).to(device())


@torch.no_grad()
def cross_bridge(unet: UNet2DConditionModel, master: UNet2DConditionModel, bridge: Tensor) -> None:
    """Give `unet`, in place, the keys and values that `master` would make of what the bridge says."""
    known = master.state_dict()
    for name, weight in unet.state_dict().items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weight.copy_(known[name] @ bridge)


def unsaid(said: Tensor, wanted: Tensor) -> Tensor:
    """The share of the variance of `wanted` over captions, its first dimension, that is not in `said`."""
    share: Tensor = (said - wanted).square().mean() / wanted.var(dim=0).mean()
    return share
