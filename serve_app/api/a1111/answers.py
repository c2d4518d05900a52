"""Answers in A1111's form: images in base64, the fields as they were understood, and the rest as a JSON string."""

import json
import time
from typing import Any, Final

from serve_app.api.a1111.fields import GenerationFields
from serve_app.api.a1111.running_jobs import timestamp
from serve_app.api.a1111.sampler_names import split_label
from serve_app.api.parsing.base64_pictures import encode_picture
from serve_app.api.responses.schemas import failure_answer
from serve_app.generation.lora_tags import join_tags
from serve_app.generation.prepared import Prepared
from serve_app.generation.result import Result
from serve_app.labels.parameters_text import parameters_text
from serve_app.observability.versions import darkroom_version

_NOT_THERE: Final = {
    "subseed_strength": 0,
    "restore_faces": False,
    "face_restoration_model": None,
    "sd_model_hash": "",
    "sd_vae_name": None,
    "sd_vae_hash": None,
    "seed_resize_from_w": -1,
    "seed_resize_from_h": -1,
    "is_using_inpainting_conditioning": False,
}


def answer_of(fields: GenerationFields, prepared: Prepared, result: Result | None) -> dict[str, Any]:
    """Returns the answer; without a result, that of a request which was interrupted before it had an image."""
    images = () if result is None or not fields.send_images else result.images
    return {
        "images": [encode_picture(image.data) for image in images],
        "parameters": fields.echo(),
        "info": json.dumps(_info_of(fields, prepared, result), ensure_ascii=False),
    }


def _info_of(fields: GenerationFields, prepared: Prepared, result: Result | None) -> dict[str, Any]:
    asked = prepared.asked if result is None else result.parameters
    images = () if result is None else result.images
    seeds = [image.seed for image in images]
    # The prompt has the styles applied, and its tags, as A1111's has.
    styled = prepared.request.params
    prompt = join_tags(styled.prompt, styled.loras)
    sampler, spacing = split_label(asked.sampler or "")
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(images),
        "negative_prompt": styled.negative_prompt,
        "all_negative_prompts": [styled.negative_prompt] * len(images),
        "seed": seeds[0] if seeds else asked.seed,
        "all_seeds": seeds,
        # A seed of its own would mean a variation, which there is none of.
        "subseed": seeds[0] if seeds else asked.seed,
        "all_subseeds": seeds,
        "width": images[0].width if images else asked.width,
        "height": images[0].height if images else asked.height,
        "sampler_name": sampler,
        "cfg_scale": asked.guidance_scale,
        "steps": asked.num_inference_steps,
        "batch_size": fields.batch_size,
        "sd_model_name": asked.model_name,
        "denoising_strength": asked.strength,
        "extra_generation_params": {"Schedule type": spacing},
        "index_of_first_image": 0,
        "infotexts": [parameters_text(styled, seed=seed) for seed in seeds],
        "styles": list(fields.styles),
        "job_timestamp": timestamp(time.time()),
        "clip_skip": asked.clip_skip + 1,
        "version": f"Darkroom {darkroom_version()}",
        "failures": [] if result is None else [failure_answer(failure) for failure in result.failures],
        **_NOT_THERE,
    }
