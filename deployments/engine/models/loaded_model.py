"""Loads a model: its networks, and the tables and caches that belong to them."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deployments.engine.checkpoints.native_size import describe_single_file, with_native_size
from deployments.engine.checkpoints.pipeline_index import check_pipeline
from deployments.engine.checkpoints.single_file import (
    FilePart,
    FileScheduler,
    FileTokenizer,
    describe_vae_file,
    load_file_tokenizer,
    parts_of,
)
from deployments.engine.checkpoints.vocabulary import check_vocabulary, load_tokenizer
from deployments.engine.conditioning.controlnet import AddedMaps, ControlNet
from deployments.engine.conditioning.cross_attention import CrossAttentionCache
from deployments.engine.conditioning.deep_cache import DeepCache
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.conditioning.prompt_encoder import PromptEncoder
from deployments.engine.cuda.compiled_calls import is_compiled
from deployments.engine.lora.rows.changes import Changes
from deployments.engine.models.attention import AttentionChoice, adopt_attention, choose_attention
from deployments.engine.models.component_fit import check_controlnet, check_parts
from deployments.engine.models.components import Components, PartFolder, is_half, size_of
from deployments.engine.models.guidance_embedding import embedding_width
from deployments.engine.models.hub import locate
from deployments.engine.models.model_checkers import fetch_checkers, load_checkers
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import PipelineKind, Task
from deployments.engine.protocol.sampler_names import resolve_sampler
from deployments.engine.protocol.spec import INDEX, PARTS, ModelSpec, PartSpec, as_part
from deployments.engine.safety.checkers import NO_CHECKERS, Checkers
from deployments.engine.sampling.samplers import PipelineSamplers

log = logging.getLogger(__name__)

PartLocation = Path | FilePart | FileTokenizer | FileScheduler
"""A part's location: a folder, or inside a file."""

_FILES = "it needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in diffusers' layout, weights as safetensors"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """Everything that rows of one model share. `unet` and `vae` are diffusers' networks in `dtype` on `device`."""

    spec: ModelSpec
    unet: Any
    vae: Any
    prompt_encoder: PromptEncoder
    samplers: PipelineSamplers
    alphas_cumprod: Tensor | None
    prediction_type: str
    device: torch.device
    dtype: torch.dtype
    attention: AttentionChoice
    image_encoder: ImageEncoder
    attention_cache: CrossAttentionCache
    deep_cache: DeepCache | None = None
    controlnets: Mapping[str, ControlNet] = field(default_factory=dict)
    checkers: Checkers = NO_CHECKERS
    networks: tuple[nn.Module, ...] = ()
    load_seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """The bytes of all its networks' weights, including those it shares with other models."""
        return size_of(*self.networks)

    @property
    def compiles_shapes(self) -> bool:
        """True if its networks are compiled for the shapes of their calls."""
        return hasattr(self.unet, "compile_for")

    def compile_unet(
        self, rows: int, height: int, width: int, tokens: int, added: AddedMaps = "none", changes: Changes = "none"
    ) -> None:
        """Has the UNet compiled for calls of so many rows of such latents, where calls would compile it themselves.

        `added` says what ControlNets add to its maps, `changes` what LoRAs change.
        """
        if hasattr(self.unet, "compile_for"):
            self.unet.compile_for(rows, height, width, tokens, added, changes)

    def compile_shallow_unet(self, rows: int, height: int, width: int, tokens: int, changes: Changes = "none") -> None:
        """Has the UNet without its deep blocks compiled, as `compile_unet` does."""
        if (compile_for := getattr(self.deep_cache, "compile_for", None)) is not None:
            compile_for(rows, height, width, tokens, changes)

    def compile_controlnet(self, rows: int, height: int, width: int, tokens: int, name: str) -> None:
        """Has the ControlNet of this name compiled, as `compile_unet` does."""
        network = self.controlnets[name].network
        if hasattr(network, "compile_for"):
            network.compile_for(rows, height, width, tokens)

    def compile_decoder(self, height: int, width: int) -> None:
        """Has the VAE's decoder compiled for one of such latents, where calls would compile it themselves."""
        if hasattr(self.vae, "compile_for"):
            self.vae.compile_for(height, width)

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
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


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
    places = _locate_parts(spec, half=parts.is_half)
    # Parts in files stay as they were given: their configs are known without fetching anything.
    found = {name: as_part(part) for name, part in spec.parts.items()}
    found |= {name: PartSpec(str(place)) for name, place in places.items() if isinstance(place, Path)}
    scheduler = places["scheduler"]
    index = scheduler.parent / INDEX if "scheduler" not in spec.parts and isinstance(scheduler, Path) else None
    try:
        model = _load(with_native_size(replace(spec, parts=found)), spec, places, index, parts, attention)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(f"{_title(spec)} could not be loaded from {spec.source!r}: {_FILES}") from error
    return replace(model, spec=replace(model.spec, parts=spec.parts))


