"""Draws depend on the seed and the place, and on nothing else."""

import torch

from deployments.training.lora.generators import generator_of


def test_draws_depend_on_the_seed_and_the_place_alone() -> None:
    def draw(*place: int) -> int:
        return int(torch.randint(2**40, (1,), generator=generator_of(*place)))

    places = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(5, 6) == draw(5, 6)
