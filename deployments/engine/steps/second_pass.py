"""Prepares and begins second passes: an image's latents or pixels are enlarged, and denoised again.

The passes are diffusers' text-to-image pipeline and, over the enlarged result, its image-to-image pipeline with a
generator of the same seed. Both are rows of the same engine; the second waits for its place as a preempted row does.
"""

import torch
from torch import Tensor
from torch.nn import functional

from deployments.engine.conditioning.image_encoder import Posterior
from deployments.engine.device.streams import copy_to_device
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import PipelineKind
from deployments.engine.protocol.params import BUILT_IN_UPSCALERS
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.sampler_names import SamplerNotLinear
from deployments.engine.row import Row
from deployments.engine.sampling.latents import draw_noise, initial_state
from deployments.engine.sampling.samplers import DiffusionSchedulerFactory
from deployments.engine.steps.prepare import embed_hints, set_conditions
from deployments.engine.steps.request_state import RequestState, SecondPass
from deployments.engine.upscaling.second_pass_start import enlarge_picture
from deployments.engine.upscaling.upscalers import Upscalers


def check_second_pass(request: Request, model: LoadedModel, upscalers: Upscalers) -> None:
    """Raises EngineError for a second pass that this model or `upscalers` cannot do, as far as that shows at once."""
    if request.params.hires is None:
        return
    sampler = str(request.params.sampler)
    samplers = _samplers_of(request, model)
    if (refusal := samplers.refusal(sampler)) is not None:
        raise refusal
    if not samplers.can_start_from_image(sampler):
        raise SamplerNotLinear("sampler", f"{sampler} begins from noise only with this model, not from pictures")
    if model.guidance_width is not None and request.params.controls:
        raise InvalidParameter("hires", "cannot be combined with ControlNets where a model embeds the guidance scale")
    if request.params.hires.upscaler in BUILT_IN_UPSCALERS or (larger := request.encoded_bucket) is None:
        return
    try:
        bucket = request.bucket
        upscalers.check(request.params.hires.upscaler, bucket.width, bucket.height, (larger.width, larger.height))
    except InvalidParameter as error:
        # The caller has sent no field of that name.
        raise InvalidParameter("hires", f"{error.field} {error.message}") from None


def prepare_second_pass(request: Request, model: LoadedModel) -> SecondPass | None:
    """Returns the second pass of a checked request; None if it has none. Raises InvalidParameter for its steps."""
    second = request.second_pass
    if second is None:
        return None
    params, samplers = second.params, _samplers_of(request, model)
    assert params.sampler is not None
    assert params.strength is not None
    start = samplers.row(params.sampler).start(params.num_inference_steps, params.strength)
    try:
        schedule = samplers.schedule(params.sampler, params.num_inference_steps, start)
    except InvalidParameter as error:
        # The caller has sent no field of that name.
        raise InvalidParameter("hires", f"{error.field} {error.message}") from None
    size = (second.bucket.width, second.bucket.height)
    hints = [enlarge_picture(hint, size) for hint in request.inputs.hints]
    return SecondPass(second, schedule, embed_hints(params, hints, model))


def begin_second_pass(first: Row, request_state: RequestState, model: LoadedModel, posterior: Posterior | None) -> Row:
    """Returns the row of the second pass of a finished `first` one, before its first step.

    `posterior` is the VAE's encoding of the enlarged picture; None enlarges the latents.
    """
    second = request_state.second_pass
    assert second is not None
    request, schedule = second.request, second.schedule
    generator = torch.Generator("cpu").manual_seed(request.seed_of(first.index))
    if posterior is None:
        enlarged = enlarge_latents(first.state[0], request, model.factor)
    else:
        enlarged = copy_to_device(posterior.draw(generator), model.device)
    noise = copy_to_device(draw_noise(generator, *enlarged.shape), model.device)
    row = Row(
        request,
        first.index,
        schedule,
        generator,
        initial_state(schedule.noise_signal * enlarged + schedule.noise_scale * noise),
        request_state.prompt,
        request_state.negative,
        request.guided_evaluations(len(schedule)),
        second.controls,
    )
    row.due, row.was_restarted = first.due, first.was_restarted
    row.steps_before = len(first.schedule)
    row.loras, row.reference = request_state.loras, request_state.reference
    set_conditions(row, model)
    return row


def enlarge_latents(latents: Tensor, request: Request, factor: int) -> Tensor:
    """Returns `latents` [C, h, w] at the request's size, by bilinear interpolation, as A1111's "Latent" does."""
    size = (request.bucket.height // factor, request.bucket.width // factor)
    return functional.interpolate(latents[None], size=size, mode="bilinear")[0]


def _samplers_of(request: Request, model: LoadedModel) -> DiffusionSchedulerFactory:
    """Returns the samplers as diffusers' pipeline for the second pass has them."""
    return model.samplers.of(PipelineKind("image-to-image", bool(request.params.controls)))
