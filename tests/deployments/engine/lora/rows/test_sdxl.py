"""A LoRA of Stable Diffusion XL changes the UNet and both text encoders, beside rows without it."""

import shutil
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deployments.engine.lora.reader import read_adapter
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed
from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.harness import difference, reference_image, request_for, run
from tests.deployments.engine.lora.rows.loras import with_loras
from tests.deployments.engine.tiny_xl import save_tiny_xl

CPU: Final = torch.device("cpu")
RANK: Final = 2
FILES: Final = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "te1": "text_encoder/model.safetensors",
    "te2": "text_encoder_2/model.safetensors",
}
# As kohya's scripts name them: of the UNet in the original layout, of text encoders with `text_model`.
LAYERS: Final = {
    ("unet", "add_embedding.linear_1"): "lora_unet_label_emb_0_0",
    (
        "unet",
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    ): "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k",
    (
        "unet",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    ): "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
    ("unet", "up_blocks.1.resnets.0.conv1"): "lora_unet_output_blocks_2_0_in_layers_2",
    ("te1", "encoder.layers.1.self_attn.q_proj"): "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
    ("te1", "encoder.layers.0.mlp.fc1"): "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    ("te2", "text_model.encoder.layers.2.mlp.fc2"): "lora_te2_text_model_encoder_layers_2_mlp_fc2",
    ("te2", "text_projection"): "lora_te2_text_projection",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(ModelSpec("xl", str(folder)), CPU, torch.float32)


def key_of(state: dict[str, Tensor], path: str) -> str:
    (key,) = {key for key in state if key.removeprefix("text_model.") == f"{path.removeprefix('text_model.')}.weight"}
    return key


def make_lora(folder: Path, networks: tuple[str, ...]) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(5)
    made = {}
    for network in networks:
        state = load_file(folder / FILES[network])
        for path in (path for which, path in LAYERS if which == network):
            weight = state[key_of(state, path)]
            down = torch.randn((RANK, *weight.shape[1:]), generator=random) / weight[0].numel() ** 0.5
            made[network, path] = down, torch.randn((len(weight), RANK), generator=random) * 0.5
    return made


def save_lora(pairs: dict[tuple[str, str], tuple[Tensor, Tensor]], path: Path) -> Path:
    state = {}
    for layer, (down, up) in pairs.items():
        state[f"{LAYERS[layer]}.lora_down.weight"] = down
        state[f"{LAYERS[layer]}.lora_up.weight"] = up.reshape(*up.shape, *[1] * (down.ndim - 2))
        state[f"{LAYERS[layer]}.alpha"] = torch.tensor(float(RANK))
    save_file(state, path)
    return path


def merge(folder: Path, target: Path, pairs: dict[tuple[str, str], tuple[Tensor, Tensor]], scale: float) -> Path:
    shutil.copytree(folder, target)
    for network in {network for network, _ in pairs}:
        state = load_file(target / FILES[network])
        for (which, path), (down, up) in pairs.items():
            if which == network:
                key = key_of(state, path)
                state[key] = state[key] + scale * (up @ down.flatten(1)).reshape(state[key].shape)
        save_file(state, target / FILES[network], metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("networks", [("unet", "te1", "te2"), ("unet",), ("te2",)], ids=str)
def test_a_row_with_kohyas_file_is_the_picture_of_the_merged_weights(
    networks: tuple[str, ...], folder: Path, model: LoadedModel, tmp_path: Path
) -> None:
    pairs = make_lora(folder, networks)
    path = save_lora(pairs, tmp_path / "mine.safetensors")
    file = LoraFile("mine", str(path))
    plain = request_for(model, "plain", prompt="a red cup")
    changed = with_loras(request_for(model, "changed", prompt="a red cup"), LoraUse(file, 0.8))
    tape, engine = run(model, [plain, changed], read_adapter=lambda file: read_adapter(file, Path(file.source)))
    assert engine.tracker.total.unet_calls == 8
    merged = merge(folder, tmp_path / "merged", pairs, 0.8)
    assert difference(tape.images("plain")[0], reference_image(folder, model, plain)) <= 1
    assert difference(tape.images("changed")[0], reference_image(merged, model, changed)) <= 1
    assert difference(tape.images("changed")[0], tape.images("plain")[0]) > 4


def test_a_layer_that_the_second_text_encoder_does_not_have_is_named(
    folder: Path, model: LoadedModel, tmp_path: Path
) -> None:
    state: dict[str, Any] = {
        f"lora_te2_text_model_encoder_layers_31_mlp_fc1.{part}": torch.ones(each)
        for part, each in (("lora_down.weight", (2, 48)), ("lora_up.weight", (96, 2)))
    }
    save_file(state, tmp_path / "mine.safetensors")
    use = LoraUse(LoraFile("mine", str(tmp_path / "mine.safetensors")), 1.0)
    asked = with_loras(request_for(model, "x"), use)
    tape, _ = run(model, [asked], read_adapter=lambda file: read_adapter(file, Path(file.source)))
    (failed,) = tape.of("x", Failed)
    assert isinstance(failed.error, InvalidParameter)
    assert "text_encoder_2" in failed.error.message
