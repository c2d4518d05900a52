"""Layers are found by every name that files give them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deployments.engine.lora.layer_names import flat_names
from deployments.engine.lora.tensor_names import read_names
from tests.deployments.engine.checkpoints.original import original_checkpoint
from tests.deployments.engine.lora.formats import layers_of
from tests.deployments.engine.tiny import tiny_text_encoder, tiny_tokenizer, tiny_unet


def test_every_layer_of_a_unet_has_its_name_in_the_original_layout(tiny_checkpoint: Path) -> None:
    """The weights tell which layer is which."""
    prefix = "model.diffusion_model."
    original = {
        name.removeprefix(prefix).removesuffix(".weight").replace(".", "_"): tensor
        for name, tensor in original_checkpoint(tiny_checkpoint).items()
        if name.startswith(prefix) and name.endswith(".weight") and tensor.dim() > 1
    }
    ours = load_file(tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    paths = list(layers_of(tiny_unet()))
    names = flat_names("unet", paths)
    assert len(original) == len(paths)
    for name, tensor in original.items():
        assert torch.equal(ours[f"{names[name]}.weight"], tensor)


def test_names_of_stable_diffusions_own_size_are_those_that_kohya_writes() -> None:
    """Two layers a block, three levels that attend: written down from published files."""
    paths = {
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q": (
            "input_blocks_2_1_transformer_blocks_0_attn1_to_q"
        ),
        "down_blocks.2.resnets.0.conv1": "input_blocks_7_0_in_layers_2",
        "down_blocks.1.downsamplers.0.conv": "input_blocks_6_0_op",
        "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
        "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
        "up_blocks.1.attentions.0.proj_out": "output_blocks_3_1_proj_out",
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_1_conv",
        "up_blocks.3.resnets.2.conv_shortcut": "output_blocks_11_0_skip_connection",
        "time_embedding.linear_2": "time_embed_2",
    }
    names = flat_names("unet", [*paths, "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.1.conv1"])
    assert {path: name for name, path in names.items() if name in paths.values()} == paths


def test_a_text_encoder_is_found_with_and_without_the_level_that_transformers_took_out() -> None:
    encoder = tiny_text_encoder(tiny_tokenizer())
    names = flat_names("text_encoder", layers_of(encoder))
    for path in layers_of(encoder):
        bare = path.removeprefix("text_model.").replace(".", "_")
        assert names[bare] == names[f"text_model_{bare}"] == path


@pytest.mark.parametrize(
    ("key", "network", "layer", "part"),
    [
        ("lora_unet_mid_block_proj_in.lora_down.weight", "unet", "mid_block_proj_in", "down"),
        ("lora_te_text_model_layers_0_fc1.alpha", "text_encoder", "text_model_layers_0_fc1", "alpha"),
        ("lora_te1_text_model_layers_0_fc1.lora_up.weight", "text_encoder", "text_model_layers_0_fc1", "up"),
        ("lora_te2_text_model_layers_0_fc1.dora_scale", "text_encoder_2", "text_model_layers_0_fc1", "dora_scale"),
        ("unet.mid.attn1.to_q.lora_A.weight", "unet", "mid.attn1.to_q", "down"),
        ("unet.mid.attn1.to_q.lora_B.default.weight", "unet", "mid.attn1.to_q", "up"),
        ("unet.mid.attn1.to_q.lora.down.weight", "unet", "mid.attn1.to_q", "down"),
        ("unet.mid.attn1.processor.to_out_lora.up.weight", "unet", "mid.attn1.to_out.0", "up"),
        ("mid_block.attn1.processor.to_v_lora.down.weight", "unet", "mid_block.attn1.to_v", "down"),
        ("text_encoder.layers.0.fc1.lora_linear_layer.up.weight", "text_encoder", "layers.0.fc1", "up"),
        ("text_encoder.layers.0.self_attn.to_out_lora.up.weight", "text_encoder", "layers.0.self_attn.out_proj", "up"),
        ("unet.mid.to_q.lora_magnitude_vector", "unet", "mid.to_q", "magnitude"),
        ("lora_unet_mid.hada_w1_a", "unet", "mid", "hada_w1_a"),
    ],
)  # fmt: skip
def test_a_tensors_name_says_what_it_is(key: str, network: str, layer: str, part: str) -> None:
    found = read_names([key])
    flat = layer.replace(".", "_")
    assert found.networks == {network: {flat: {part: key}}}
    assert found.spellings == {(network, flat): layer}
