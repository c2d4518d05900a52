"""Loads a model: its networks, and the tables and caches that belong to them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deployments.engine.checkpoints.native_size import with_native_size
from deployments.engine.checkpoints.original_configs import VAE_XL
from deployments.engine.checkpoints.pipeline_index import has_zeros_for_no_prompt
from deployments.engine.checkpoints.single_file import FilePart, FileTokenizer, load_file_tokenizer
from deployments.engine.checkpoints.vocabulary import check_same_words, check_vocabulary, load_tokenizer
from deployments.engine.conditioning.added_conditions import pooled_width, takes_added_conditions
from deployments.engine.conditioning.controlnet import AddedMaps, ControlNet
from deployments.engine.conditioning.cross_attention import CrossAttentionCache
from deployments.engine.conditioning.deep_cache import DeepCache
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.conditioning.prompt_encoder import PromptEncoder
from deployments.engine.cuda.compiled_calls import is_compiled
from deployments.engine.ip_adapter.adapters import IpAdapters
from deployments.engine.lora.rows.changes import Changes
from deployments.engine.models.attention import AttentionChoice, adopt_attention, choose_attention
from deployments.engine.models.component_fit import check_controlnet, check_parts
from deployments.engine.models.components import Components, PartFolder, size_of
from deployments.engine.models.guidance_embedding import embedding_width
from deployments.engine.models.model_checkers import load_checkers
from deployments.engine.models.model_ip_adapters import offer_ip_adapters
from deployments.engine.models.part_location import FILES, controlnet_title, locate_controlnet, locate_parts, title_of
from deployments.engine.models.pipeline_kinds import check_default_sampler, pipeline_kinds
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import INDEX, SECOND_PARTS, ModelSpec, PartSpec, as_part
from deployments.engine.safety.checkers import NO_CHECKERS, Checkers
from deployments.engine.sampling.samplers import PipelineSamplers
from deployments.engine.vae_tiles import latent_factor, tile_side

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """Everything that rows of one model share. `unet` and `vae` are diffusers' networks on `device`, in `dtype` and in
    `vae_dtype`. `networks` are all that it has but those of its IP-Adapters, which are loaded later.
    """

    spec: ModelSpec
    unet: Any
    vae: Any
    prompt_encoder: PromptEncoder
    samplers: PipelineSamplers
    alphas_cumprod: Tensor | None
    prediction_type: str
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    attention: AttentionChoice
    image_encoder: ImageEncoder
    attention_cache: CrossAttentionCache
    ip_adapters: IpAdapters
    deep_cache: DeepCache | None = None
    controlnets: Mapping[str, ControlNet] = field(default_factory=dict)
    checkers: Checkers = NO_CHECKERS
    networks: tuple[nn.Module, ...] = ()
    load_seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """The bytes of all weights that it has in memory, including those it shares with other models."""
        return size_of(*self.networks, *self.ip_adapters.networks)

    @property
    def compiles_shapes(self) -> bool:
        """True if its networks are compiled for the shapes of their calls."""
        return hasattr(self.unet, "compile_for")

    def compile_unet(
        self, rows: int, height: int, width: int, tokens: int, *more: AddedMaps | Changes | int, for_all: bool = False
    ) -> None:
        """Has the UNet compiled for calls of so many rows of such latents, where calls would compile it themselves.

        `more` is what ControlNets add to its maps, what LoRAs change, and the length of references. With `for_all` it
        is compiled for any shape.
        """
        if hasattr(self.unet, "compile_for"):
            self.unet.compile_for(rows, height, width, tokens, *more, for_all=for_all)

    def compile_shallow_unet(
        self, rows: int, height: int, width: int, tokens: int, *more: Changes | int, for_all: bool = False
    ) -> None:
        """Has the UNet without its deep blocks compiled, as `compile_unet` does, but for maps."""
        if (compile_for := getattr(self.deep_cache, "compile_for", None)) is not None:
            compile_for(rows, height, width, tokens, *more, for_all=for_all)

    def compile_controlnet(
        self, rows: int, height: int, width: int, tokens: int, name: str, *, for_all: bool = False
    ) -> None:
        """Has the ControlNet of this name compiled, as `compile_unet` does."""
        network = self.controlnets[name].network
        if hasattr(network, "compile_for"):
            network.compile_for(rows, height, width, tokens, for_all=for_all)

    def compile_decoder(self, height: int, width: int) -> None:
        """Has the VAE's decoder compiled for one of such latents, or tiles, where calls would compile it themselves."""
        if hasattr(self.vae, "compile_for"):
            most = max(height, width) if self.tile is None else self.tile // self.factor
            self.vae.compile_for(min(height, most), min(width, most))

    @property
    def tile(self) -> int | None:
        """The side in pixels of the tiles in which its VAE sees larger pictures; None if it sees them whole."""
        return tile_side(self.vae) if self.spec.vae_tiling else None

    @property
    def backend(self) -> str:
        """What runs its networks: torch, or openvino, or both of them where some cannot be converted."""
        return " and ".join(sorted({getattr(network, "backend", "torch") for network in self.networks}))

    @property
    def compiled(self) -> tuple[str, ...]:
        """The networks that run compiled, at the native size."""
        parts = {"unet": self.unet, "vae": self.vae}
        parts |= {f"controlnet {name}": net.network for name, net in self.controlnets.items()}
        return tuple(name for name, network in parts.items() if is_compiled(network))

    @property
    def inpaints_only(self) -> bool:
        """True if the UNet sees a mask and a masked image beside the latents (the 9-channel checkpoints)."""
        return int(self.unet.config.in_channels) == 2 * self.channels + 1

    @property
    def guidance_width(self) -> int | None:
        """The width of the guidance embedding that the UNet takes; None if it takes none."""
        return embedding_width(self.unet)

    @property
    def pooled_width(self) -> int | None:
        """The width of the pooled text that the UNet takes, beside sizes; None if it takes none."""
        return pooled_width(self.unet)

    @property
    def deep_channels(self) -> int:
        """The channels of what the UNet's deep blocks answer; 0 if it cannot be split there."""
        return 0 if self.deep_cache is None else self.deep_cache.channels

    @property
    def channels(self) -> int:
        """The number of latent channels."""
        return int(self.vae.config.latent_channels)

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return latent_factor(self.vae)


