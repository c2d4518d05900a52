"""Stage two: the text encoder alone learns to say what a caption promises; the UNet then only has to draw it.

Linear heads read product, colours, size, place and look off the tokens from the end token on, the only ones that have
seen the whole caption. Minutes here save hours in the UNet, whose gradient says little about words.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import TEXT_WIDTH, TOKENS, device, make_text_encoder
from deployments.training.demo.world.captions import ATTRIBUTES, Caption, sample
from deployments.training.demo.world.palette import COLOURS
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.world import POSITIONS, SIZES, STYLES, Scene

_PEAK: Final = 2e-3
_SHORT: Final = 40  # tokens; most captions end before
_VALUES: Final[dict[str, list[str]]] = {
    "product": list(SILHOUETTES),
    "colour": list(COLOURS),
    "background": list(COLOURS),
    "size": list(SIZES),
    "position": list(POSITIONS),
    "style": list(STYLES),
}


class Heads(nn.Module):
    """One linear classifier per attribute; its last class is "not said"."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, len(v) + 1) for name, v in _VALUES.items()})

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """Hidden states [N, 128] to logits per attribute, in the order of ATTRIBUTES."""
        return [self.heads[name](hidden) for name in ATTRIBUTES]


def train_text(
    folder: Path, tokenizer: CLIPTokenizer, minutes: float, batch: int = 192, iterations: int | None = None
) -> CLIPTextModel:
    """Train, or go on training, the text encoder for `minutes` in all; its state lives in `folder`/text.pt."""
    encoder, heads = make_text_encoder(len(tokenizer)).to(device()), Heads().to(device())
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK, weight_decay=0.01, betas=(0.9, 0.98))
    run = Run(folder / "text.pt", {"model": encoder, "heads": heads}, [optimizer], _PEAK, minutes)
    rng = random.Random(run.iteration)
    for _ in run.going(iterations):
        loss, right = _lost(encoder, heads, tokenizer, rng, batch)
        run.tell(25, loss=run.descend(loss), right=right)
    return encoder


def _lost(
    encoder: CLIPTextModel, heads: Heads, tokenizer: CLIPTokenizer, rng: random.Random, batch: int
) -> tuple[Tensor, float]:
    """The loss over `batch` captions, and the share of which every attribute is read right."""
    pairs = [sample(rng) for _ in range(batch)]
    length = TOKENS if rng.random() < 0.2 else _SHORT
    ids = tokenize(tokenizer, [caption.text for _, caption in pairs], length).to(encoder.device)
    hidden = encoder(input_ids=ids).last_hidden_state
    wanted = torch.tensor([[_answer(scene, caption, name) for name in ATTRIBUTES] for scene, caption in pairs])
    logits = heads(_read(hidden, ids, tokenizer.eos_token_id))
    answers = wanted.to(ids.device).repeat_interleave(2, dim=0)
    loss = sum((functional.cross_entropy(x, y) for x, y in zip(logits, answers.T, strict=True)), torch.zeros(()))
    right = torch.stack([x.argmax(1) == y for x, y in zip(logits, answers.T, strict=True)]).all(0)
    return loss, right.float().mean().item()


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], length: int = TOKENS) -> Tensor:
    """Token ids [B, length], padded with the end token as the pipelines pad."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def _read(hidden: Tensor, ids: Tensor, end: int) -> Tensor:
    """Of each caption [B, T, C], its end token and one padding token after it, [2 B, C]."""
    rows = torch.arange(len(ids), device=ids.device)
    first = (ids == end).int().argmax(dim=1)
    later = first + (torch.rand(len(ids), device=ids.device) * (ids.shape[1] - first)).long()
    return torch.stack([hidden[rows, first], hidden[rows, later]], dim=1).flatten(0, 1)


def _answer(scene: Scene, caption: Caption, name: str) -> int:
    values = _VALUES[name]
    return values.index(str(vars(scene)[name])) if name in caption.promises else len(values)
