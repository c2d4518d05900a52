"""Updates latents, and what their sampler remembers of them, as one fp32 tensor per row.

Layout of `Row.state`, [STATE_SLOTS, C, h, w]:

    0..3   x[i] ... x[i-3]         the inputs of the last steps
    4..6   out[i-1] ... out[i-3]   the model's outputs
    7      y[i]                    the sampler's last answer; differs from x[i] only where latents were blended

The columns of a `Schedule`'s coefficients are x[i] ... x[i-3], out[i] ... out[i-3], y[i], noise, in this order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.sampling.schedule_compiler import OUT_TERMS, X_TERMS

X_SLOTS = X_TERMS
OUT_SLOTS = OUT_TERMS - 1
STATE_SLOTS = X_SLOTS + OUT_SLOTS + 1
NEWEST_OUT = X_SLOTS


def draw_noise(generator: torch.Generator, channels: int, height: int, width: int) -> Tensor:
    """Draws standard normal noise [C, h, w] on the CPU, so that a seed means the same image on every device.

    diffusers draws [1, C, h, w]; the values are the same.
    """
    return torch.randn((1, channels, height, width), generator=generator)[0]


def initial_state(latents: Tensor) -> Tensor:
    """Returns the state of a row whose first step gets `latents` [C, h, w]: [STATE_SLOTS, C, h, w] fp32."""
    state = latents.new_zeros((STATE_SLOTS, *latents.shape), dtype=torch.float32)
    state[0] = latents
    state[-1] = latents
    return state


def advance(states: Tensor, out: Tensor, noise: Tensor, coefficients: Tensor) -> Tensor:
    """Applies one sampler update to B rows at once, whatever their samplers.

    `states` [B, STATE_SLOTS, C, h, w], `out` and `noise` [B, C, h, w], `coefficients` [B, 10]. Returns the next states.
    A fixed order of additions, instead of a matrix product, keeps a row's bits independent of how many rows there are.
    """
    terms = (
        *states[:, :X_SLOTS].unbind(1),
        out,
        *states[:, X_SLOTS:-1].unbind(1),
        states[:, -1],
        noise,
    )
    weights = coefficients.view(*coefficients.shape, 1, 1, 1).unbind(1)
    answer = torch.zeros_like(out)
    for weight, term in zip(weights, terms, strict=True):
        answer = torch.addcmul(answer, weight, term)
    kept = states[:, : X_SLOTS - 1], out[:, None], states[:, X_SLOTS : X_SLOTS + OUT_SLOTS - 1]
    return torch.cat((answer[:, None], *kept, answer[:, None]), dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """The parts that an inpaint row keeps: `image` and its first `noise`, [C, h, w], where `mask` [1, h, w] is 0."""

    image: Tensor
    noise: Tensor
    mask: Tensor


def blend(latents: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """Puts back `kept` into `latents`, both [B, C, h, w], where `mask` [B, 1, h, w] is 0.

    Inpainting without a checkpoint of its own (Lugmayr et al. 2022, without resampling; diffusers' 4-channel case).
    `kept` is at the noise level of each row's next step. The sampler's own answer stays in the state's last slot: PNDM
    and UniPC need it.
    """
    return (1 - mask) * kept + mask * latents


def predict_original(
    scaled: Tensor, out: Tensor, timestep: float, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """Returns the clean latents that the model predicts at a step, for previews (Ho et al., 2020, equation 15).

    `scaled` is the model's input and `out` its output, both [C, h, w]. Prediction types: epsilon, v_prediction
    (Salimans and Ho, 2022), sample.
    """
    if prediction_type == "sample":
        return out
    # Left on the host: the device takes a number as it is, and would be waited for to copy it.
    alpha = alphas_cumprod[round(min(max(timestep, 0.0), len(alphas_cumprod) - 1))].to(scaled.dtype)
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    if prediction_type == "v_prediction":
        return signal * scaled - noise * out
    return (scaled - noise * out) / signal
