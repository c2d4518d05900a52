"""demo-sd21's text encoder: another, narrower network that learns to say what demo-sd's says, through a linear bridge.

The bridge then goes into the UNet's cross-attention, which so understands its new encoder from the first step on.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import SD21_TEXT_WIDTH, TEXT_WIDTH, TOKENS, device, make_text_encoder
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
        texts = [sample(rng)[1].text for _ in range(BATCH)]
        ids = tokenize(tokenizer, texts, TOKENS if rng.random() < 0.2 else _SHORT).to(device())
        run.tell(50, lost=run.descend(_lost(teacher, pupil, bridge, ids)))
    return pupil.eval(), bridge.weight.detach()


@torch.no_grad()
def cross_bridge(unet: UNet2DConditionModel, master: UNet2DConditionModel, bridge: Tensor) -> None:
    """Give `unet`, in place, the keys and values that `master` would make of what the bridge says."""
    known = master.state_dict()
    for name, weight in unet.state_dict().items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weight.copy_(known[name] @ bridge)


def _lost(teacher: CLIPTextModel, pupil: CLIPTextModel, bridge: nn.Module, ids: Tensor) -> Tensor:
    """The share of the teacher's variance, over captions, that the pupil does not say."""
    with torch.no_grad():
        wanted = teacher(input_ids=ids).last_hidden_state
    said = bridge(pupil(input_ids=ids).last_hidden_state)
    lost: Tensor = (said - wanted).square().mean() / wanted.var(dim=0).mean()
    return lost
