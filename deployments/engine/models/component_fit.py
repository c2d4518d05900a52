"""Checks that the parts of a model fit one another; each alone is sound."""

from collections.abc import Sequence
from typing import Any

from deployments.engine.conditioning.added_conditions import pooled_width
from deployments.engine.protocol.errors import ModelLoadError


def check_parts(title: str, unet: Any, vae: Any, text_encoders: Sequence[Any]) -> None:
    """Raises ModelLoadError, which names the two keys that do not go together."""
    latent, seen, answered = vae.config.latent_channels, unet.config.in_channels, unet.config.out_channels
    if seen not in (latent, 2 * latent + 1):
        raise ModelLoadError(
            f"{title}: its UNet's `in_channels` is {seen}, and served are {latent}, the VAE's `latent_channels`, and "
            f"{2 * latent + 1}, for inpainting; upscalers, depth-to-image, pix2pix and others that see more are not"
        )
    if answered != latent:
        raise ModelLoadError(
            f"{title}: its UNet's `out_channels` is {answered}, and the VAE's `latent_channels` {latent}; bring the "
            "two that belong together"
        )
    _check_width(title, "UNet", unet, text_encoders)
    if len(text_encoders) > 1:
        _check_pooled_width(title, "UNet", unet, text_encoders[1])
        if vae.config.latents_mean is not None or vae.config.latents_std is not None:
            raise ModelLoadError(
                f"{title}: its VAE's `latents_mean` and `latents_std` are set, and with two text encoders only VAEs "
                "without them are served; bring the one of Stable Diffusion XL"
            )


def check_controlnet(title: str, network: Any, unet: Any, vae: Any, text_encoders: Sequence[Any]) -> None:
    """Raises ModelLoadError if a ControlNet does not fit `unet`, as `check_parts` does."""
    latent, stages = vae.config.latent_channels, len(vae.config.block_out_channels)
    if network.config.in_channels != latent:
        raise ModelLoadError(
            f"{title} does not fit: its `in_channels` is {network.config.in_channels}, and the VAE's `latent_channels` "
            f"{latent}; bring one for this model"
        )
    if len(network.config.conditioning_embedding_out_channels) != stages:
        raise ModelLoadError(
            f"{title} does not fit: it must have as many `conditioning_embedding_out_channels` as the VAE has "
            f"`block_out_channels`, {stages}; bring one for this model"
        )
    for key in ("block_out_channels", "layers_per_block"):
        if _per_block(network, key) != _per_block(unet, key):
            raise ModelLoadError(f"{title} does not fit: its `{key}` is not the UNet's; bring one for this model")
    _check_width(title, "ControlNet", network, text_encoders)
    if pooled_width(network) is not None and len(text_encoders) == 1:
        raise ModelLoadError(
            f"{title} does not fit: its `addition_embed_type` is text_time, and the model has one text encoder only; "
            "bring one for this model"
        )
    if pooled_width(network) is not None:
        _check_pooled_width(title, "ControlNet", network, text_encoders[1])


def _per_block(network: Any, key: str) -> list[int]:
    value = network.config[key]
    return [value] * len(network.config.block_out_channels) if isinstance(value, int) else list(value)


def _check_width(title: str, name: str, network: Any, text_encoders: Sequence[Any]) -> None:
    width, sizes = network.config.cross_attention_dim, [int(each.config.hidden_size) for each in text_encoders]
    widths = {width} if isinstance(width, int) else set(width)
    if widths != {sum(sizes)}:
        whose = "the text encoder's `hidden_size`" if len(sizes) == 1 else "its two text encoders' `hidden_size`"
        raise ModelLoadError(
            f"{title}: the {name}'s `cross_attention_dim` is {width}, and {whose} {' and '.join(map(str, sizes))}; "
            "bring those that belong together"
        )


def _check_pooled_width(title: str, name: str, network: Any, text_encoder: Any) -> None:
    width, projected = pooled_width(network), text_encoder.config.projection_dim
    if width != projected:
        raise ModelLoadError(
            f"{title}: the {name}'s `projection_class_embeddings_input_dim` has room for six sizes and a text {width} "
            f"wide, and the second text encoder's `projection_dim` is {projected}; refiners, which are told five, are "
            "not served: bring those that belong together"
        )
