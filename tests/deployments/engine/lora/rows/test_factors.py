"""Each group of rows gets its own update's answers: what the definition of an update says, row by row."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.rows.factors import add_update, stack_updates

LAYERS: dict[str, tuple[nn.Linear | nn.Conv2d, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 10), (5, 6)),
    "of a row's vector": (nn.Linear(6, 10, bias=False), (6,)),
    "convolution": (nn.Conv2d(4, 8, 3, stride=2, padding=1), (4, 9, 7)),
    "dilated, without bias": (nn.Conv2d(4, 8, 3, padding=2, dilation=2, bias=False), (4, 6, 6)),
    "pointwise": (nn.Conv2d(4, 8, 1), (4, 5, 5)),
}


def update_of(layer: nn.Linear | nn.Conv2d, rank: int, *, gain: bool) -> LayerUpdate:
    out = len(layer.weight)
    down, up = torch.randn(rank, *layer.weight.shape[1:]), torch.randn(out, rank)
    return LayerUpdate(down, up, torch.rand(out) + 0.5 if gain else None)


def by_definition(layer: nn.Linear | nn.Conv2d, given: Tensor, update: LayerUpdate | None) -> Tensor:
    answer: Tensor = layer(given)
    if update is None:
        return answer
    axes = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    gain = torch.ones(len(bias)) if update.gain is None else update.gain
    changed = (update.up @ update.down.flatten(1)).reshape(layer.weight.shape)
    if isinstance(layer, nn.Conv2d):
        added = functional.conv2d(given, changed, None, layer.stride, layer.padding, layer.dilation)
    else:
        added = functional.linear(given, changed)
    return gain.view(axes) * (answer - bias.view(axes)) + bias.view(axes) + added


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("gains", [(False, False), (True, False), (True, True)])
@torch.no_grad()
def test_groups_of_different_ranks_and_gains_get_their_own(name: str, rows: int, gains: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    updates = [
        update_of(layer, 3, gain=gains[0]),
        None,
        update_of(layer, 5, gain=gains[1]),
        update_of(layer, 0, gain=True),
    ]
    given = torch.randn(rows * len(updates), *shape)
    groups = [{} if update is None else {"x": update} for update in updates]
    factors = stack_updates(groups, {"x": layer})["x"]
    plain = layer(given)
    made = add_update(layer, given, plain.clone(), factors)
    for i, row in enumerate(made):
        wanted = by_definition(layer, given[i : i + 1], updates[i // rows])[0]
        assert torch.allclose(row, wanted, atol=1e-5)
    without = slice(rows, 2 * rows)
    assert torch.equal(made[without], plain[without])
