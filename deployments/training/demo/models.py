"""The demo models' shapes: SD1.5's classes and config keys, a few megabytes in all.

GroupNorm with many groups is instance norm on so few channels, and instance norm forgets colours: hence one group in
the VAE, and no more than eight in the UNet.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

TEXT_WIDTH: Final = 128
SD21_TEXT_WIDTH: Final = 96
SECOND_TEXT_WIDTH: Final = 64
TOKENS: Final = 77
LOOK_WIDTH: Final = 64
LOOK_PIXELS: Final = 64
NATIVE: Final = 256
VAE_FACTOR: Final = 8
_SIZE_WIDTH: Final = 32  # channels that one of SDXL's six sizes is spread over


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


def make_text_encoder(
    vocabulary: int, width: int = TEXT_WIDTH, act: str = "quick_gelu", layers: int = 2
) -> CLIPTextModel:
    """Token ids [B, 77] to [B, 77, width]; `vocabulary` counts the two special tokens, which come last."""
    return CLIPTextModel(_text_config(vocabulary, width, act, layers))


def make_second_text_encoder(vocabulary: int) -> CLIPTextModelWithProjection:
    """SDXL's second: token ids [B, 77] to hidden states [B, 77, 64] and one projection [B, 64] of the end token's."""
    return CLIPTextModelWithProjection(_text_config(vocabulary, SECOND_TEXT_WIDTH, "gelu", 3))


def _text_config(vocabulary: int, width: int, act: str, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act=act,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def make_image_encoder() -> CLIPVisionModelWithProjection:
    """Pictures [B, 3, 64, 64] to one embedding [B, 64]; 0.25 M parameters."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=384,
            projection_dim=LOOK_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=LOOK_PIXELS,
            patch_size=8,
        )
    )


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


def make_xl_unet() -> UNet2DConditionModel:
    """Predicts epsilon [B, 4, h, w] from the states of two text encoders, a caption's pooled embedding [B, 64], and six
    sizes; otherwise demo-sd's UNet, with linear projections.
    """
    return UNet2DConditionModel(
        sample_size=NATIVE // VAE_FACTOR,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH + SECOND_TEXT_WIDTH,
        attention_head_dim=(4, 4, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=_SIZE_WIDTH,
        projection_class_embeddings_input_dim=6 * _SIZE_WIDTH + SECOND_TEXT_WIDTH,
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


def make_xl_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own scheduler config."""
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type="epsilon",
    )
    # Euler does not know them, yet SDXL's file has them.
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)
    return scheduler


def signal_levels() -> torch.Tensor:
    """Cumulative alpha of every training timestep, [1000]; the signal's share of the variance."""
    levels: torch.Tensor = make_scheduler().alphas_cumprod
    return levels.clone()


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
