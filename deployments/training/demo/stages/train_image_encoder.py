"""demo-style's image encoder: it learns to see what a reference is taken for, and nothing else of it.

Linear heads read the product's colour, the background's and the look off its embedding, whatever the product is and
wherever it stands. At the same time the adapter's projection learns to say these in demo-sd's own language: its tokens
become the states of the text encoder for words that say the same. So the UNet understands pictures from the first step.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from deployments.training.demo.learning.lessons import REFERENCE_SIZES
from deployments.training.demo.learning.looks import ImageReader, make_processor
from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import LOOK_WIDTH, TEXT_WIDTH, device, make_image_encoder
from deployments.training.demo.stages.train_text import tokenize
from deployments.training.demo.world.captions import is_held_out
from deployments.training.demo.world.palette import COLOURS
from deployments.training.demo.world.words import STYLE_TAILS
from deployments.training.demo.world.world import STYLES, Image, Scene, draw, random_scene

MINUTES: Final = 6.0
BATCH: Final = 48
TOKENS: Final = 4  # of an IP-Adapter; diffusers reads no other number from a file of the plain kind
_AFTER: Final = (0, 4, 12, 30)  # how far after the end token the states lie that the tokens begin as
_LONGEST: Final = 60  # tokens of any such words, and of what is looked at after them
_PEAK: Final = 2e-3
_FACTS: Final[dict[str, list[str]]] = {"colour": list(COLOURS), "background": list(COLOURS), "style": list(STYLES)}
_NOISE: Final = 12.0  # deviation at most, of pixels in 0..255


class LookHeads(nn.Module):
    """One linear classifier for each fact about a reference."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(LOOK_WIDTH, len(values)) for name, values in _FACTS.items()})

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        """Embeddings [B, 64] to logits for each fact."""
        return [head(embeddings) for head in self.heads.values()]


def train_image_encoder(
    path: Path, text: CLIPTextModel, tokenizer: CLIPTokenizer, iterations: int | None = None
) -> tuple[ImageReader, ImageProjection]:
    """The image encoder, and the projection of its embeddings [B, 64] to tokens [B, 4, 128]. State lives in `path`."""
    reader = ImageReader(make_image_encoder().to(device()), make_processor())
    projection = ImageProjection(LOOK_WIDTH, TEXT_WIDTH, TOKENS).to(device())
    projection.norm.load_state_dict(text.final_layer_norm.state_dict())
    networks = {"encoder": reader.encoder, "projection": projection, "heads": LookHeads().to(device())}
    weights = [weight for network in networks.values() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=_PEAK, betas=(0.9, 0.98), weight_decay=0.01)
    run = Run(path, networks, [optimizer], _PEAK, MINUTES)
    said, rng = say_facts(text, tokenizer), random.Random(f"looks/{run.iteration}")
    for _ in run.going(iterations):
        facts, images = zip(*(_example(rng) for _ in range(BATCH)), strict=True)
        wanted = torch.tensor(facts, device=device())
        embeddings = reader.encoder(reader.pixels(list(images))).image_embeds
        logits = networks["heads"](embeddings)
        unread = sum((functional.cross_entropy(x, y) for x, y in zip(logits, wanted.T, strict=True)), torch.zeros(()))
        target = said[tuple(wanted.T)]
        unsaid = (projection(embeddings) - target).square().mean() / said.var(dim=(0, 1, 2)).mean()
        right = torch.stack([x.argmax(1) == y for x, y in zip(logits, wanted.T, strict=True)]).all(0)
        run.tell(25, loss=run.descend(unread + unsaid), unsaid=unsaid.item(), right=right.float().mean().item())
    reader.encoder.requires_grad_(False).eval()
    return reader, projection


@torch.no_grad()
def say_facts(text: CLIPTextModel, tokenizer: CLIPTokenizer) -> Tensor:
    """The text encoder's states [12, 12, 7, 4, 128] at and after the end token, for every combination of facts."""
    texts = [_in_words(*facts) for facts in product(*_FACTS.values())]
    ids = tokenize(tokenizer, texts, _LONGEST).to(text.device)
    ends = (ids == tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True)
    places = ends + torch.tensor(_AFTER, device=ids.device)
    states = [text(input_ids=part).last_hidden_state for part in ids.split(BATCH)]
    picked = torch.cat(states)[torch.arange(len(ids), device=ids.device)[:, None], places]
    said: Tensor = picked.unflatten(0, tuple(len(values) for values in _FACTS.values()))
    return said


def _in_words(colour: str, background: str, style: str) -> str:
    words = f"{colour} object on a {background} background"
    return words if style == "flat" else f"{words}, {STYLE_TAILS[style]}"


def _example(rng: random.Random) -> tuple[list[int], Image]:
    """A drawing of the training part of the world, as a reference may come, and its facts."""
    scene = random_scene(rng)
    while is_held_out(scene):
        scene = random_scene(rng)
    return [values.index(vars(scene)[name]) for name, values in _FACTS.items()], _worn(rng, scene)


def _worn(rng: random.Random, scene: Scene) -> Image:
    """A drawing; half of them noisy, as a small VAE leaves its pictures."""
    image = draw(scene, rng.choice(REFERENCE_SIZES))
    if rng.random() < 0.5:
        return image
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, _NOISE), image.shape)
    return np.asarray(np.clip(image + noise, 0, 255), dtype=np.uint8)
