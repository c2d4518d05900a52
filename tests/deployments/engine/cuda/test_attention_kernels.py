"""Kernels agree on what attention is, padded or not, and a network runs on whichever it is given."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deployments.engine.conditioning.cross_attention import CrossAttentionCache
from deployments.engine.cuda.attention_kernels import (
    Kernel,
    LayerShape,
    ShapedAttention,
    attend_by_default,
    layer_shapes,
    pad_heads,
)
from deployments.engine.cuda.networks import CompiledNetwork
from deployments.engine.models.attention import sample_inputs
from tests.deployments.engine.tiny import tiny_unet

CPU = torch.device("cpu")


def attend_by_definition(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return attend_by_default(query, key, value, scale)


def attend_flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    answer: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)[0]
    return answer


KERNELS: dict[str, Kernel] = {
    "torch": attend_by_default,
    "definition": attend_by_definition,
    "flash": attend_flash,
    "definition padded": pad_heads(attend_by_definition, 64),
    "flash padded": pad_heads(attend_flash, 64),
    "flash padded further": pad_heads(attend_flash, 96),
}


@pytest.mark.parametrize("attended", [50, 77])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_computes_attention(name: str, attended: int) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 3, 40).transpose(1, 2) for tokens in (50, attended, attended))
    scale = 1 / math.sqrt(40)
    exact = (query.double() @ key.double().mT * scale).softmax(-1) @ value.double()
    answer = KERNELS[name](query, key, value, scale)
    assert answer.shape == query.shape
    assert torch.allclose(answer.double(), exact, atol=1e-5)


@pytest.fixture
def unet() -> Any:
    """A UNet as the engine has it: with its prompts' keys and values as an input."""
    unet = tiny_unet()
    CrossAttentionCache(unet)
    return unet


SHAPES = [LayerShape(16, 16, 4, 8), LayerShape(16, 77, 4, 8)]


def test_a_networks_layers_are_known_by_one_call_which_leaves_it_as_it_was(unet: Any) -> None:
    before = unet.attn_processors
    assert layer_shapes(unet, sample_inputs(unet, 1, CPU, torch.float32)) == SHAPES
    assert unet.attn_processors == before


def test_a_network_runs_each_layer_on_the_kernel_for_its_shape(unet: Any) -> None:
    used: list[LayerShape] = []

    def watched(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        used.append(LayerShape(query.shape[2], key.shape[2], query.shape[1], query.shape[3]))
        return pad_heads(attend_flash, 64)(query, key, value, scale)

    inputs = sample_inputs(unet, 2, CPU, torch.float32)
    with torch.inference_mode():
        before = unet(**inputs)[0]
        unet.set_attn_processor(ShapedAttention({SHAPES[1]: watched}))
        assert torch.allclose(unet(**inputs)[0], before, atol=1e-5)
    assert set(used) == {SHAPES[1]}


def test_the_kernels_that_were_chosen_are_in_the_compiled_graph(unet: Any) -> None:
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor], **_: object) -> object:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    unet.set_attn_processor(ShapedAttention({SHAPES[0]: attend_flash}))
    with torch.inference_mode():
        CompiledNetwork(unet, backend)(**sample_inputs(unet, 2, CPU, torch.float32))
    layers = len(unet.attn_processors) // 2
    assert sum("flash_attention_for_cpu" in target for target in targets) == layers
    assert sum("scaled_dot_product_attention" in target for target in targets) == layers


def test_a_mask_is_refused(unet: Any) -> None:
    unet.set_attn_processor(ShapedAttention({}))
    inputs = sample_inputs(unet, 1, CPU, torch.float32)
    with pytest.raises(ValueError, match="not masked"):
        unet(**inputs, encoder_attention_mask=torch.ones(1, 77))
