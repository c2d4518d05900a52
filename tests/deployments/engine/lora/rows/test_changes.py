"""Kinds of updates that meet in one call are of a kind that has room for both."""

from itertools import product

from torch import nn

from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.rows.changes import changes_of, join_changes
from tests.deployments.engine.lora.rows.test_factors import update_of

NAMES = ("down.0.attentions.0.to_q", "down.0.resnets.0.conv1")
UPDATES: list[dict[str, LayerUpdate]] = [
    {},
    *(
        {name: update_of(nn.Linear(4, 4), 2, gain=gain) for name in names}
        for names in (NAMES[:1], NAMES)
        for gain in (False, True)
    ),
]


def test_kinds_that_meet_are_of_the_kind_of_all_their_updates() -> None:
    for first, second in product(UPDATES, UPDATES):
        both = {f"{i}.{path}": update for i, updates in enumerate((first, second)) for path, update in updates.items()}
        assert join_changes(changes_of(first), changes_of(second)) == changes_of(both)
