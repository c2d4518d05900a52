"""A layer with an update answers as the layer does whose weight the file was merged into, for every format."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.layer_update import LayerUpdate, combine
from deployments.engine.lora.reader import read_adapter
from deployments.engine.protocol.files.loras import LoraFile
from tests.deployments.engine.lora.formats import FORMATS, LOCON, Layer, layers_of, write_kohya
from tests.deployments.engine.tiny import tiny_text_encoder, tiny_tokenizer, tiny_unet


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {"lora_unet_": tiny_unet(), "lora_te_": tiny_text_encoder(tiny_tokenizer())}


NAMES = {"lora_unet_": "unet", "lora_te_": "text_encoder"}


def read(path: Path) -> Adapter:
    return read_adapter(LoraFile("x", str(path)), path)


def answer(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)


def updated_answer(layer: Layer, x: Tensor, update: LayerUpdate) -> Tensor:
    """The formula of `LayerUpdate`, as it stands there."""
    ones = torch.ones(layer.weight.shape[0])
    gain, bias = (each if each is not None else other for each, other in ((update.gain, ones), (layer.bias, 0 * ones)))
    plain: Tensor = layer(x)
    if isinstance(layer, nn.Linear):
        return gain * (plain - bias) + bias + x @ update.down.T @ update.up.T
    low = nn.functional.conv2d(x, update.down, None, layer.stride, layer.padding, layer.dilation)
    gain, bias = gain[:, None, None], bias[:, None, None]
    return gain * (plain - bias) + bias + nn.functional.conv2d(low, update.up[:, :, None, None])


def input_of(layer: Layer) -> Tensor:
    torch.manual_seed(5)
    return (
        torch.randn(2, 6, layer.in_features)
        if isinstance(layer, nn.Linear)
        else torch.randn(2, layer.in_channels, 6, 6)
    )


def differences(found: Mapping[str, LayerUpdate], layers: Mapping[str, Layer], weights: Mapping[str, Tensor]) -> float:
    """The largest, of all layers, as a share of what the layer answers."""
    worst = 0.0
    for path, weight in weights.items():
        x = input_of(layers[path])
        wanted = answer(layers[path], x, weight)
        worst = max(
            worst, ((updated_answer(layers[path], x, found[path]) - wanted).abs().max() / wanted.abs().max()).item()
        )
    return worst


@pytest.mark.parametrize("scale", [1.0, -0.7])
@pytest.mark.parametrize("name", FORMATS)
def test_an_update_is_the_merged_weight(
    name: str, scale: float, networks: dict[str, nn.Module], tmp_path: Path
) -> None:
    written = write_kohya(tmp_path / "x.safetensors", networks, FORMATS[name])
    adapter = read(tmp_path / "x.safetensors")
    assert len(written) >= 8
    for prefix, network in networks.items():
        layers = layers_of(network)
        weights = {
            path: FORMATS[name].merge(layers[path].weight, tensors, scale)
            for (of, path), tensors in written.items()
            if of == prefix
        }
        found = adapter.updates(NAMES[prefix], layers, scale)
        assert found.keys() == weights.keys()
        assert differences(found, layers, weights) < 2e-5


@pytest.mark.parametrize("name", FORMATS)
def test_no_factor_has_a_larger_rank_than_its_layer(name: str, networks: dict[str, nn.Module], tmp_path: Path) -> None:
    write_kohya(tmp_path / "x.safetensors", networks, FORMATS[name])
    layers = layers_of(networks["lora_unet_"])
    found = read(tmp_path / "x.safetensors").updates("unet", layers, 1.0)
    for path, update in found.items():
        assert update.rank <= min(layers[path].weight.shape[0], layers[path].weight[0].numel())
        assert update.down.shape == (update.rank, *layers[path].weight.shape[1:])
        assert update.up.shape == (layers[path].weight.shape[0], update.rank)


def test_several_at_once_add_up(networks: dict[str, nn.Module], tmp_path: Path) -> None:
    layers, unet = layers_of(networks["lora_unet_"]), {"lora_unet_": networks["lora_unet_"]}
    scales = {"lora and locon": 0.5, "dora of outputs": 1.0, "ia3 of outputs": -0.4, "lokr": 0.8}
    parts, weights = [], {path: layer.weight.clone() for path, layer in layers.items()}
    for name, scale in scales.items():
        written = write_kohya(tmp_path / f"{scale}.safetensors", unet, FORMATS[name])
        parts.append(read(tmp_path / f"{scale}.safetensors").updates("unet", layers, scale))
        for (_, path), tensors in written.items():
            weights[path] += FORMATS[name].merge(layers[path].weight, tensors, scale) - layers[path].weight
    assert differences(combine(parts), layers, weights) < 2e-5


def test_at_zero_nothing_changes(networks: dict[str, nn.Module], tmp_path: Path) -> None:
    write_kohya(tmp_path / "x.safetensors", networks, FORMATS["dora of outputs"])
    assert read(tmp_path / "x.safetensors").updates("unet", layers_of(networks["lora_unet_"]), 0.0) == {}


def test_one_adapter_serves_several_bases_each_by_its_own_weights(
    networks: dict[str, nn.Module], tmp_path: Path
) -> None:
    """DoRA's gain depends on the weights that it is applied to."""
    written = write_kohya(tmp_path / "x.safetensors", {"lora_unet_": tiny_unet()}, FORMATS["dora of outputs"])
    adapter = read(tmp_path / "x.safetensors")
    for seed in (3, 4, 3):
        layers = layers_of(tiny_unet(seed))
        weights = {p: FORMATS["dora of outputs"].merge(layers[p].weight, t, 0.6) for (_, p), t in written.items()}
        assert differences(adapter.updates("unet", layers, 0.6), layers, weights) < 2e-5


def test_its_size_is_that_of_its_numbers(networks: dict[str, nn.Module], tmp_path: Path) -> None:
    written = write_kohya(tmp_path / "x.safetensors", networks, LOCON)
    numbers = sum(tensor.nbytes for tensors in written.values() for name, tensor in tensors.items() if name != "alpha")
    assert read(tmp_path / "x.safetensors").size == numbers
