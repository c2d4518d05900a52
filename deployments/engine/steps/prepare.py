"""Prepares accepted requests: what is computed once per request, and what is drawn per image."""

import time
from dataclasses import replace

import torch

from deployments.engine.conditioning.controlnet import Control
from deployments.engine.conditioning.image_encoder import to_latent_mask
from deployments.engine.models.guidance_embedding import embed_guidance, passes_guidance_scale
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.protocol.sampler_names import SamplerNotLinear
from deployments.engine.row import Row
from deployments.engine.sampling.latents import Blend, draw_noise, initial_state
from deployments.engine.steps.request_state import EncodedInputs, RequestState


def check_request(request: Request, model: LoadedModel) -> None:
    """Raises EngineError for what this model cannot do, as far as that shows before anything is encoded."""
    params = request.params
    assert params.sampler is not None
    _check_inputs(request.inputs, request.bucket, model)
    samplers = model.samplers.of(request.pipeline)
    if (refusal := samplers.refusal(params.sampler)) is not None:
        raise refusal
    if request.inputs.image is not None and not samplers.can_start_from_image(params.sampler):
        raise SamplerNotLinear("sampler", f"{params.sampler} begins from noise only with this model, not from pictures")
    if len(params.controls) != len(request.inputs.hints):
        raise InvalidParameter("control_image", "must be there once for each ControlNet that is asked for")
    for asked in params.controls:
        if asked.type not in model.controlnets:
            known = ", ".join(model.controlnets) or "none"
            raise InvalidParameter("controlnet_type", f"this model has no such ControlNet; it has: {known}")


def with_model_facts(request: Request, model: LoadedModel) -> Request:
    """Returns `request` with the facts filled in that depend on its model."""
    params = request.params
    assert params.sampler is not None
    row = model.samplers.of(request.pipeline).row(params.sampler)
    evaluations = row.evaluations(params.num_inference_steps, params.strength)
    embeds = model.guidance_width is not None and passes_guidance_scale(request.pipeline)
    return replace(request, own_evaluations=evaluations, embeds_guidance=embeds)


def prepare(request: Request, model: LoadedModel, arrived: float) -> RequestState:
    """Computes everything that the images of a checked request share.

    `arrived` is in `time.perf_counter` seconds. Raises InvalidParameter for steps, strength and prompts.
    """
    begun = time.perf_counter()
    params = request.params
    assert params.sampler is not None
    samplers = model.samplers.of(request.pipeline)
    start = None
    if params.strength is not None:
        start = samplers.row(params.sampler).start(params.num_inference_steps, params.strength)
    schedule = samplers.schedule(params.sampler, params.num_inference_steps, start)
    prompt = model.attention_cache.project(model.prompt_encoder.encode(params.prompt, params.clip_skip, "prompt"))
    negative = None
    if request.unet_rows > 1:
        # diffusers skips no layers for the negative prompt, and diffusers' images are the reference.
        negative = model.attention_cache.project(
            model.prompt_encoder.encode(params.negative_prompt, 0, "negative_prompt")
        )
    inputs = _encode_inputs(request, model)
    return RequestState(request, schedule, prompt, negative, inputs, arrived, begun)


def begin_row(request_state: RequestState, index: int, model: LoadedModel) -> Row:
    """Returns the row of image `index`, before its first step.

    All draws come from the row's own generator, in the order of diffusers' pipelines: the image's latents, the noise,
    the masked image's latents.
    """
    request, schedule, inputs = request_state.request, request_state.schedule, request_state.inputs
    generator = torch.Generator("cpu").manual_seed(request.seed_of(index))
    image = inputs.image.draw(generator) if inputs.image else None
    bucket = request.bucket
    noise = draw_noise(generator, model.channels, bucket.height // model.factor, bucket.width // model.factor)
    masked = inputs.masked_image.draw(generator) if inputs.masked_image else None
    if inputs.mask is not None and masked is None:
        # diffusers encodes the masked image even for a UNet that never sees it; its only trace is this draw.
        draw_noise(generator, *noise.shape)
    if image is None or _starts_from_noise(request):
        latents = noise * schedule.init_noise_sigma
    else:
        latents = schedule.noise_signal * image + schedule.noise_scale * noise
    state = initial_state(latents).to(model.device)
    row = Row(request, index, schedule, generator, state, request_state.prompt, request_state.negative, inputs.controls)
    if request.embeds_guidance and model.guidance_width is not None:
        row.guidance = embed_guidance(request.params.guidance_scale, model.guidance_width).to(model.device)
    if inputs.mask is not None:
        if masked is not None:
            row.channels = torch.cat((inputs.mask, masked)).to(model.device)
        elif image is not None:
            row.blend = Blend(image.to(model.device), noise.to(model.device), inputs.mask.to(model.device))
    return row


def _starts_from_noise(request: Request) -> bool:
    """Returns True if the row starts without a trace of the image.

    Image-to-image always keeps one, even at strength 1.
    """
    return request.inputs.task == "inpaint" and request.params.strength == 1.0


def _encode_inputs(request: Request, model: LoadedModel) -> EncodedInputs:
    image, mask = request.inputs.image, request.inputs.mask
    controls = _embed_hints(request.params, request.inputs, model)
    if image is None:
        return EncodedInputs(controls=controls)
    encoder = model.image_encoder
    # A 9-channel checkpoint that starts from noise never sees the image itself, nor draws from it.
    is_needed = not (model.inpaints_only and _starts_from_noise(request))
    return EncodedInputs(
        image=encoder.encode(image) if is_needed else None,
        masked_image=encoder.encode(image, mask) if mask is not None and model.inpaints_only else None,
        mask=None if mask is None else to_latent_mask(mask, model.factor),
        controls=controls,
    )


def _embed_hints(params: GenerationParams, inputs: Inputs, model: LoadedModel) -> tuple[Control, ...]:
    nets = [model.controlnets[asked.type] for asked in params.controls]
    return tuple(
        Control(net, net.embed(hint), asked.scale, asked.start, asked.end, params.guess_mode)
        for net, asked, hint in zip(nets, params.controls, inputs.hints, strict=True)
    )


def _check_inputs(inputs: Inputs, bucket: Bucket, model: LoadedModel) -> None:
    if model.inpaints_only and inputs.task != "inpaint":
        raise InvalidParameter("model_name", "this model only inpaints: it needs an image and a mask")
    if inputs.mask is not None and inputs.image is None:
        raise InvalidParameter("image", "a mask needs the image that it belongs to")
    arrays = [("image", inputs.image), ("mask", inputs.mask), *(("control_image", hint) for hint in inputs.hints)]
    for field, array in arrays:
        if array is not None and array.shape[:2] != (bucket.height, bucket.width):
            raise InvalidParameter(field, f"must be {bucket.width} x {bucket.height} pixels, as the request is")
