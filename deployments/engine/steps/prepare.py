"""Prepares accepted requests: what is computed once per request, and what is drawn per image."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from deployments.engine.conditioning.added_conditions import sizes_of
from deployments.engine.conditioning.controlnet import Control
from deployments.engine.conditioning.cross_attention import EncodedPrompt
from deployments.engine.conditioning.image_encoder import to_latent_mask
from deployments.engine.device.streams import copy_to_device
from deployments.engine.ip_adapter.adapter import IpAdapter
from deployments.engine.ip_adapter.reference import Reference
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.models.guidance_embedding import embed_guidance, passes_guidance_scale
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.protocol.sampler_names import SamplerNotLinear
from deployments.engine.protocol.settings import MAX_REFERENCES, ReferenceSettings
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
    if params.guidance_interval is not None and (params.guidance_scale <= 1 or _embeds_guidance(request, model)):
        raise InvalidParameter("guidance_interval", "is for images with guidance only: a `guidance_scale` above 1")
    if params.deep_cache > 1 and params.controls:
        raise InvalidParameter("deep_cache", "cannot be combined with ControlNets, which act on the deep blocks")
    if params.deep_cache > 1 and model.deep_cache is None:
        raise InvalidParameter("deep_cache", "is not for this model: its UNet has other blocks than Stable Diffusion's")
    _check_references(params.reference, len(request.inputs.references), model)
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
    return replace(request, own_evaluations=evaluations, embeds_guidance=_embeds_guidance(request, model))


def _embeds_guidance(request: Request, model: LoadedModel) -> bool:
    return model.guidance_width is not None and passes_guidance_scale(request.pipeline)


def prepare(
    request: Request,
    model: LoadedModel,
    arrived: float,
    loras: LoraSet | None = None,
    ip_adapter: IpAdapter | None = None,
) -> RequestState:
    """Computes everything that the images of a checked request share; `loras` are its LoRAs.

    `ip_adapter` is that of its reference: nothing is read or loaded here, for others wait meanwhile. `arrived` is in
    `time.perf_counter` seconds. Raises InvalidParameter for steps, strength and prompts.
    """
    begun = time.perf_counter()
    params = request.params
    assert params.sampler is not None
    samplers = model.samplers.of(request.pipeline)
    start = None
    if params.strength is not None:
        start = samplers.row(params.sampler).start(params.num_inference_steps, params.strength)
    schedule = samplers.schedule(params.sampler, params.num_inference_steps, start)
    prompt = _encode_prompt(request, model, "prompt", params.clip_skip, loras)
    negative = None
    if request.unet_rows > 1:
        # diffusers skips no layers for the negative prompt, and diffusers' images are the reference.
        negative = _encode_prompt(request, model, "negative_prompt", 0, loras)
    inputs, reference = _encode_inputs(request, model), _encode_references(request, ip_adapter)
    return RequestState(request, schedule, prompt, negative, inputs, arrived, begun, loras, reference)


def _encode_prompt(
    request: Request,
    model: LoadedModel,
    field: Literal["prompt", "negative_prompt"],
    clip_skip: int,
    loras: LoraSet | None,
) -> EncodedPrompt:
    text = request.params.prompt if field == "prompt" else request.params.negative_prompt
    nothing = model.prompt_encoder.nothing if field == "negative_prompt" and not text else None
    encoded = nothing or model.prompt_encoder.encode(text, clip_skip, field, loras, request.embeddings)
    cache = model.attention_cache
    if loras is None:
        return cache.project(encoded.states, pooled=encoded.pooled)
    return cache.project(encoded.states, loras.projections, loras.projection_key, encoded.pooled)


def _encode_references(request: Request, ip_adapter: IpAdapter | None) -> Reference | None:
    asked = request.params.reference
    if asked is None:
        return None
    assert ip_adapter is not None
    return ip_adapter.refer(request.inputs.references, asked, guided=request.unet_rows > 1)


def begin_row(request_state: RequestState, index: int, model: LoadedModel) -> Row:
    """Returns the row of image `index`, before its first step.

    All draws come from the row's own generator, in the order of diffusers' pipelines: the image's latents, the noise,
    the masked image's latents. Behind them comes what diffusers does not have, the noise of `mask_fill`.
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
    begin = image
    if image is not None and inputs.mask is not None:
        begin = _fill_latents(request, image, inputs.mask, generator)
    if begin is None or _starts_from_noise(request):
        latents = noise * schedule.init_noise_sigma
    else:
        latents = schedule.noise_signal * begin + schedule.noise_scale * noise
    state = copy_to_device(initial_state(latents), model.device)
    row = Row(
        request,
        index,
        schedule,
        generator,
        state,
        request_state.prompt,
        request_state.negative,
        request.guided_evaluations(len(schedule)),
        inputs.controls,
    )
    if request_state.second_pass is not None:
        row.steps_after = len(request_state.second_pass.schedule)
    row.loras, row.reference, row.epoch = request_state.loras, request_state.reference, request_state.epoch
    if (neighbour := request_state.continued.get(index)) is not None:
        row.state = copy_to_device(neighbour.saved.state, model.device)
        row.step = row.first_step = neighbour.saved.step
    set_conditions(row, model)
    if inputs.mask is not None:
        if masked is not None:
            row.channels = copy_to_device(torch.cat((inputs.mask, masked)), model.device)
        elif image is not None:
            row.blend = Blend(*(copy_to_device(each, model.device) for each in (image, noise, inputs.mask)))
    return row


