"""Tiny real networks: diffusers' and transformers' own classes with random weights, each a few milliseconds a call.

Weights are seeded and scaled so that images use most of the colour range, depend on prompt and guidance, and do not
amplify rounding: a comparison to 1/255 then means something.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PredictionType = Literal["epsilon", "v_prediction"]

TOKENS: Final = 77
WIDTH: Final = 32
FACTOR: Final = 8
_START: Final = "<|startoftext|>"
_END: Final = "<|endoftext|>"
_WORDS: Final = ("a", "cat", "cup", "red", "blue", "the", "picture", "of", "on", "word")


def save_tiny_checkpoint(
    folder: Path,
    *,
    prediction_type: PredictionType = "epsilon",
    seed: int = 0,
    sample_size: int = 8,
    in_channels: int = 4,
) -> Path:
    """Writes a whole Stable Diffusion checkpoint in diffusers' layout to `folder` and returns `folder`.

    Native size is 8 * `sample_size` pixels; `in_channels` is 9 for an inpainting checkpoint. The same arguments give
    the same weights.
    """
    tokenizer = tiny_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(seed + 1),
        text_encoder=tiny_text_encoder(tokenizer, seed + 2),
        tokenizer=tokenizer,
        unet=tiny_unet(seed + 3, sample_size=sample_size, in_channels=in_channels),
        scheduler=tiny_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_unet(seed: int = 3, *, sample_size: int = 8, in_channels: int = 4) -> UNet2DConditionModel:
    """Latents [B, 4, h, w], h and w even, with text [B, tokens, 32]; the lower of two levels sees the text."""
    unet: UNet2DConditionModel = seed_weights(
        seed,
        lambda: UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
    )
    for name, module in unet.named_modules():
        # At its initial scale the text hardly moves a picture, and guidance would go untested.
        if name.endswith(("attn2.to_v", "attn2.to_k")):
            scale_weight(module, 3.0)
    scale_weight(unet.conv_out, 2.0)
    return unet


def save_tiny_controlnet(folder: Path, *, seed: int, **config: Any) -> Path:
    """Writes a ControlNet for `tiny_unet` to `folder` and returns `folder`; `config` entries are diffusers' own."""
    tiny_controlnet(seed, **config).save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_controlnet(seed: int, **config: Any) -> ControlNetModel:
    """A ControlNet whose hint shows: at its birth all its outputs are zero."""
    net: ControlNetModel = seed_weights(
        seed,
        lambda: ControlNetModel(
            **{
                "in_channels": 4,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "cross_attention_dim": WIDTH,
                "attention_head_dim": 4,
                "norm_num_groups": 4,
                "conditioning_embedding_out_channels": (8, 8, 8, 8),
            }
            | config
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            nn.init.normal_(module.weight, std=0.1)
        nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=1.0)
    for module in net.controlnet_cond_embedding.modules():
        # Eight layers at their initial scale forget the hint.
        if isinstance(module, nn.Conv2d):
            scale_weight(module, 2.0)
    return net


def tiny_vae(seed: int = 1) -> AutoencoderKL:
    """Pictures [B, 3, H, W] to latents [B, 4, H/8, W/8] and back."""
    vae: AutoencoderKL = seed_weights(
        seed,
        lambda: AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=64,
        ),
    )
    scale_weight(vae.decoder.conv_out, 1.5)
    return vae


def tiny_text_encoder(tokenizer: CLIPTokenizer, seed: int = 2, *, layers: int = 3) -> CLIPTextModel:
    """Token ids [B, 77] to hidden states [B, 77, 32]."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder: CLIPTextModel = seed_weights(seed, lambda: CLIPTextModel(config))
    for name, module in encoder.named_modules():
        # transformers' 0.02 makes every prompt almost the same prompt.
        if isinstance(module, nn.Linear) or name.endswith("token_embedding"):
            scale_weight(module, 8.0)
    return encoder


def tiny_tokenizer(pad_token: str = _END) -> CLIPTokenizer:
    """A byte-level BPE whose vocabulary has every byte, a few whole words and, last, the two special tokens."""
    merges = list(dict.fromkeys(pair for word in _WORDS for pair in _spelling(word)))
    joined = ["".join(pair) for pair in merges]
    letters = _byte_letters()
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *joined, _START, _END])
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        bos_token=_START,
        eos_token=_END,
        unk_token=_END,
        pad_token=pad_token,
        model_max_length=TOKENS,
    )


def tiny_scheduler(prediction_type: PredictionType = "epsilon") -> PNDMScheduler:
    """SD1.5's scheduler config, or the same for `v_prediction`."""
    scheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    # PNDM does not know it, yet SD1.5's file has it, and DDIM made from this file would clip without it.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def seed_weights(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def scale_weight(module: nn.Module, factor: float) -> None:
    for name, weight in module.named_parameters(recurse=False):
        if name == "weight":
            weight.data.mul_(factor)


def _spelling(word: str) -> list[tuple[str, str]]:
    """The merges that build `word` letter by letter."""
    last = f"{word[-1]}</w>"
    parts = [*word[:-1], last]
    return [("".join(parts[:i]), parts[i]) for i in range(1, len(parts))]


def _byte_letters() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level BPE (Radford et al. 2019)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return sorted([chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))])
