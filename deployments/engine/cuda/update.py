"""Does what follows the UNet in a step as one operation: guidance, the samplers' tables, and blending.

On CUDA it is one kernel, which reads and writes the states once, instead of some forty. On other devices it is the same
arithmetic in torch, which the kernel is tested against.
"""

import torch
from torch import Tensor

from deployments.engine.sampling.latents import advance, blend


@torch.library.custom_op("darkroom::guide_and_advance", mutates_args=())
def guide_and_advance(
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
    """Returns the next states of B rows, [B, 8, C, h, w] in fp32, in the layout of `sampling.latents`.

    `states` are their present ones. `answers` [U, C, h, w] are the UNet's, in any precision: row i's with its prompt is
    number `prompted[i]` (int64), and the one without number `partner[i]`. Guidance is equation 6 of Ho and Salimans
    (2022) at `scale` [B]; a row without guidance is its own partner. `coefficients` [B, 10] and `noise` [B, C, h, w]
    are those of `advance`. What `mask` [B, 1, h, w] has 0 for is put back: `image` and `first_noise` [B, C, h, w] mixed
    at `levels` [B, 2]; a row that keeps nothing has a mask of ones.
    """
    scale = scale.view(-1, 1, 1, 1)
    unprompted = answers.index_select(0, partner).to(states.dtype)
    out = unprompted + scale * (answers.index_select(0, prompted).to(states.dtype) - unprompted)
    updated = advance(states, out, noise, coefficients)
    kept = levels[:, 0].view(-1, 1, 1, 1) * image + levels[:, 1].view(-1, 1, 1, 1) * first_noise
    updated[:, 0] = blend(updated[:, 0], kept, mask)
    return updated


@guide_and_advance.register_kernel("cuda")
def _on_cuda(*arguments: Tensor) -> Tensor:
    from deployments.engine.cuda.update_kernel import launch_update  # Triton comes with torch for CUDA only

    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, whatever it is given
        return launch_update(*arguments)


@guide_and_advance.register_fake
def _shape(states: Tensor, *_arguments: Tensor) -> Tensor:
    return torch.empty_like(states)
