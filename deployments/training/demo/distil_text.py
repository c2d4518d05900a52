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

from deployments.training.demo import checkpoint
from deployments.training.demo.budget import Budget, cosine
from deployments.training.demo.captions import sample
from deployments.training.demo.models import SD21_TEXT_WIDTH, TEXT_WIDTH, TOKENS, device, make_text_encoder
from deployments.training.demo.train_text import tokenize

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
    state = checkpoint.load(path) or {"iteration": 0, "spent": 0.0}
    if "pupil" in state:
        pupil.load_state_dict(state["pupil"])
        bridge.load_state_dict(state["bridge"])
        optimizer.load_state_dict(state["optimizer"])
    budget, iteration = Budget(MINUTES, state["spent"]), int(state["iteration"])
    rng, last = random.Random(f"text/{iteration}"), iteration + iterations if iterations else None
    while budget.left and iteration != last:
        for group in optimizer.param_groups:
            group["lr"] = cosine(budget.progress, _PEAK)
        texts = [sample(rng)[1].text for _ in range(BATCH)]
        ids = tokenize(tokenizer, texts, TOKENS if rng.random() < 0.2 else _SHORT).to(device())
        loss = _lost(teacher, pupil, bridge, ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        iteration += 1
        if iteration % 50 == 0:
            print(f"text {iteration} {budget.spent:.0f}s lost {loss.item():.4f}", flush=True)
    checkpoint.save(
        path,
        pupil=pupil.state_dict(),
        bridge=bridge.state_dict(),
        optimizer=optimizer.state_dict(),
        iteration=iteration,
        spent=budget.spent,
    )
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
