"""Processes share all rows, and none twice."""

from itertools import chain

import pytest

from deployments.training.lora.learning.processes import TrainingProcesses


class Place:
    """Accelerate's accelerator, as far as it says which process this is."""

    def __init__(self, process_index: int, num_processes: int) -> None:
        self.process_index, self.num_processes = process_index, num_processes


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [0, 1, 4, 7])
def test_every_row_is_one_process_own(rows: int, count: int, from_end: bool) -> None:
    every = [TrainingProcesses(Place(index, count)) for index in range(count)]
    shares = [list(range(rows))[each.share(rows, from_end=from_end)] for each in every]
    assert sorted(chain(*shares)) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