def fetch_model(spec: ModelSpec, dtype: torch.dtype) -> None:
    """Fetches all files that `load_model` would read, without loading them. Raises ModelLoadError."""
    _locate_parts(spec, half=is_half(dtype))
    for name in spec.controlnets:
        _locate_controlnet(spec, name, half=is_half(dtype))
    fetch_checkers(spec, half=is_half(dtype))


def _locate_parts(spec: ModelSpec, *, half: bool) -> dict[str, PartLocation]:
    """Locates each part: in the model's own folder or file, or wherever `spec.parts` says."""
    title = _title(spec)
    named = {name: _locate_named(_title(spec, name), name, as_part(part), half) for name, part in spec.parts.items()}
    own = [name for name in PARTS if name not in spec.parts]
    if (file := describe_single_file(spec)) is not None:
        inside = parts_of(title, file)
        return {name: inside[name] for name in own} | named
    root = locate(title, spec.source, spec.revision, own, half=half)
    check_pipeline(title, root, own)
    absent = [name for name in own if not (root / name).is_dir()]
    if absent:
        raise ModelLoadError(f"{title} could not be loaded from {spec.source!r}: there is no {absent[0]}/; {_FILES}")
    return {name: root / name for name in own} | named


def _locate_named(title: str, name: str, part: PartSpec, half: bool) -> PartLocation:
    if Path(part.source).is_file():
        if name != "vae":
            raise ModelLoadError(f"{title}: a single file can only be a VAE; give its folder in diffusers' layout")
        return describe_vae_file(title, Path(part.source))
    return _locate_part(title, part, half=half)


def _locate_controlnet(spec: ModelSpec, name: str, *, half: bool) -> Path:
    return _locate_part(_controlnet_title(spec, name), as_part(spec.controlnets[name]), half=half)


def _locate_part(title: str, part: PartSpec, *, half: bool) -> Path:
    return locate(title, part.source, part.revision, ("",), half=half)


def _title(spec: ModelSpec, part: str = "") -> str:
    return f"model {spec.name!r}" + (f": its {part}" if part else "")


def _controlnet_title(spec: ModelSpec, name: str) -> str:
    return _title(spec, f"ControlNet {name!r}")


