"""A file gives the networks that diffusers and peft make of it, for every format that they load without loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deployments.engine.lora.reader import read_adapter
from deployments.engine.protocol.files.loras import LoraFile
from tests.deployments.engine.lora.formats import LOCON, layers_of, random, write_kohya

FILE: Final = "lora.safetensors"
SCALE: Final = 0.7
ATTENTION: Final = ["to_q", "to_k", "to_v", "to_out.0"]
WIDER: Final = [*ATTENTION, "conv1", "time_emb_proj", "proj_in", "ff.net.2"]
TEXT: Final = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


@pytest.fixture
def pipeline(tiny_checkpoint: Path) -> Any:
    """diffusers' own, which each test changes."""
    return StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)


def set_random(network: nn.Module) -> None:
    """Gives all of peft's factors random numbers: half of them begin as zeros."""
    torch.manual_seed(23)
    for name, weight in network.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            weight.data = random(*weight.shape)
        elif "magnitude" in name:
            weight.data = weight.data * (1 + 0.3 * torch.rand(weight.shape))


def save_peft(
    folder: Path,
    pipeline: Any,
    *,
    metadata: bool = True,
    old: bool = False,
    parts: tuple[str, ...] = ("unet", "text_encoder"),
    **settings: Any,
) -> None:
    """Saves a LoRA of the `parts` as diffusers' own training scripts do."""
    settings = {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "init_lora_weights": "gaussian"} | settings
    saved: dict[str, Any] = {}
    for part in parts:
        network = getattr(pipeline, part)
        text = {"target_modules": TEXT, "rank_pattern": {}, "alpha_pattern": {}}
        config = LoraConfig(**settings | (text if part == "text_encoder" else {}))
        network.add_adapter(config)
        set_random(network)
        state = get_peft_model_state_dict(network)
        saved[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(state) if old else state
        if metadata:
            saved[f"{part}_lora_adapter_metadata"] = config.to_dict()
        (network.delete_adapters if part == "unet" else network.delete_adapter)("default")
    StableDiffusionPipeline.save_lora_weights(folder, weight_name=FILE, **saved)


def save_kohya(folder: Path, pipeline: Any) -> None:
    write_kohya(folder / FILE, {"lora_unet_": pipeline.unet, "lora_te_": pipeline.text_encoder}, LOCON)


def save_first_of_diffusers(folder: Path, pipeline: Any) -> None:
    """As the first training scripts did: attention processors of the UNet, whose name is nowhere."""
    torch.manual_seed(29)
    layers = layers_of(pipeline.unet)
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        place, _, name = path.removesuffix(".0").rpartition(".")
        if place.endswith(("attn1", "attn2")) and name in ("to_q", "to_k", "to_v", "to_out"):
            assert isinstance(layer, nn.Linear)
            tensors[f"{place}.processor.{name}_lora.down.weight"] = random(4, layer.in_features)
            tensors[f"{place}.processor.{name}_lora.up.weight"] = random(layer.out_features, 4)
    save_file(tensors, folder / FILE)


def save_with_names(folder: Path, pipeline: Any) -> None:
    """The same, with the UNet's name, and the text encoder's layers by the names that they had in diffusers."""
    save_first_of_diffusers(folder, pipeline)
    tensors = {f"unet.{name}": tensor for name, tensor in load_file(folder / FILE).items()}
    for path, layer in layers_of(pipeline.text_encoder).items():
        place, _, name = path.rpartition(".")
        if place.endswith("self_attn"):
            old = f"text_encoder.text_model.{place.removeprefix('text_model.')}.to_{name.removesuffix('_proj')}_lora"
            assert isinstance(layer, nn.Linear)
            tensors[f"{old}.down.weight"] = random(4, layer.in_features)
            tensors[f"{old}.up.weight"] = random(layer.out_features, 4)
    save_file(tensors, folder / FILE)


SAVERS: Final[dict[str, Callable[[Path, Any], None]]] = {
    "kohya": save_kohya,
    "attention processors": save_first_of_diffusers,
    "attention processors with names": save_with_names,
    "diffusers": lambda folder, pipeline: save_peft(folder, pipeline, old=True, metadata=False),
    "peft": lambda folder, pipeline: save_peft(folder, pipeline, metadata=False),
    "peft with an alpha": lambda folder, pipeline: save_peft(
        folder, pipeline, lora_alpha=10, target_modules=WIDER, alpha_pattern={"attn1.to_q": 3}
    ),
    "peft with ranks": lambda folder, pipeline: save_peft(
        folder, pipeline, lora_alpha=5, rank_pattern={"attn2.to_k": 2}, target_modules=WIDER
    ),
    "peft, rank-stabilised": lambda folder, pipeline: save_peft(folder, pipeline, use_rslora=True, lora_alpha=3),
    # Of a text encoder's DoRA, transformers leaves the magnitudes out.
    "peft, DoRA": lambda folder, pipeline: save_peft(
        folder, pipeline, parts=("unet",), use_dora=True, lora_alpha=6, target_modules=WIDER
    ),
}


@pytest.mark.parametrize("name", SAVERS)
def test_networks_are_those_of_diffusers_with_the_file_loaded(
    name: str, pipeline: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    SAVERS[name](tmp_path, pipeline)
    plain = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    _, before = answers(plain)
    merge_ours(plain, tmp_path / FILE)
    if name == "attention processors":
        # The pipeline leaves out what does not say whose it is, and makes the picture without it.
        pipeline.unet.load_lora_adapter(load_file(tmp_path / FILE), prefix=None, adapter_name="ours")
    else:
        pipeline.load_lora_weights(tmp_path, weight_name=FILE, adapter_name="ours", use_safetensors=True)
    pipeline.set_adapters("ours", SCALE)
    for found, wanted in zip(answers(plain), answers(pipeline), strict=True):
        assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert (answers(pipeline)[1] - before).abs().max() > 0.02


def answers(pipeline: Any) -> tuple[Tensor, Tensor]:
    """What the text encoder says to a prompt, and the UNet to noise."""
    torch.manual_seed(31)
    with torch.no_grad():
        tokens = pipeline.tokenizer("a red cup", padding="max_length", return_tensors="pt").input_ids
        text = pipeline.text_encoder(tokens).last_hidden_state
        unet: UNet2DConditionModel = pipeline.unet
        return text, unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 77, 32)).sample


def merge_ours(pipeline: Any, path: Path) -> None:
    adapter = read_adapter(LoraFile("x", str(path)), path)
    networks = {name: layers_of(getattr(pipeline, name)) for name in ("unet", "text_encoder")}
    adapter.check(networks)
    for name, layers in networks.items():
        for place, update in adapter.updates(name, layers, SCALE).items():
            weight = layers[place].weight
            gain = 1.0 if update.gain is None else update.gain.reshape(-1, *(1 for _ in weight.shape[1:]))
            weight.data = gain * weight + (update.up @ update.down.flatten(1)).reshape(weight.shape)
