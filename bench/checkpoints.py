"""Makes checkpoints of a true architecture with random weights: speed does not depend on what a network has learnt.

They are written into a folder in diffusers' layout, so that the engine and the pipeline load them exactly as they load
real ones. Nothing is downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def _frozen(**entries: Any) -> Mapping[str, Any]:
    return MappingProxyType(entries)


@dataclass(frozen=True)
class Architecture:
    """The networks' configs. `unet_gflop` is one row's forward at native size and 77 tokens, attention's own products
    included; `vae_gflop` is one decode; both count a multiply-add as two.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    unet_gflop: float
    vae_gflop: float


SD15 = Architecture(
    name="sd15",
    unet=_frozen(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=8,
        norm_num_groups=32,
        norm_eps=1e-5,
        act_fn="silu",
        center_input_sample=False,
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
        mid_block_scale_factor=1,
    ),
    vae=_frozen(
        sample_size=512,
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=32,
        act_fn="silu",
        scaling_factor=0.18215,
    ),
    text_encoder=_frozen(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        projection_dim=768,
        hidden_act="quick_gelu",
    ),
    unet_gflop=803.3,
    vae_gflop=2514.5,
)

_SD15_HINT_CHANNELS = (16, 32, 96, 256)

# For rehearsals: the same classes, quick on any CPU.
TINY = Architecture(
    name="tiny",
    unet=_frozen(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    ),
    vae=_frozen(
        sample_size=64,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    ),
    text_encoder=_frozen(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=32,
        hidden_act="quick_gelu",
    ),
    unet_gflop=0.01296,
    vae_gflop=0.03681,
)


def write_checkpoint(architecture: Architecture, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Writes seeded random weights in diffusers' layout. They are drawn on `device`, which is quick on a GPU."""
    torch.manual_seed(0)
    with torch.device(device):
        UNet2DConditionModel(**architecture.unet).to(dtype).save_pretrained(folder / "unet")
        AutoencoderKL(**architecture.vae).to(dtype).save_pretrained(folder / "vae")
        CLIPTextModel(text_config(architecture)).to(dtype).save_pretrained(folder / "text_encoder")
    make_tokenizer(architecture.text_encoder["vocab_size"]).save_pretrained(folder / "tokenizer")
    _scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(_INDEX)


def write_controlnet(checkpoint: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes a ControlNet for the UNet of `checkpoint`: a copy of its encoder, as at the start of training, but with
    seeded random outputs instead of zeros. The hint's layers have the same relative width as SD1.5's.
    """
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    scale = unet.config.block_out_channels[0] / SD15.unet["block_out_channels"][0]
    hint = tuple(max(1, round(channels * scale)) for channels in _SD15_HINT_CHANNELS)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=hint)
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        nn.init.normal_(layer.weight, std=0.02)
    net.to(dtype).save_pretrained(folder)


def make_tokenizer(vocabulary: int) -> CLIPTokenizer:
    """Makes CLIP's tokenizer with one token per byte, no merges, and placeholders up to the size of the vocabulary."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = symbols + [f"{symbol}</w>" for symbol in symbols]
    tokens += [f"<unused-{index}>" for index in range(len(tokens), vocabulary - 2)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77)


def text_config(architecture: Architecture) -> Any:
    """Returns the text encoder's config, with the tokens at the end of `make_tokenizer`'s vocabulary."""
    end = architecture.text_encoder["vocab_size"] - 1
    return CLIPTextConfig(**architecture.text_encoder, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end)


def _scheduler() -> Any:
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    # PNDM does not know it, yet SD1.5's file has it, and diffusers' DDIM made from this file would clip without it.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


_INDEX = """{
  "_class_name": "StableDiffusionPipeline",
  "_diffusers_version": "0.42.1",
  "scheduler": ["diffusers", "PNDMScheduler"],
  "text_encoder": ["transformers", "CLIPTextModel"],
  "tokenizer": ["transformers", "CLIPTokenizer"],
  "unet": ["diffusers", "UNet2DConditionModel"],
  "vae": ["diffusers", "AutoencoderKL"],
  "feature_extractor": [null, null],
  "image_encoder": [null, null],
  "safety_checker": [null, null],
  "requires_safety_checker": false
}
"""
