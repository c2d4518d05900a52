"""Checks that the parts of a model fit one another; each alone is sound."""

from typing import Any

from deployments.engine.protocol.errors import ModelLoadError


def check_parts(title: str, unet: Any, vae: Any, text_encoder: Any) -> None:
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
    _check_width(title, "UNet", unet, text_encoder)


def check_controlnet(title: str, network: Any, unet: Any, vae: Any, text_encoder: Any) -> None:
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
    _check_width(title, "ControlNet", network, text_encoder)


def _per_block(network: Any, key: str) -> list[int]:
    value = network.config[key]
    return [value] * len(network.config.block_out_channels) if isinstance(value, int) else list(value)


def _check_width(title: str, name: str, network: Any, text_encoder: Any) -> None:
    width, hidden_size = network.config.cross_attention_dim, text_encoder.config.hidden_size
    widths = {width} if isinstance(width, int) else set(width)
    if widths != {hidden_size}:
        raise ModelLoadError(
            f"{title}: the {name}'s `cross_attention_dim` is {width}, and the text encoder's `hidden_size` "
            f"{hidden_size}; bring the two that belong together"
        )
