"""Tiny real networks of Stable Diffusion XL's kind: two text encoders, a UNet that is told the text's sum and sizes."""

from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tests.deployments.engine.tiny import (
    TOKENS,
    WIDTH,
    scale_weight,
    seed_weights,
    tiny_controlnet,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_vae,
)

SECOND_WIDTH: Final = 48
POOLED: Final = 24
_TIME: Final = 8
_BLOCKS: Final[dict[str, Any]] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": WIDTH + SECOND_WIDTH,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "norm_num_groups": 4,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": _TIME,
    "projection_class_embeddings_input_dim": 6 * _TIME + POOLED,
}
SCHEDULE: Final[dict[str, Any]] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def save_tiny_xl(
    folder: Path,
    *,
    seed: int = 50,
    in_channels: int = 4,
    guidance_width: int | None = None,
    scheduler: Any = None,
    zeros_for_nothing: bool = True,
) -> Path:
    """Writes a whole Stable Diffusion XL checkpoint of 64 pixels in diffusers' layout to `folder` and returns it.

    Its `scheduler` is by default what the published base model has.
    """
    tokenizer = tiny_tokenizer()
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(seed + 1),
        text_encoder=tiny_text_encoder(tokenizer, seed + 2),
        text_encoder_2=tiny_second_text_encoder(tokenizer, seed + 3),
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer("!"),
        unet=tiny_xl_unet(seed + 4, in_channels=in_channels, time_cond_proj_dim=guidance_width),
        scheduler=scheduler or tiny_xl_scheduler(),
        force_zeros_for_empty_prompt=zeros_for_nothing,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_xl_scheduler() -> EulerDiscreteScheduler:
    """The published base model's scheduler config."""
    scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1)
    # Euler does not know them, yet the file has them, and DDIM made from this file would clip without the first.
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)
    return scheduler


def tiny_xl_unet(seed: int = 54, *, in_channels: int = 4, **config: Any) -> UNet2DConditionModel:
    """Latents [B, 4, h, w], h and w even, with text [B, tokens, 80], its sum [B, 24] and six sizes."""
    unet: UNet2DConditionModel = seed_weights(
        seed,
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            out_channels=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **_BLOCKS | config,
        ),
    )
    _read_text_softly(unet)
    for name, module in unet.named_modules():
        # At their initial scale the text's sum and the sizes hardly move a picture, and would go untested.
        if name.startswith("add_embedding.linear"):
            scale_weight(module, 2.0)
    scale_weight(unet.conv_out, 2.0)
    return unet


def tiny_xl_controlnet(seed: int, **config: Any) -> ControlNetModel:
    """A ControlNet for `tiny_xl_unet`."""
    net = tiny_controlnet(seed, **_BLOCKS | config)
    _read_text_softly(net)
    return net


def _read_text_softly(network: nn.Module) -> None:
    """Scales what reads the text: the states before the last layer are not normalized, and attention to one token alone
    would amplify rounding.
    """
    for name, module in network.named_modules():
        if name.endswith(("attn2.to_v", "attn2.to_k")):
            scale_weight(module, 0.15)


def tiny_second_text_encoder(tokenizer: CLIPTokenizer, seed: int = 53) -> CLIPTextModelWithProjection:
    """Token ids [B, 77] to hidden states [B, 77, 48] and a projection [B, 24] of the end token's."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=SECOND_WIDTH,
        intermediate_size=2 * SECOND_WIDTH,
        projection_dim=POOLED,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_act="gelu",
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.convert_tokens_to_ids("!"),
    )
    encoder: CLIPTextModelWithProjection = seed_weights(seed, lambda: CLIPTextModelWithProjection(config))
    for name, module in encoder.named_modules():
        # transformers' 0.02 makes every prompt almost the same prompt.
        if (isinstance(module, nn.Linear) and name != "text_projection") or name.endswith("token_embedding"):
            scale_weight(module, 6.0)
    return encoder


def xl_inputs(rows: int) -> dict[str, torch.Tensor]:
    """Seeded sums of texts, and sizes, for `tiny_xl_unet`."""
    generator = torch.Generator().manual_seed(rows)
    sizes = torch.tensor([64.0, 64.0, 0.0, 0.0, 64.0, 64.0]).repeat(rows, 1)
    return {"text_embeds": torch.randn((rows, POOLED), generator=generator), "time_ids": sizes}


def tiny_union_controlnet(seed: int) -> ControlNetUnionModel:
    """A union ControlNet for `tiny_xl_unet`, of four kinds of hints, whose hints show."""
    net: ControlNetUnionModel = seed_weights(
        seed,
        lambda: ControlNetUnionModel(
            in_channels=4,
            conditioning_embedding_out_channels=(8, 8, 8, 8),
            num_control_type=4,
            num_trans_channel=16,
            num_trans_head=2,
            num_proj_channel=16,
            **_BLOCKS,
        ),
    )
    _read_text_softly(net)
    generator = torch.Generator().manual_seed(seed)

    def draw(weight: torch.Tensor, deviation: float) -> None:
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * deviation)

    for module in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        draw(module.weight, 0.1)
    draw(net.spatial_ch_projs.weight, 0.3)
    draw(net.task_embedding, 1.0)
    draw(net.controlnet_cond_embedding.conv_out.weight, 1.0)
    for module in net.controlnet_cond_embedding.modules():
        # Eight layers at their initial scale forget the hint.
        if isinstance(module, nn.Conv2d):
            scale_weight(module, 2.0)
    return net
