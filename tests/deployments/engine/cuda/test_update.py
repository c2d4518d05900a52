"""One operation does what guidance, the samplers' tables and blending do one by one."""

import torch

from deployments.engine.cuda.update import guide_and_advance
from deployments.engine.sampling.latents import advance
from tests.deployments.engine.cuda.kernel_cases import GUIDE, Update, update_arguments


def test_rows_are_guided_advanced_and_blended_bit_for_bit_as_one_by_one() -> None:
    given = update_arguments(Update(3, 4, 8, 8, torch.float32, False))
    states, answers, places, partners, _, coefficients, noise, image, first_noise, mask, levels = given
    updated = guide_and_advance(*given)
    for i in range(3):
        prompted, unprompted = answers[places[i]][None], answers[partners[i]][None]
        out = unprompted + GUIDE * (prompted - unprompted) if i else prompted
        alone = advance(states[i : i + 1], out, noise[i : i + 1], coefficients[i : i + 1])[0]
        assert torch.equal(updated[i, 1:], alone[1:])
        kept = levels[i, 0] * image[i] + levels[i, 1] * first_noise[i]
        assert torch.equal(updated[i, 0], torch.where(mask[i] == 0, kept, alone[0]))


def test_a_row_that_keeps_nothing_is_what_the_sampler_answers() -> None:
    updated = guide_and_advance(*update_arguments(Update(2, 4, 8, 8, torch.float32, False)))
    assert torch.equal(updated[0, 0], updated[0, 7])
    assert not torch.equal(updated[1, 0], updated[1, 7])


def test_the_operation_keeps_its_contract_with_torch() -> None:
    torch.library.opcheck(
        guide_and_advance,
        update_arguments(Update(2, 4, 8, 8, torch.float16, True)),
        test_utils=("test_schema", "test_faketensor"),
    )
