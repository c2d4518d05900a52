"""A converted network answers as torch's does that LoRAs have changed, and its weights are in memory once."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deployments.engine.conditioning.deep_cache import DeepCache
from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.rows.changes import in_attention
from deployments.engine.lora.rows.factors import Factors, stack_updates
from deployments.engine.lora.rows.layers import Layers, apply_factors, layers_of
from deployments.engine.openvino import converted_network
from deployments.engine.openvino.runtime import OpenVinoRuntime
from tests.deployments.engine.openvino.test_networks import CLOSE, Unconvertible, distance, inputs_for, pair
from tests.deployments.engine.tiny import TOKENS, tiny_text_encoder, tiny_tokenizer, tiny_unet


def in_place(layers: Layers, *, only_attention: bool = False) -> Layers:
    """Those of a UNet's layers that are changed when it is called."""
    return {
        path: layer
        for path, layer in layers.items()
        if not path.endswith(("attn2.to_k", "attn2.to_v")) and (not only_attention or in_attention(path))
    }


def random_updates(layers: Layers, seed: int, rank: int, *, with_gains: bool = False) -> dict[str, LayerUpdate]:
    random = torch.Generator().manual_seed(seed)
    updates = {}
    for path, layer in layers.items():
        out, fan = len(layer.weight), layer.weight[0].numel()
        down = torch.randn((rank, *layer.weight.shape[1:]), generator=random) / fan**0.5
        up = 0.3 * torch.randn((out, rank), generator=random) / rank**0.5
        updates[path] = LayerUpdate(down, up, 1 + 0.2 * torch.randn(out, generator=random) if with_gains else None)
    return updates


def stack(layers: Layers, *, only_attention: bool, with_gains: bool) -> Mapping[str, Factors]:
    """Two groups of different ranks and a third without updates; one layer is changed by the first group alone."""
    chosen = in_place(layers, only_attention=only_attention)
    first = random_updates(chosen, 1, 3, with_gains=with_gains)
    second = random_updates(dict(list(chosen.items())[1:]), 2, 5)
    return stack_updates([first, second, {}], layers)


def call(unet: Any, inputs: tuple[Tensor, ...], factors: Mapping[str, Factors]) -> Tensor:
    with apply_factors(unet, factors):
        answer: Tensor = unet(*inputs, return_dict=False)[0]
        return answer


@pytest.mark.parametrize("per_shape", [True, False])
@pytest.mark.parametrize(("only_attention", "with_gains"), [(True, False), (True, True), (False, False), (False, True)])
def test_groups_of_rows_have_their_own_updates_as_on_torch(
    only_attention: bool,
    with_gains: bool,
    per_shape: bool,
    runtime: OpenVinoRuntime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(converted_network, "STATIC_BYTES", 2**30 if per_shape else 0)
    torch_unet, unet = pair(runtime, tiny_unet())
    factors = stack(layers_of(torch_unet), only_attention=only_attention, with_gains=with_gains)
    for rows, height, width in ((6, 8, 8), (3, 9, 13)):
        inputs = inputs_for(torch_unet, rows, height, width)
        wanted, plain = call(torch_unet, inputs, factors), unet(*inputs)[0]
        answer = call(unet, inputs, factors)
        assert distance(answer, wanted) < CLOSE
        changed = 2 * rows // 3
        assert distance(answer[:changed], plain[:changed]) > 10 * CLOSE
        assert distance(answer[changed:], plain[changed:]) < CLOSE
        assert torch.equal(unet(*inputs)[0], plain)
    assert unet.backend == "openvino"


def test_a_call_without_the_deep_blocks_is_changed_as_on_torch(runtime: OpenVinoRuntime) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    cached, deep_cache = DeepCache(torch_unet), unet.deep_cache
    assert deep_cache is not None
    factors, inputs = stack(layers_of(torch_unet), only_attention=False, with_gains=True), inputs_for(torch_unet, 3)
    with apply_factors(torch_unet, factors):
        wanted, deep = cached.run_whole(*inputs, {})
        wanted_shallow = cached.run_shallow(*inputs, deep, {})
    with apply_factors(unet, factors):
        answer, own_deep = deep_cache.run_whole(*inputs, {})
        shallow = deep_cache.run_shallow(*inputs, deep, {})
    assert distance(answer, wanted) < CLOSE
    assert distance(own_deep, deep) < CLOSE
    assert distance(shallow, wanted_shallow) < CLOSE


def test_a_text_encoder_is_changed_as_on_torch(runtime: OpenVinoRuntime) -> None:
    encoder = tiny_text_encoder(tiny_tokenizer())
    original = copy.deepcopy(encoder)
    converted = runtime.run_text_encoder(encoder, "the text encoder", "")
    updates = random_updates(layers_of(original), 3, 4, with_gains=True)
    factors, ids = stack_updates([updates], layers_of(original)), torch.arange(TOKENS)[None]
    plain = converted(ids).last_hidden_state
    with apply_factors(original, factors), apply_factors(converted, factors):
        wanted, answer = original(ids).last_hidden_state, converted(ids).last_hidden_state
    assert distance(answer, wanted) < CLOSE
    assert distance(answer, plain) > 10 * CLOSE
    assert torch.equal(converted(ids).last_hidden_state, plain)


def test_the_weights_that_loras_are_fitted_to_are_those_that_openvino_has_in_memory(
    runtime: OpenVinoRuntime,
) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    # Before it is called, too: it is converted then.
    layers, wanted = layers_of(unet), layers_of(torch_unet)
    assert layers.keys() == wanted.keys()
    for path, layer in layers.items():
        assert type(layer) is type(wanted[path])
        assert torch.equal(layer.weight, wanted[path].weight)
    assert unet.network.get_parameter("mid_block.resnets.0.conv1.weight").is_meta
    again = layers_of(unet)
    assert all(again[path].weight.data_ptr() == layer.weight.data_ptr() for path, layer in layers.items())


def test_where_torch_runs_a_network_it_is_changed_all_the_same(runtime: OpenVinoRuntime) -> None:
    network = tiny_unet()
    network.conv_out = nn.Sequential(network.conv_out, Unconvertible())
    torch_unet, unet = pair(runtime, network)
    factors, inputs = stack(layers_of(torch_unet), only_attention=False, with_gains=True), inputs_for(torch_unet, 3)
    assert distance(call(unet, inputs, factors), call(torch_unet, inputs, factors)) < CLOSE
    assert unet.backend == "torch"


def test_no_program_is_compiled_for_a_lora_that_changes_the_same_kind_of_layers(runtime: OpenVinoRuntime) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    inputs, layers = inputs_for(torch_unet, 4), in_place(layers_of(torch_unet), only_attention=True)
    for rank, groups in ((3, 1), (8, 2), (1, 4)):
        some = dict(list(layers.items())[: 5 * rank])
        factors = stack_updates([random_updates(some, i, rank) for i in range(groups)], layers)
        assert distance(call(unet, inputs, factors), call(torch_unet, inputs, factors)) < CLOSE
    assert sorted(str(key[-1]) for key in unet._run._programs) == ["attention", "none"]