def load_model(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    parts: Components | None = None,
    attention: AttentionChoice | None = None,
) -> LoadedModel:
    """Loads `spec` from a local folder, or from the hub at its pinned revision; safetensors only, no remote code.

    Parts that `parts` has already loaded for other models are shared. `attention` is what was chosen at an earlier
    load; without it the choice is measured. Raises ModelLoadError, which says what is missing, or not served, and in
    which part, or that a revision must be pinned.
    """
    parts = parts or Components(device, dtype)
    places = locate_parts(spec, half=parts.is_half)
    # Parts in files stay as they were given: their configs are known without fetching anything.
    found = {name: as_part(part) for name, part in spec.parts.items()}
    found |= {name: PartSpec(str(place)) for name, place in places.items() if isinstance(place, Path)}
    roots = [place.parent for name, place in places.items() if name not in spec.parts and isinstance(place, Path)]
    index = roots[0] / INDEX if roots else None
    try:
        model = _load(with_native_size(replace(spec, parts=found)), spec, places, index, parts, attention)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(f"{title_of(spec)} could not be loaded from {spec.source!r}: {FILES}") from error
    return replace(model, spec=replace(model.spec, parts=spec.parts))


def _load(
    spec: ModelSpec,
    asked: ModelSpec,
    places: Mapping[str, Any],
    index: Path | None,
    parts: Components,
    attention: AttentionChoice | None,
) -> LoadedModel:
    """Loads from `places`, those of all parts; `asked` says where they come from; `index` is its own model_index.json,
    if it has parts in a folder of its own.
    """
    started = time.perf_counter()
    device, dtype = parts.device, parts.dtype

    def part(name: str) -> PartFolder | FilePart:
        place = places[name]
        source = as_part(asked.parts[name]).source if name in asked.parts else asked.source
        return place if isinstance(place, FilePart) else PartFolder(title_of(spec, name), source, place)

    # The small files first: their errors need not wait for the weights.
    tokenizer = _load_tokenizer(title_of(spec, "tokenizer"), places["tokenizer"])
    unet = parts.unet(part("unet"))
    has_two_texts = takes_added_conditions(unet)
    if has_two_texts and (missing := [name for name in SECOND_PARTS if name not in places]):
        raise ModelLoadError(
            f"{title_of(spec)}: its UNet's `addition_embed_type` is text_time, as Stable Diffusion XL's, and there is "
            f"no {missing[0]}/; bring the whole checkpoint, or give {missing[0]} under `parts`"
        )
    if not has_two_texts and (odd := [name for name in SECOND_PARTS if name in asked.parts]):
        raise ModelLoadError(f"{title_of(spec)}: {odd[0]} is given under `parts`, and its UNet reads one text only")
    vae_part = part("vae")
    if has_two_texts and isinstance(vae_part, FilePart) and "vae" in asked.parts:
        # A VAE's file does not say whose it is, and Stable Diffusion XL's has another scale.
        vae_part = replace(vae_part, config=VAE_XL)
    vae = parts.vae(vae_part, obeys_upcast=has_two_texts)
    text_encoders: list[Any] = [parts.text_encoder(part("text_encoder"))]
    if has_two_texts:
        text_encoders.append(parts.second_text_encoder(part("text_encoder_2")))
    check_parts(title_of(spec), unet, vae, text_encoders)
    check_vocabulary(title_of(spec, "tokenizer"), tokenizer, text_encoders[0].config)
    second = _load_second(spec, places, tokenizer, text_encoders[1]) if has_two_texts else None
    if spec.inpaints_only and unet.config.in_channels == vae.config.latent_channels:
        raise ModelLoadError(f"model {spec.name!r}: `inpaints_only` is set, but its UNet has no channels for a mask")
    own_index = None if "scheduler" in asked.parts else index
    samplers = parts.samplers(title_of(spec), places["scheduler"], own_index, corrects=not has_two_texts)
    kinds = pipeline_kinds(spec, inpaints_only=unet.config.in_channels != vae.config.latent_channels)
    check_default_sampler(spec, samplers, kinds)
    controlnets = {name: _load_controlnet(spec, name, parts) for name in spec.controlnets}
    for name, net in controlnets.items():
        check_controlnet(controlnet_title(spec, name), net.network, unet, vae, text_encoders)
    checkers = load_checkers(asked, parts)
    # Before its attention is chosen: it is timed as it will run.
    attention_cache = CrossAttentionCache(unet)
    chosen = adopt_attention(unet, attention) if attention else choose_attention(unet, device, dtype)
    unet = parts.finish_unet(unet, part("unet"))
    vae_dtype = next(iter(vae.parameters())).dtype
    model = LoadedModel(
        spec=spec,
        unet=unet,
        vae=vae,
        prompt_encoder=PromptEncoder(
            tokenizer,
            text_encoders[0],
            device,
            dtype,
            second=second,
            has_zeros_for_nothing=has_two_texts and has_zeros_for_no_prompt(title_of(spec), index),
        ),
        samplers=samplers,
        alphas_cumprod=samplers.alphas_cumprod,
        prediction_type=samplers.prediction_type,
        device=device,
        dtype=dtype,
        vae_dtype=vae_dtype,
        attention=chosen,
        image_encoder=ImageEncoder(vae, device, vae_dtype, tile=tile_side(vae) if spec.vae_tiling else None),
        attention_cache=attention_cache,
        ip_adapters=offer_ip_adapters(asked, parts, attention_cache.shapes),
        deep_cache=parts.deep_cache(unet),
        controlnets=controlnets,
        checkers=checkers,
        networks=(
            unet,
            vae,
            *text_encoders,
            *chain(*(net.networks for net in controlnets.values()), checkers.networks),
        ),
    )
    seconds = time.perf_counter() - started
    log.info("model %s: %.0f MB loaded in %.1f s", spec.name, model.bytes / 1e6, seconds)
    return replace(model, load_seconds=round(seconds, 3))


def _load_tokenizer(title: str, place: Path | FileTokenizer) -> Any:
    return load_file_tokenizer(title, place) if isinstance(place, FileTokenizer) else load_tokenizer(title, place)


def _load_second(spec: ModelSpec, places: Mapping[str, Any], tokenizer: Any, text_encoder: Any) -> tuple[Any, Any]:
    """Returns the second tokenizer and `text_encoder`, which go with a first `tokenizer`."""
    title = title_of(spec, "tokenizer_2")
    second = _load_tokenizer(title, places["tokenizer_2"])
    check_vocabulary(title, second, text_encoder.config)
    check_same_words(title, second, tokenizer)
    return second, text_encoder


def _load_controlnet(spec: ModelSpec, name: str, parts: Components) -> ControlNet:
    folder = locate_controlnet(spec, name, half=parts.is_half)
    given = as_part(spec.controlnets[name])
    return parts.controlnet(name, PartFolder(controlnet_title(spec, name), given.source, folder), given.mode)