def restart_row(row: Row, request_state: RequestState, model: LoadedModel) -> Row:
    """Returns the row that makes the image of `row` once more, from noise of its own."""
    request_state.continued.pop(row.index, None)
    restarted = begin_row(request_state, row.index, model)
    restarted.due, restarted.was_restarted = row.due, True
    return restarted


def set_conditions(row: Row, model: LoadedModel) -> None:
    """Gives a row the embedding of its guidance scale, and its size, if its model takes them."""
    if row.request.embeds_guidance and model.guidance_width is not None:
        embedded = embed_guidance(row.request.params.guidance_scale, model.guidance_width)
        row.guidance = copy_to_device(embedded, model.device)
    if model.pooled_width is not None:
        bucket = row.request.bucket
        row.sizes = copy_to_device(sizes_of(bucket.height, bucket.width), model.device)


def _fill_latents(request: Request, image: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the latents `image` [C, h, w] with what the request's `mask_fill` puts inside `mask` [1, h, w]."""
    match request.params.mask_fill:
        case "noise":
            return torch.where(mask > 0, draw_noise(generator, *image.shape), image)
        case "zero":
            return torch.where(mask > 0, torch.zeros_like(image), image)
        case _:
            return image


def _starts_from_noise(request: Request) -> bool:
    """Returns True if the row starts without a trace of the image.

    Image-to-image always keeps one, even at strength 1.
    """
    return request.inputs.task == "inpaint" and request.params.strength == 1.0


def _encode_inputs(request: Request, model: LoadedModel) -> EncodedInputs:
    image, mask = request.inputs.image, request.inputs.mask
    controls = embed_hints(request.params, request.inputs.hints, model)
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


def embed_hints(params: GenerationParams, hints: Sequence[ImageArray], model: LoadedModel) -> tuple[Control, ...]:
    """Returns the ControlNets of `params` with their hints, [H, W, 3] each."""
    nets = [model.controlnets[asked.type] for asked in params.controls]
    return tuple(
        Control(net, net.embed(hint), asked.scale, asked.start, asked.end, params.guess_mode)
        for net, asked, hint in zip(nets, params.controls, hints, strict=True)
    )


def _check_references(asked: ReferenceSettings | None, images: int, model: LoadedModel) -> None:
    if asked is None:
        if images:
            raise InvalidParameter("reference_images", "are for requests with a `reference` only")
        return
    if not images:
        raise InvalidParameter("reference", "needs pictures: give them as `reference_images`")
    if images > MAX_REFERENCES:
        raise InvalidParameter("reference_images", f"must be at most {MAX_REFERENCES}, got {images}")
    if asked.weights and len(asked.weights) != images:
        raise InvalidParameter("reference", f"must have no `weights` or one for each of the {images} reference images")
    model.ip_adapters.resolve(asked)


def _check_inputs(inputs: Inputs, bucket: Bucket, model: LoadedModel) -> None:
    if model.inpaints_only and inputs.task != "inpaint":
        raise InvalidParameter("model_name", "this model only inpaints: it needs an image and a mask")
    if inputs.mask is not None and inputs.image is None:
        raise InvalidParameter("image", "a mask needs the image that it belongs to")
    arrays = [("image", inputs.image), ("mask", inputs.mask), *(("control_image", hint) for hint in inputs.hints)]
    for field, array in arrays:
        if array is not None and array.shape[:2] != (bucket.height, bucket.width):
            raise InvalidParameter(field, f"must be {bucket.width} x {bucket.height} pixels, as the request is")
