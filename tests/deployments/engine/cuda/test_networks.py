"""Prepared networks stay channels-last throughout, compute the same, and compile to few graphs. Nothing is generated:
dynamo traces, and a backend that records runs the graph as it is.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from deployments.engine.conditioning.cross_attention import CrossAttentionCache, context_width
from deployments.engine.cuda.networks import SLOW_FUSION, CompiledNetwork, inductor_options, prepare_for_cuda
from tests.deployments.engine.tiny import tiny_controlnet, tiny_unet, tiny_vae

SIZES = (32, 28, 16, 14, 8, 6, 2)
CHANNELS_LAST = torch.channels_last


class Recorder:
    """A backend that keeps its graphs, and the options that it was given."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        self.options: dict[str, Any] = {}

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[Any], *, options: dict[str, Any]) -> Any:
        self.graphs.append(graph)
        self.options = options
        return graph.forward

    def static_inputs(self) -> set[str]:
        """The names of the inputs that dynamo takes for attributes of modules, at addresses that never change."""
        return {
            node.name
            for graph in self.graphs
            for node in graph.graph.find_nodes(op="placeholder")
            if node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type") is not None
        }


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def keyed_unet() -> nn.Module:
    """A UNet as the engine has it: with its prompts' keys and values as an input."""
    unet: nn.Module = tiny_unet()
    CrossAttentionCache(unet)
    return unet


def unet_inputs(unet: Any, rows: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(rows, 4, 8, 8),
        "timestep": torch.rand(rows) * 900,
        "encoder_hidden_states": torch.randn(rows, 77, context_width(unet)),
        "return_dict": False,
    }


def controlled_inputs(unet: Any, rows: int) -> dict[str, Any]:
    """With the maps that ControlNets add, in the layout that they answer in."""
    maps = [torch.randn(rows, *shape) for shape in ((16, 8, 8), (16, 8, 8), (16, 4, 4), (32, 4, 4), (32, 4, 4))]
    down, middle = tuple(each.to(memory_format=CHANNELS_LAST) for each in maps[:-1]), maps[-1]
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return unet_inputs(unet, rows) | residuals


def controlnet_inputs(_net: Any, rows: int) -> dict[str, Any]:
    return unet_inputs(tiny_unet(), rows) | {"controlnet_cond": torch.randn(rows, 3, 64, 64)}


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, int], dict[str, Any]]]] = {
    "unet": (keyed_unet, unet_inputs),
    "unet with ControlNets": (keyed_unet, controlled_inputs),
    "controlnet": (lambda: tiny_controlnet(5), controlnet_inputs),
    "decoder": (lambda: cast(nn.Module, tiny_vae().decoder), lambda _, rows: {"sample": torch.randn(rows, 4, 8, 8)}),
    "encoder": (lambda: cast(nn.Module, tiny_vae().encoder), lambda _, rows: {"sample": torch.randn(rows, 3, 64, 64)}),
}
each_network = pytest.mark.parametrize(("make", "inputs"), CASES.values(), ids=CASES)


def flat(answer: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


@each_network
def test_a_prepared_network_computes_the_same_and_is_channels_last_throughout(
    make: Callable[[], nn.Module], inputs: Callable[[Any, int], dict[str, Any]]
) -> None:
    network = make()
    before = copy.deepcopy(network)
    prepare_for_cuda(network)
    prepare_for_cuda(network)  # a network that models share is prepared once
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, answer: seen.update(
            {f"{name} {i}": leaf for i, leaf in enumerate(flat(answer)) if leaf.ndim == 4}
        )

    for name, module in network.named_modules():
        module.register_forward_hook(note(name))
    given = inputs(network, 3)
    laid_out = {
        name: value.to(memory_format=CHANNELS_LAST) if isinstance(value, Tensor) and value.ndim == 4 else value
        for name, value in given.items()
    }
    with torch.inference_mode():
        for ours, theirs in zip(flat(network(**laid_out)), flat(before(**given)), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(seen) > 10
    assert [name for name, leaf in seen.items() if not leaf.is_contiguous(memory_format=CHANNELS_LAST)] == []


@pytest.mark.parametrize(("make", "inputs"), list(CASES.values())[1:], ids=list(CASES)[1:])
def test_two_graphs_serve_every_batch_size_and_only_weights_stay_where_they_are(
    make: Callable[[], nn.Module], inputs: Callable[[Any, int], dict[str, Any]]
) -> None:
    """One for each network, in truth: the second is torch's doing on a CPU alone, where convolutions of sixteen and
    more go to another library. A graph break would be an error.
    """
    network = make()
    prepare_for_cuda(network)
    recorder = Recorder()
    compiled = CompiledNetwork(network, recorder)
    with torch.inference_mode():
        for rows in SIZES:
            given = inputs(network, rows)
            for ours, theirs in zip(flat(compiled(**given)), flat(network(**given)), strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(recorder.graphs) <= 2
    # Anything else at a fixed address would be captured anew, in each CUDA graph, whenever it moved.
    assert [name for name in recorder.static_inputs() if "_parameters_" not in name] == []


def test_the_whole_vae_compiles_and_a_copy_in_fp32_still_decodes() -> None:
    """The copy is what an image that is not finite is decoded with."""
    vae = tiny_vae()
    prepare_for_cuda(vae)
    recorder = Recorder()
    decode, latents = CompiledNetwork(vae.decode, recorder), torch.randn(4, 4, 8, 8)
    with torch.inference_mode():
        expected = vae.decode(latents, return_dict=False)[0]
        assert torch.allclose(decode(latents, return_dict=False)[0], expected, atol=1e-5)
        assert decode(latents[:1], return_dict=False)[0].shape == (1, 3, 64, 64)
        assert torch.equal(copy.deepcopy(vae).float().decode(latents, return_dict=False)[0], expected)
    assert len(recorder.graphs) <= 2


def test_the_fusion_that_slows_convolutions_down_is_off_where_torch_has_it() -> None:
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    assert (version >= (2, 13)) == hasattr(inductor_config, SLOW_FUSION)
    recorder = Recorder()
    with torch.inference_mode():
        CompiledNetwork(nn.ReLU(), recorder)(torch.zeros(2, 3))
    assert recorder.options == inductor_options()
    assert recorder.options.get(SLOW_FUSION, False) is False
    assert SLOW_FUSION in recorder.options or version < (2, 13)
    assert set(recorder.options) <= set(inductor_config.get_config_copy())


def test_many_image_sizes_compile_on_any_thread() -> None:
    """dynamo gives up after eight by default, and each thread has defaults of its own."""
    recorder = Recorder()
    compiled = CompiledNetwork(nn.ReLU(), recorder)

    def call() -> None:
        with torch.inference_mode():
            for width in range(8, 20):
                compiled(torch.zeros(2, 4, 8, width))
                compiled(torch.zeros(4, 4, 8, width))

    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(call).result()
    assert len(recorder.graphs) == 12
