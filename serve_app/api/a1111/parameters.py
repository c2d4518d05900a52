"""Translates a request of A1111's clients: the parameters and pictures that we know."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Fit, MaskAlpha, Uploads
from deployments.engine.protocol.params import GenerationParams, MaskFill
from deployments.engine.protocol.settings import MAX_STEPS
from deployments.engine.protocol.spec import ModelSpec
from deployments.uploads.image_files import has_transparency
from serve_app.api.a1111.fields import HR_UPSCALERS, GenerationFields, ImageToImageFields, TextToImageFields
from serve_app.api.a1111.options import Options
from serve_app.api.a1111.sampler_names import find_sampler
from serve_app.api.a1111.units import FIELD, Units, read_units
from serve_app.api.parsing.base64_pictures import decode_picture
from serve_app.api.parsing.validation import read_params
from serve_app.generation.lora_tags import split_tags
from serve_app.generation.sizes import fit_scale, fit_to_model
from serve_app.generation.styles import STYLES

# Latent upscaling is for sizes that differ from the picture's, which is the same as stretching it for what is made.
_FITS: Final[tuple[Fit, ...]] = ("stretch", "cover", "pad", "stretch")
# Sides are whole steps of eight pixels: two shapes that differ by less are the same.
_SAME_SHAPE: Final = 0.05

_FILLS: Final[tuple[MaskFill, ...]] = ("surroundings", "original", "noise", "zero")


@dataclass(frozen=True, slots=True)
class TranslatedRequest:
    """A request as it was understood."""

    fields: GenerationFields
    params: GenerationParams
    uploads: Uploads | None


def translate_request(
    fields: GenerationFields,
    options: Options,
    spec: ModelSpec,
    controlnets: Sequence[str],
    adapters: Sequence[str] = (),
    upscalers: Sequence[str] = (),
) -> TranslatedRequest:
    """Returns the request in our terms, for the model that it is for, whose weights have `controlnets` and the
    IP-Adapters `adapters`.

    `upscalers` are the networks that enlarge pictures. Raises InvalidParameter and Problem 422.
    """
    units = read_units(fields.alwayson_scripts, controlnets, adapters)
    uploads = _uploads_of(fields, units)
    given = _shared_parameters(fields, options, spec)
    match fields:
        case ImageToImageFields():
            given |= _image_parameters(fields)
        case TextToImageFields(enable_hr=True):
            upscaler = _find_upscaler(fields.hr_upscaler, upscalers)
            given["hires"] = _second_pass(fields, upscaler, given["width"], given["height"], spec)
    given |= {"controls": units.controls, "guess_mode": units.guess_mode, "reference": units.reference}
    return TranslatedRequest(fields, read_params(given), uploads)


def _shared_parameters(fields: GenerationFields, options: Options, spec: ModelSpec) -> dict[str, Any]:
    width, height = fit_to_model(fields.width, fields.height, spec)
    tagged = split_tags(fields.prompt)
    layers = fields.override_settings.clip_layers or options.clip_layers
    return {
        "prompt": tagged.prompt,
        "loras": tagged.loras,
        "negative_prompt": fields.negative_prompt,
        "width": width,
        "height": height,
        "num_images": fields.num_images,
        **_asked_of_model(fields, spec),
        "seed": fields.seed,
        "model_name": spec.name,
        # Several are one text, as A1111 appends them all.
        "style_preset": ", ".join(STYLES[name.casefold()].text for name in fields.styles) or None,
        "sampler": find_sampler(fields.sampler, fields.scheduler),
        "clip_skip": max(layers, 1) - 1,
        "output_format": options.output_format,
    }


def _asked_of_model(fields: GenerationFields, spec: ModelSpec) -> dict[str, Any]:
    """Returns steps and guidance: those of the fields, or nothing where the caller leaves them to a model that has
    defaults of its own.
    """
    asked: dict[str, Any] = {}
    if spec.default_steps is None or "steps" in fields.model_fields_set:
        asked["num_inference_steps"] = fields.steps
    if spec.default_guidance_scale is None or "cfg_scale" in fields.model_fields_set:
        asked["guidance_scale"] = fields.cfg_scale
    return asked


def _find_upscaler(asked: str, upscalers: Sequence[str]) -> str:
    if asked in HR_UPSCALERS:
        return HR_UPSCALERS[asked]
    if asked not in upscalers:
        raise InvalidParameter("hr_upscaler", f"must be one of {', '.join((*HR_UPSCALERS, *upscalers))}")
    return asked


def _second_pass(
    fields: TextToImageFields, upscaler: str, width: int, height: int, spec: ModelSpec
) -> dict[str, Any] | None:
    """Returns the second pass; a smaller one, or none, where the model cannot make what is asked for."""
    scale = _scale_of(fields) * fields.width / width
    larger = fit_scale(width, height, scale, spec)
    if larger is None:
        return None
    # There the steps are those that are made; here those of the whole schedule, of which the strength leaves a share.
    steps = ceil((fields.hr_second_pass_steps or fields.steps) / fields.denoising_strength)
    strength = fields.denoising_strength
    return {"scale": larger, "upscaler": upscaler, "strength": strength, "steps": min(steps, MAX_STEPS)}


def _scale_of(fields: TextToImageFields) -> float:
    """Returns how much larger the second pass is. Raises InvalidParameter for sides of another shape."""
    scales = [
        asked / side
        for asked, side in ((fields.hr_resize_x, fields.width), (fields.hr_resize_y, fields.height))
        if asked
    ]
    if len(scales) > 1 and abs(scales[0] / scales[1] - 1) > _SAME_SHAPE:
        raise InvalidParameter("hr_resize_y", "must keep the shape of width and height")
    return scales[0] if scales else fields.hr_scale


def _image_parameters(fields: ImageToImageFields) -> dict[str, Any]:
    given: dict[str, Any] = {"strength": fields.denoising_strength}
    if fields.mask:
        given |= {
            # A1111's blur is a Gaussian's standard deviation to both sides of the edge, ours the pixels inside it.
            "mask_feather": min(2 * fields.blur, 256),
            "mask_inverted": fields.inpainting_mask_invert,
            "mask_fill": _FILLS[fields.inpainting_fill],
        }
        if fields.inpaint_full_res:
            given["padding_mask_crop"] = fields.inpaint_full_res_padding
    return given


def _uploads_of(fields: GenerationFields, units: Units) -> Uploads | None:
    image = mask = None
    alpha: MaskAlpha | None = None
    fit: Fit = "cover"
    if isinstance(fields, ImageToImageFields):
        image = decode_picture(fields.init_images[0], "init_images")
        mask = decode_picture(fields.mask, "mask") if fields.mask else None
        # As there, transparency goes before colours: what is visible is repainted.
        alpha = "strokes" if mask is not None and has_transparency(mask, "mask") else None
        fit = _FITS[fields.resize_mode]
    if image is None and not units.controls and not units.references:
        return None
    hints, references = ([each or image for each in pictures] for pictures in (units.hints, units.references))
    if None in hints or None in references:
        raise InvalidParameter(FIELD, "must have an image for each ControlNet")
    uploads = Uploads(image=image, mask=mask, mask_alpha=alpha, fit=fit, image_field="init_images")
    # Only one of the two ways to fit pictures can apply: that of the image that is changed.
    own_fit = fit if image is not None or units.fit is None else units.fit
    return replace(
        uploads,
        hints=tuple(hint for hint in hints if hint is not None),
        references=tuple(each for each in references if each is not None),
        fit=own_fit,
    )