def _load(
    spec: ModelSpec,
    asked: ModelSpec,
    places: Mapping[str, Any],
    index: Path | None,
    parts: Components,
    attention: AttentionChoice | None,
) -> LoadedModel:
    """Loads from `places`, those of all parts; `asked` says where they come from; `index` is the model_index.json."""
    started = time.perf_counter()
    device, dtype = parts.device, parts.dtype

    def part(name: str) -> PartFolder | FilePart:
        place = places[name]
        source = as_part(asked.parts[name]).source if name in asked.parts else asked.source
        return place if isinstance(place, FilePart) else PartFolder(_title(spec, name), source, place)

    # The small files first: their errors need not wait for the weights.
    tokenizer = _load_tokenizer(_title(spec, "tokenizer"), places["tokenizer"])
    unet, vae, text_encoder = parts.unet(part("unet")), parts.vae(part("vae")), parts.text_encoder(part("text_encoder"))
    check_parts(_title(spec), unet, vae, text_encoder)
    check_vocabulary(_title(spec, "tokenizer"), tokenizer, text_encoder.config)
    if spec.inpaints_only and unet.config.in_channels == vae.config.latent_channels:
        raise ModelLoadError(f"model {spec.name!r}: `inpaints_only` is set, but its UNet has no channels for a mask")
    samplers = parts.samplers(_title(spec), places["scheduler"], index)
    kinds = pipeline_kinds(spec, inpaints_only=unet.config.in_channels != vae.config.latent_channels)
    _check_default_sampler(spec, samplers, kinds)
    controlnets = {name: _load_controlnet(spec, name, parts) for name in spec.controlnets}
    for name, net in controlnets.items():
        check_controlnet(_controlnet_title(spec, name), net.network, unet, vae, text_encoder)
    checkers = load_checkers(asked, parts)
    # Before its attention is chosen: it is timed as it will run.
    attention_cache = CrossAttentionCache(unet)
    chosen = adopt_attention(unet, attention) if attention else choose_attention(unet, device, dtype)
    unet = parts.finish_unet(unet, part("unet"))
    model = LoadedModel(
        spec=spec,
        unet=unet,
        vae=vae,
        prompt_encoder=PromptEncoder(tokenizer, text_encoder, device, dtype),
        samplers=samplers,
        alphas_cumprod=samplers.alphas_cumprod,
        prediction_type=samplers.prediction_type,
        device=device,
        dtype=dtype,
        attention=chosen,
        image_encoder=ImageEncoder(vae, device, dtype),
        attention_cache=attention_cache,
        deep_cache=parts.deep_cache(unet),
        controlnets=controlnets,
        checkers=checkers,
        networks=(unet, vae, text_encoder, *chain(*(net.networks for net in controlnets.values()), checkers.networks)),
    )
    seconds = time.perf_counter() - started
    log.info("model %s: %.0f MB loaded in %.1f s", spec.name, model.bytes / 1e6, seconds)
    return replace(model, load_seconds=round(seconds, 3))


def _load_tokenizer(title: str, place: Path | FileTokenizer) -> Any:
    return load_file_tokenizer(title, place) if isinstance(place, FileTokenizer) else load_tokenizer(title, place)


def _load_controlnet(spec: ModelSpec, name: str, parts: Components) -> ControlNet:
    folder = _locate_controlnet(spec, name, half=parts.is_half)
    source = as_part(spec.controlnets[name]).source
    return parts.controlnet(name, PartFolder(_controlnet_title(spec, name), source, folder))


def pipeline_kinds(spec: ModelSpec, *, inpaints_only: bool) -> list[PipelineKind]:
    """Returns the kinds of pipeline that a model serves, the one in most demand first."""
    tasks: tuple[Task, ...] = ("inpaint",) if inpaints_only else ("text-to-image", "image-to-image", "inpaint")
    return [
        PipelineKind(task, controlled) for controlled in (False, True)[: 1 + bool(spec.controlnets)] for task in tasks
    ]


def _check_default_sampler(spec: ModelSpec, samplers: PipelineSamplers, pipelines: Sequence[PipelineKind]) -> None:
    """Logs what is corrected. Raises ModelLoadError if the default sampler cannot be served exactly.

    The other samplers are checked when they are asked for, or in the background, whichever comes first.
    """
    title = f"model {spec.name!r}"
    error = samplers.of(pipelines[0]).refusal(resolve_sampler(spec.default_sampler))
    if error is not None:
        raise ModelLoadError(
            f"{title}: its default sampler: {error.message}; name another one as its `default_sampler`"
        )
    for factory, kinds in samplers.by_factory(pipelines):
        for key, value in factory.corrected.items():
            log.warning(
                "%s: %s is %s for %s, as in diffusers' pipelines; its files say otherwise", title, key, value, kinds
            )
