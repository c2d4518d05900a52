"""The Triton kernel for what follows the UNet in a step. Importing it needs Triton."""

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_PIXELS: Final = 256


@triton.jit
def update_rows(
    states: tl.tensor,
    answers: tl.tensor,
    prompted: tl.tensor,
    partner: tl.tensor,
    scale: tl.tensor,
    coefficients: tl.tensor,
    noise: tl.tensor,
    image: tl.tensor,
    first_noise: tl.tensor,
    mask: tl.tensor,
    levels: tl.tensor,
    updated: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    answer_row: tl.tensor,
    answer_channel: tl.tensor,
    answer_pixel: tl.tensor,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """Guides, advances and blends some pixels of one row, all channels of them.

    Additions are in the order of `sampling.latents.advance`, whose layout of states and coefficients this is, too.
    """
    row = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    inside = pixel < pixels
    there = (channel < channels)[:, None] & inside[None, :]
    place = channel[:, None] * pixels + pixel[None, :]
    size = channels * pixels

    seen = channel[:, None] * answer_channel + pixel[None, :] * answer_pixel
    with_prompt = answers + tl.load(prompted + row) * answer_row
    without = answers + tl.load(partner + row) * answer_row
    unprompted = tl.load(without + seen, mask=there, other=0.0).to(tl.float32)
    difference = tl.load(with_prompt + seen, mask=there, other=0.0).to(tl.float32) - unprompted
    out = unprompted + tl.load(scale + row) * difference

    state = states + row * 8 * size + place
    x0 = tl.load(state, mask=there, other=0.0)
    x1 = tl.load(state + size, mask=there, other=0.0)
    x2 = tl.load(state + 2 * size, mask=there, other=0.0)
    x3 = tl.load(state + 3 * size, mask=there, other=0.0)
    out1 = tl.load(state + 4 * size, mask=there, other=0.0)
    out2 = tl.load(state + 5 * size, mask=there, other=0.0)
    out3 = tl.load(state + 6 * size, mask=there, other=0.0)
    y0 = tl.load(state + 7 * size, mask=there, other=0.0)
    drawn = tl.load(noise + row * size + place, mask=there, other=0.0)

    factor = coefficients + row * 10
    answer = tl.load(factor) * x0
    answer += tl.load(factor + 1) * x1
    answer += tl.load(factor + 2) * x2
    answer += tl.load(factor + 3) * x3
    answer += tl.load(factor + 4) * out
    answer += tl.load(factor + 5) * out1
    answer += tl.load(factor + 6) * out2
    answer += tl.load(factor + 7) * out3
    answer += tl.load(factor + 8) * y0
    answer += tl.load(factor + 9) * drawn

    left = tl.load(mask + row * pixels + pixel, mask=inside, other=0.0)[None, :]
    kept = tl.load(levels + row * 2) * tl.load(image + row * size + place, mask=there, other=0.0)
    kept += tl.load(levels + row * 2 + 1) * tl.load(first_noise + row * size + place, mask=there, other=0.0)

    target = updated + row * 8 * size + place
    tl.store(target, (1.0 - left) * kept + left * answer, mask=there)
    tl.store(target + size, x0, mask=there)
    tl.store(target + 2 * size, x1, mask=there)
    tl.store(target + 3 * size, x2, mask=there)
    tl.store(target + 4 * size, out, mask=there)
    tl.store(target + 5 * size, out1, mask=there)
    tl.store(target + 6 * size, out2, mask=there)
    tl.store(target + 7 * size, answer, mask=there)


def launch_update(
    states: Tensor,
    answers: Tensor,
    prompted: Tensor,
    partner: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    noise: Tensor,
    image: Tensor,
    first_noise: Tensor,
    mask: Tensor,
    levels: Tensor,
) -> Tensor:
    """Returns the next states; see `update.guide_and_advance`. `answers` may be channels-last, the rest may not."""
    rows, _, channels, height, width = states.shape
    pixels = height * width
    updated = torch.empty_like(states)
    row, channel, line, pixel = answers.stride()
    if line != width * pixel:
        raise ValueError("answers must be contiguous or channels-last")
    update_rows[triton.cdiv(pixels, BLOCK_PIXELS), rows](
        states,
        answers,
        prompted,
        partner,
        scale,
        coefficients,
        noise,
        image,
        first_noise,
        mask,
        levels,
        updated,
        pixels,
        channels,
        row,
        channel,
        pixel,
        **update_blocks(channels),
    )
    return updated


def update_blocks(channels: int) -> dict[str, Any]:
    """Returns the block sizes of `update_rows`."""
    return {"BLOCK_C": triton.next_power_of_2(channels), "BLOCK_P": BLOCK_PIXELS}
