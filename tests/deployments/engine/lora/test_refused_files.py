"""What cannot be applied exactly is refused by name, before anything is computed."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.reader import read_adapter
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.files.loras import LoraFile
from tests.deployments.engine.lora.formats import LOCON, layers_of, random, write_kohya
from tests.deployments.engine.tiny import tiny_text_encoder, tiny_tokenizer, tiny_unet

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
PLAIN = {f"{LAYER}.lora_down.weight": random(4, 32, 1, 1), f"{LAYER}.lora_up.weight": random(32, 4, 1, 1)}


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(InvalidParameter) as refused:
        read()
    assert refused.value.field == "loras"
    assert "'x'" in refused.value.message
    return refused.value.message


def read(path: Path, **known: str) -> Adapter:
    return read_adapter(LoraFile("x", str(path), **known), path)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, Tensor], **metadata: str) -> Path:
        save_file(tensors, tmp_path / "file.safetensors", metadata=metadata)
        return tmp_path / "file.safetensors"

    return write


@pytest.mark.parametrize(
    ("end", "tensor", "what"),
    [
        ("w_norm", random(32), "norms"),
        ("b_norm", random(32), "norms"),
        ("diff_b", random(32), "biases"),
        ("oft_blocks", random(4, 8, 8), "OFT"),
        ("oft_diag", random(4, 8, 8), "OFT"),
        ("rescale", random(32, 1), "OFT"),
        ("a1.weight", random(4, 32), "GLoRA"),
        ("b2.weight", random(32, 4), "GLoRA"),
        ("q_layer.weight", random(4, 32), "T-LoRA"),
        ("lambda_layer", random(1, 4), "T-LoRA"),
        ("lora_up.bias", random(32), "biases"),
        ("scalar", torch.tensor(0.5), "scalars"),
        ("lokr_t1", random(4, 4, 3, 3), "LoKr"),
        ("hada_t3", random(4, 4, 3, 3), "LoHa"),
        ("weight", random(32, 1), "belong to no known format"),
        ("on_input", torch.tensor(True), "belong to no known format"),
        ("lora_mid.weight", random(4, 4, 3), "shape"),
        ("lora_mid.weight", random(4, 5, 3, 3), "shape"),
        ("something", random(2), "not of a kind that is known"),
    ],
)
def test_every_tensor_is_used_or_the_file_is_refused(
    end: str, tensor: Tensor, what: str, save: Callable[..., Path]
) -> None:
    message = refusal(lambda: read(save({**PLAIN, f"{LAYER}.{end}": tensor})))
    assert what in message
    assert end in message or LAYER.removeprefix("lora_unet_") in message


@pytest.mark.parametrize(
    "key",
    [
        "lora_controlnet_mid.lora_down.weight",
        "lora_transformer_x.lora_down.weight",
        "transformer.single_blocks.0.lora_A.weight",
        "vae.decoder.lora_A.weight",
        "base_model.model.mid_block.attn1.to_q.lora_A.weight",
        "unet.mid_block.attn2.to_k_custom_diffusion.weight.x",
        "emb_params",
        "bundle_emb.word.clip_g",
        "bundle_emb.word",
    ],
)
def test_tensors_of_other_networks_and_formats_are_refused_by_their_names(key: str, save: Callable[..., Path]) -> None:
    assert key in refusal(lambda: read(save({**PLAIN, key: random(4, 32)})))


@pytest.mark.parametrize("missing", ["lora_down.weight", "lora_up.weight"])
def test_half_a_layer_is_refused(missing: str, save: Callable[..., Path]) -> None:
    rest = {key: tensor for key, tensor in PLAIN.items() if not key.endswith(missing)}
    assert "mid_block_attentions_0_proj_in" in refusal(lambda: read(save(rest)))


def test_two_names_for_one_part_are_refused(save: Callable[..., Path]) -> None:
    double = {**PLAIN, "unet.mid_block.attentions.0.proj_in.lora_A.weight": random(4, 32)}
    assert "the same part" in refusal(lambda: read(save(double)))


def test_two_names_for_one_layer_are_refused(save: Callable[..., Path]) -> None:
    other = {key.replace("mid_block_attentions_0", "middle_block_1"): tensor.clone() for key, tensor in PLAIN.items()}
    adapter = read(save({**PLAIN, **other}))
    assert "two names" in refusal(lambda: adapter.updates("unet", layers_of(tiny_unet()), 1.0))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()}, "not finite"),
        (lambda tensors: {name: tensor / 0 for name, tensor in tensors.items()}, "not finite"),
        (lambda tensors: {name: tensor.int() for name, tensor in tensors.items()}, "weights are floats"),
        (lambda tensors: {name: tensor[:0] for name, tensor in tensors.items()}, "0 numbers"),
        (lambda tensors: {name: tensor[:3] for name, tensor in tensors.items()}, "ranks"),
        (lambda tensors: tensors | {f"{LAYER}.alpha": torch.ones(2)}, "2 numbers"),
        (lambda tensors: tensors | {f"{LAYER}.dora_scale": torch.ones(32, 32)}, "shape"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], what: str, save: Callable[..., Path]
) -> None:
    assert what in refusal(lambda: read(save(change(dict(PLAIN)))))


def _claim(path: Path, shape: list[int], size: int) -> Path:
    """Writes a file whose header claims `shape` for `size` bytes."""
    entries = {
        f"{LAYER}.lora_down.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
        f"{LAYER}.lora_up.weight": {"dtype": "F32", "shape": [32, 4], "data_offsets": [size, size + 512]},
    }
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size + 512))
    return path


@pytest.mark.parametrize("shape", [[2**40, 32], [4, 2**62], [-4, -32], [4.5, 32], [4], [], [2**31, 2**33]])
def test_shapes_that_the_bytes_do_not_have_are_refused(shape: list[Any], tmp_path: Path) -> None:
    refusal(lambda: read(_claim(tmp_path / "x.safetensors", shape, 512)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04pickle",
        b"PK\x03\x04zip",
        b"<!doctype html>",
        struct.pack("<Q", 2**40),
        b"version https://git-lfs",
    ],
)
def test_files_that_are_no_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert str(tmp_path) not in refusal(lambda: read(tmp_path / "x.safetensors"))


def test_a_file_that_is_cut_off_is_refused_at_any_byte(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for end in range(0, len(whole), 37):
        (tmp_path / "x.safetensors").write_bytes(whole[:end])
        refusal(lambda: read(tmp_path / "x.safetensors"))


def test_a_file_that_was_replaced_since_the_request_came_is_refused(save: Callable[..., Path]) -> None:
    path = save(PLAIN)
    digest = read(path).digest
    assert read(path, digest=digest).digest == digest
    assert "replaced" in refusal(lambda: read(path, digest="0" * 64))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "there is no" in refusal(lambda: read(tmp_path / "x.safetensors"))


# Another base.


def networks() -> dict[str, dict[str, nn.Module]]:
    return {
        "unet": dict(layers_of(tiny_unet())),
        "text_encoder": dict(layers_of(tiny_text_encoder(tiny_tokenizer()))),
    }


def test_a_base_of_other_shapes_is_refused_with_the_layer_and_both_shapes(tmp_path: Path) -> None:
    wide = nn.ModuleDict({"conv_in": nn.Conv2d(9, 16, 3)})
    write_kohya(tmp_path / "x.safetensors", {"lora_unet_": wide}, LOCON)
    adapter = read(tmp_path / "x.safetensors")
    message = refusal(lambda: adapter.check(networks()))
    assert "'conv_in'" in message
    assert "16 x 4 x 3 x 3" in message
    assert "16 x 9 x 3 x 3" in message
    assert refusal(lambda: adapter.updates("unet", networks()["unet"], 1.0)) == message


@pytest.mark.parametrize(
    ("network", "layer", "what"),
    [
        ("lora_unet_", "down_blocks_9_attentions_0_proj_in", "down_blocks_9_attentions_0_proj_in"),
        ("lora_unet_", "double_blocks_0_img_attn_qkv", "double_blocks_0_img_attn_qkv"),
        ("lora_te_", "text_model_encoder_layers_11_mlp_fc1", "text_model_encoder_layers_11_mlp_fc1"),
        ("lora_te2_", "text_model_encoder_layers_0_mlp_fc1", "text_encoder_2"),
        ("lora_unet_", "mid_block_attentions_0_norm", "mid_block_attentions_0_norm"),
    ],
)
def test_layers_that_the_base_lacks_are_refused_by_name(
    network: str, layer: str, what: str, save: Callable[..., Path]
) -> None:
    tensors = {f"{network}{layer}.lora_down.weight": random(4, 32), f"{network}{layer}.lora_up.weight": random(32, 4)}
    adapter = read(save(tensors))
    assert what in refusal(lambda: adapter.check(networks()))


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_base_model_version": "sdxl_base_v1-0"},
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
        {"ss_base_model_version": "sd_v1"},
        {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
    ],
)
def test_a_header_that_tells_another_base_is_refused_although_the_shapes_fit(
    metadata: dict[str, str], save: Callable[..., Path]
) -> None:
    """The tiny UNet reads text 32 wide."""
    adapter = read(save(PLAIN, **metadata))
    assert "wide" in refusal(lambda: adapter.check(networks()))
    assert "wide" in refusal(lambda: adapter.updates("unet", networks()["unet"], 1.0))


def test_a_header_that_contradicts_its_shapes_is_refused(save: Callable[..., Path]) -> None:
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{layer}.lora_down.weight": random(4, 768), f"{layer}.lora_up.weight": random(320, 4)}
    assert read(save(tensors, ss_base_model_version="sd_v1")).text_width == 768
    assert "768 and 2048" in refusal(lambda: read(save(tensors, ss_base_model_version="sdxl_base_v1-0")))


@pytest.mark.parametrize(
    "settings",
    [
        "no JSON",
        "[1]",
        json.dumps({"unet.r": 4}),
        json.dumps({"unet.lora_alpha": "many"}),
        json.dumps({"unet.lora_alpha": float("inf")}),
        json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 2}}),
        json.dumps({"unet.lora_alpha": 4, "unet.lora_bias": True}),
    ],
)
def test_settings_of_peft_that_are_not_understood_are_refused(settings: str, save: Callable[..., Path]) -> None:
    assert "lora_adapter_metadata" in refusal(lambda: read(save(PLAIN, lora_adapter_metadata=settings)))


def test_bundled_embeddings_come_along(save: Callable[..., Path]) -> None:
    bundled = {"bundle_emb.my-cup.string_to_param.*": random(2, 32), "bundle_emb.one.emb_params": random(32)}
    found = read(save({**PLAIN, **bundled})).embeddings
    assert {token: tuple(vectors.shape) for token, vectors in found.items()} == {"my-cup": (2, 32), "one": (1, 32)}
