"""Muon's laws: balanced updates, of AdamW's size, for matrices and convolutions alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deployments.training.demo.learning.muon import Muon, optimizers, orthogonalise
from deployments.training.demo.models import make_unet


@pytest.mark.parametrize("shape", [(8, 8), (4, 32), (32, 4), (3, 6, 20)])
def test_every_direction_of_an_update_counts_about_the_same(shape: tuple[int, ...]) -> None:
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert singular.min() > 0.3
    assert singular.max() < 1.3


def test_equal_shapes_do_not_see_each_other() -> None:
    matrices = torch.randn((3, 8, 16), generator=torch.Generator().manual_seed(0))
    alone = torch.stack([orthogonalise(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone)


def test_a_convolution_is_learnt() -> None:
    generator = torch.Generator().manual_seed(0)
    aim, layer = torch.randn((6, 4, 3, 3), generator=generator), nn.Conv2d(4, 6, 3, bias=False)
    optimizer = Muon([layer.weight], lr=0.1)
    errors = []
    for _ in range(120):
        error = (layer.weight - aim).square().mean()
        errors.append(float(error.detach()))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < 0.02 * errors[0]


def test_every_weight_of_the_unet_has_one_optimizer() -> None:
    unet = make_unet()
    owned = [weight for made in optimizers(unet, 1e-3) for group in made.param_groups for weight in group["params"]]
    assert len(owned) == len({id(weight) for weight in owned}) == len(list(unet.parameters()))
