"""Tiny IP-Adapters in the layouts of the published ones, and diffusers' pipelines with these loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from bench.engine.pipelines import arguments, restore_unmasked
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ReferenceSettings
from deployments.engine.protocol.spec import IpAdapterSpec
from deployments.engine.steps.prepare import with_model_facts
from tests.deployments.engine.harness import Pixels, load_reference
from tests.deployments.engine.tiny import scale_weight, seed_weights

EMBEDDING: Final = 24
STATES: Final = 32
SIDE: Final = 28
PLUS_TOKENS: Final = 16


def tiny_vision_encoder(seed: int = 71) -> CLIPVisionModelWithProjection:
    """Pictures [B, 3, 28, 28] to embeddings [B, 24] and patches [B, 17, 32], which differ from picture to picture."""
    config = CLIPVisionConfig(
        hidden_size=STATES,
        intermediate_size=2 * STATES,
        projection_dim=EMBEDDING,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=7,
    )
    encoder: CLIPVisionModelWithProjection = seed_weights(seed, lambda: CLIPVisionModelWithProjection(config))
    for module in encoder.modules():
        # transformers' 0.02 makes every picture almost the same picture.
        if isinstance(module, nn.Linear):
            scale_weight(module, 6.0)
    return encoder


def save_ip_adapters(root: Path, unet: UNet2DConditionModel) -> dict[str, IpAdapterSpec]:
    """Writes adapters for `unet` and their image encoder to `root`: two plain ones, and a plus one."""
    tiny_vision_encoder().save_pretrained(root / "image_encoder", safe_serialization=True)
    states = {"plain": plain_state(unet, 72), "other": plain_state(unet, 73), "plus": plus_state(unet, 74)}
    specs: dict[str, IpAdapterSpec] = {}
    for name, state in states.items():
        save_file(state, root / f"{name}.safetensors")
        specs[name] = IpAdapterSpec(str(root / f"{name}.safetensors"), str(root / "image_encoder"))
    return specs


def plain_state(unet: UNet2DConditionModel, seed: int) -> dict[str, Tensor]:
    """The tensors of a plain adapter's file."""
    width = unet.config.cross_attention_dim
    projection = seed_weights(seed, lambda: ImageProjection(EMBEDDING, width, 4))
    names = {"image_embeds": "proj", "norm": "norm"}
    state = {
        f"image_proj.{names[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor
        for name, tensor in projection.state_dict().items()
    }
    return state | attention_state(unet, seed)


def plus_state(unet: UNet2DConditionModel, seed: int, tokens: int = PLUS_TOKENS) -> dict[str, Tensor]:
    """The tensors of a plus adapter's file."""
    width = unet.config.cross_attention_dim
    projection = seed_weights(
        seed,
        lambda: IPAdapterPlusImageProjection(
            embed_dims=STATES, output_dims=width, hidden_dims=64, heads=2, num_queries=tokens
        ),
    )
    made = projection.state_dict()
    state = {name: made[name] for name in made if not name.startswith("layers.")}
    published = {
        "ln0": "0.norm1",
        "ln1": "0.norm2",
        "attn.to_q": "0.to_q",
        "attn.to_out.0": "0.to_out",
        "ff.0": "1.0",
        "ff.1.net.0.proj": "1.1",
        "ff.1.net.2": "1.3",
    }
    for block in range(4):
        for ours, theirs in published.items():
            for part in ("weight", "bias"):
                if (name := f"layers.{block}.{ours}.{part}") in made:
                    state[f"layers.{block}.{theirs}.{part}"] = made[name]
        halves = [made[f"layers.{block}.attn.{name}.weight"] for name in ("to_k", "to_v")]
        state[f"layers.{block}.0.to_kv.weight"] = torch.cat(halves)
    return {f"image_proj.{name}": tensor.contiguous() for name, tensor in state.items()} | attention_state(unet, seed)


def attention_state(unet: UNet2DConditionModel, seed: int) -> dict[str, Tensor]:
    """The keys' and values' weights, numbered by all attention layers, of which every second one has some."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for place, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            layer = unet.get_submodule(name.removesuffix(".processor"))
            for kind, own in (("k", layer.to_k), ("v", layer.to_v)):
                # Large, as these UNets' own are: else no picture would show.
                drawn = torch.randn(own.weight.shape, generator=generator) * own.weight.std() * 1.5
                state[f"ip_adapter.{place}.to_{kind}_ip.weight"] = drawn
    return state


def with_images(request: Request, images: Sequence[ImageArray], **settings: Any) -> Request:
    """`request` with reference images, and what is said of them."""
    params = request.params.model_copy(update={"reference": ReferenceSettings(**settings)})
    return replace(request, params=params, inputs=replace(request.inputs, references=tuple(images)))


def reference_with_images(
    folder: Path, model: LoadedModel, request: Request, adapters: Mapping[str, IpAdapterSpec], **options: Any
) -> Pixels:
    """What a diffusers user gets who loads the request's IP-Adapter, and switches it on and off between steps."""
    pipeline = load_reference(folder, model, request)
    return call_with_images(pipeline, model, request, adapters, **options)


def call_with_images(
    pipeline: Any, model: LoadedModel, request: Request, adapters: Mapping[str, IpAdapterSpec], **options: Any
) -> Pixels:
    """The same with a pipeline that has been loaded."""
    if (asked := request.params.reference) is not None:
        spec, request = adapters[model.ip_adapters.resolve(asked)], with_model_facts(request, model)
        options = load_adapter(pipeline, spec, request, asked) | options
    made = pipeline(**(arguments([request], 0) | options)).images[0]
    return np.asarray(restore_unmasked(made, request)).astype(np.int16)


def load_adapter(pipeline: Any, spec: IpAdapterSpec, request: Request, asked: ReferenceSettings) -> dict[str, Any]:
    """Loads an adapter into a pipeline, and returns what it is called with besides."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(spec.image_encoder)
    processor = CLIPImageProcessor(size=SIDE, crop_size=SIDE)
    pipeline.register_modules(image_encoder=encoder, feature_extractor=processor)
    path = Path(spec.source)
    pipeline.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None)
    weights = asked.weights or (1.0,) * len(request.inputs.references)
    for name, processor in pipeline.unet.attn_processors.items():
        if "attn2" in name:
            processor.to_v_ip[0] = _WeightedValues(processor.to_v_ip[0], weights)

    def set_scale(step: int, steps: int) -> None:
        acts = step / steps >= asked.start and (step + 1) / steps <= asked.end
        pipeline.set_ip_adapter_scale(asked.scale if acts else 0.0)

    def on_step_end(made: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        set_scale(step + 1, made.num_timesteps)
        return tensors

    # Its first step is before any callback; only its place says whether the adapter acts there.
    set_scale(0, request.evaluations)
    images = [Image.fromarray(image) for image in request.inputs.references]
    return {"ip_adapter_image": [images], "callback_on_step_end": on_step_end}


class _WeightedValues(nn.Module):
    """The values of several images [B, images, tokens, width], each image's times its weight."""

    def __init__(self, values: nn.Module, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.values, self.weights = values, torch.tensor(weights)

    def forward(self, tokens: Tensor) -> Tensor:
        weighted: Tensor = self.values(tokens) * self.weights[:, None, None]
        return weighted
