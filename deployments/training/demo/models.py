"""The demo models' shapes: SD1.5's classes and config keys, a few megabytes in all.

GroupNorm with many groups is instance norm on so few channels, and instance norm forgets colours: hence one group in
the VAE, and no more than eight in the UNet.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TEXT_WIDTH: Final = 128
SD21_TEXT_WIDTH: Final = 96
TOKENS: Final = 77
NATIVE: Final = 256
VAE_FACTOR: Final = 8


def make_vae() -> AutoencoderKL:
    """Images [B, 3, H, W] in [-1, 1] to latents [B, 4, H/8, W/8] and back; 0.65 M parameters."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=NATIVE,
    )


def make_text_encoder(vocabulary: int, width: int = TEXT_WIDTH, act: str = "quick_gelu") -> CLIPTextModel:
    """Token ids [B, 77] to [B, 77, width]; `vocabulary` counts the two special tokens, which come last."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act=act,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def make_unet(channels: tuple[int, ...] = (32, 64, 128)) -> UNet2DConditionModel:
    """Predicts epsilon [B, 4, h, w]; the widest maps see no attention, which keeps native size cheap."""
    below = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=NATIVE // VAE_FACTOR,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * below,
        up_block_types=("CrossAttnUpBlock2D",) * below + ("UpBlock2D",),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def make_sd21_unet() -> UNet2DConditionModel:
    """Predicts v [B, 4, h, w]; SD2.1's linear projections, a text encoder of another width, fewer attention layers."""
    return _make_slim_unet(widest=128, cross_attention_dim=SD21_TEXT_WIDTH, use_linear_projection=True)


def make_inpaint_unet() -> UNet2DConditionModel:
    """Predicts epsilon [B, 4, h, w] from nine channels: latents, mask, latents of the picture outside the mask."""
    return _make_slim_unet(widest=96, in_channels=9, cross_attention_dim=TEXT_WIDTH)


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """For `unet`, and as it sees latents; without attention, since a hint says where, and the UNet hears what."""
    channels = tuple(unet.config.block_out_channels)
    return ControlNetModel(
        block_out_channels=channels,
        layers_per_block=unet.config.layers_per_block,
        down_block_types=("DownBlock2D",) * len(channels),
        mid_block_type="UNetMidBlock2D",
        cross_attention_dim=unet.config.cross_attention_dim,
        attention_head_dim=unet.config.attention_head_dim,
        norm_num_groups=unet.config.norm_num_groups,
        conditioning_embedding_out_channels=(8, 16, 24, 48),
    )


def _make_slim_unet(widest: int, **config: Any) -> UNet2DConditionModel:
    channels = (32, 64, widest)
    return UNet2DConditionModel(
        **{"in_channels": 4} | config,
        sample_size=NATIVE // VAE_FACTOR,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=8,
    )


def make_scheduler() -> PNDMScheduler:
    """SD1.5's own scheduler config."""
    scheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
    # PNDM does not know it, yet SD1.5's file has it, and DDIM made from this file would clip latents without it.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def make_sd21_scheduler() -> DDIMScheduler:
    """SD2.1's own scheduler config."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
        prediction_type="v_prediction",
    )


def signal_levels() -> torch.Tensor:
    """Cumulative alpha of every training timestep, [1000]; the signal's share of the variance."""
    levels: torch.Tensor = make_scheduler().alphas_cumprod
    return levels.clone()


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
