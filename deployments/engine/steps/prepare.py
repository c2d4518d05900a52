"""From an accepted request to rows in the tray: what is worked out once per request, and what is drawn per image."""

import time
from dataclasses import replace

import torch
from torch import Tensor

from deployments.engine.conditioning.controlnet import Control
from deployments.engine.conditioning.image_encoder import Posterior, latent_mask
from deployments.engine.models.guidance_embedding import embed_guidance, tells_guidance
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.protocol.sampler_names import SamplerNotLinear
from deployments.engine.row import Row
from deployments.engine.sampling.latents import Blend, draw_noise, initial_state
from deployments.engine.steps.request_state import EncodedInputs, RequestState


def check(request: Request, model: LoadedModel) -> None:
    """Raises EngineError for what this model cannot do, as far as that can be seen without encoding anything."""
    params = request.params
    assert params.sampler is not None
    _check_inputs(request.inputs, request.bucket, model)
    samplers = model.samplers.of(request.pipeline)
    if (refusal := samplers.refusal(params.sampler)) is not None:
        raise refusal
    if request.inputs.image is not None and not samplers.begins_from_pictures(params.sampler):
        raise SamplerNotLinear("sampler", f"{params.sampler} begins from noise only with this model, not from pictures")
    if len(params.controls) != len(request.inputs.hints):
        raise InvalidParameter("control_image", "must be there once for each ControlNet that is asked for")
    for asked in params.controls:
        if asked.type not in model.controlnets:
            known = ", ".join(model.controlnets) or "none"
            raise InvalidParameter("controlnet_type", f"this model has no such ControlNet; it has: {known}")


def with_model_facts(request: Request, model: LoadedModel) -> Request:
    """`request`, with what its model makes of it."""
    params = request.params
    assert params.sampler is not None
    row = model.samplers.of(request.pipeline).row(params.sampler)
    evaluations = row.evaluations(params.num_inference_steps, params.strength)
    embeds = model.guidance_width is not None and tells_guidance(request.pipeline)
    return replace(request, own_evaluations=evaluations, embeds_guidance=embeds)


def prepare(request: Request, model: LoadedModel, arrived: float) -> RequestState:
    """Everything that the images of a request share, which has been checked.

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
    prompt = model.keys.prompt(model.prompts.encode(params.prompt, params.clip_skip, "prompt"))
    negative = None
    if request.unet_rows > 1:
        # diffusers leaves no layers out of the negative prompt, and diffusers' pictures are the law.
        negative = model.keys.prompt(model.prompts.encode(params.negative_prompt, 0, "negative_prompt"))
    given = EncodedInputs(*_encoded(request, model), _controls(params, request.inputs, model))
    return RequestState(request, schedule, prompt, negative, given, arrived, begun)


def begin_row(ongoing: RequestState, index: int, model: LoadedModel) -> Row:
    """Image `index` before its first step. All draws come from its own generator, in the order of diffusers' pipelines:
    the picture's latents, the noise, the masked picture's latents.
    """
    request, schedule, given = ongoing.request, ongoing.schedule, ongoing.given
    generator = torch.Generator("cpu").manual_seed(request.seed_of(index))
    picture = given.picture.draw(generator) if given.picture else None
    bucket = request.bucket
    noise = draw_noise(generator, model.channels, bucket.height // model.factor, bucket.width // model.factor)
    masked = given.masked.draw(generator) if given.masked else None
    if given.mask is not None and masked is None:
        # diffusers encodes the masked picture even for a UNet that never sees it; all that shows of it is this draw.
        draw_noise(generator, *noise.shape)
    if picture is None or _from_noise(request):
        latents = noise * schedule.init_noise_sigma
    else:
        latents = schedule.noise_signal * picture + schedule.noise_scale * noise
    state = initial_state(latents).to(model.device)
    row = Row(request, index, schedule, generator, state, ongoing.prompt, ongoing.negative, given.controls)
    if request.embeds_guidance and model.guidance_width is not None:
        row.guidance = embed_guidance(request.params.guidance_scale, model.guidance_width).to(model.device)
    if given.mask is not None:
        if masked is not None:
            row.channels = torch.cat((given.mask, masked)).to(model.device)
        elif picture is not None:
            row.blend = Blend(picture.to(model.device), noise.to(model.device), given.mask.to(model.device))
    return row


def _from_noise(request: Request) -> bool:
    """Whether the row begins without a trace of the picture; image-to-image always keeps one, even at strength 1."""
    return request.inputs.task == "inpaint" and request.params.strength == 1.0


def _encoded(request: Request, model: LoadedModel) -> tuple[Posterior | None, Posterior | None, Tensor | None]:
    image, mask = request.inputs.image, request.inputs.mask
    if image is None:
        return None, None, None
    # A 9-channel checkpoint that starts from noise never looks at the picture itself, nor draws from it.
    needed = not (model.inpaints_only and _from_noise(request))
    picture = model.pictures.posterior(image) if needed else None
    if mask is None:
        return picture, None, None
    masked = model.pictures.posterior(image, mask) if model.inpaints_only else None
    return picture, masked, latent_mask(mask, model.factor)


def _controls(params: GenerationParams, inputs: Inputs, model: LoadedModel) -> tuple[Control, ...]:
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
    pictures = [("image", inputs.image), ("mask", inputs.mask), *(("control_image", hint) for hint in inputs.hints)]
    for field, picture in pictures:
        if picture is not None and picture.shape[:2] != (bucket.height, bucket.width):
            raise InvalidParameter(field, f"must be {bucket.width} x {bucket.height} pixels, as the request is")
