"""The JSON schema of the parameters, with a description of each, for the OpenAPI document."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deployments.engine.protocol.params import GenerationParams
from serve_app.api.responses.json_schema import inline_schema

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "What to draw. `(word:1.2)` weighs a word; `BREAK` starts a new chunk of 77 tokens.",
        "negative_prompt": "What to avoid. Without effect when `guidance_scale` is 1 or less.",
        "width": "Pixels; the model's native size if left out.",
        "height": "Pixels; the model's native size if left out.",
        "num_images": "How many images of this prompt; image i uses `seed + i`.",
        "guidance_scale": "How closely to follow the prompt; 1 or less switches guidance off, for half the work. "
        "A model may have a default of its own, which its row in `/ads/v2/diffusion/models` tells.",
        "num_inference_steps": "Denoising steps. A model may have a default of its own, as for `guidance_scale`.",
        "seed": "The seed of the first image. If left out or -1, one is drawn, and returned in the answer.",
        "model_name": "A name or alias from `/ads/v2/diffusion/models`; the first model if left out.",
        "style_preset": "A name from `/ads/v2/diffusion/styles`, or free text that is appended to the prompt.",
        "sampler": "A name, diffusers class or A1111 label from `/ads/v2/diffusion/samplers`; else the model's own.",
        "clip_skip": "How many of the text encoder's last layers to leave out.",
        "strength": "How far to change the given image, from 0 (exclusive) to 1.",
        "mask_feather": "Pixels inside the mask's edge over which old and new mix.",
        "mask_inverted": "The mask says what is kept, not what is repainted.",
        "mask_fill": "What the masked part begins from, where `strength` is below 1: the image itself (`original`), "
        "the colours around it (`surroundings`), latent `noise`, or `zero` latents.",
        "padding_mask_crop": "Makes only the masked part, with that many pixels around it, at `width` x `height`, and "
        "pastes it back into the image at its own size.",
        "controls": "The ControlNets, one per control image: `type`, `scale`, `start`, `end`, `preprocess`.",
        "reference": "What `reference_images` do: `scale` (1) is how strongly the image takes after them, `start` and "
        "`end` are the shares of the steps between which it does, `weights` are those of several, `adapter` is one of "
        "the model's `ip_adapters`, where it has more than one.",
        "loras": "LoRAs by their names in `/ads/v2/diffusion/loras`, each with a `scale` (1).",
        "guess_mode": "Lets ControlNets act on the prompted half only.",
        "output_format": "The files' format. An `Accept: image/...` header wins over it.",
        "output_quality": "Of a webp or jpeg file; 92 if left out.",
        "metadata": "How much a file tells of how it was made: `minimal` leaves out the prompts.",
        "priority": "Higher ones go first; nothing waits for ever. A `high` image may replace a running `low` one.",
        "cache": "`reuse`: without a seed, any seed's result will do; `similar`: also early states of others whose "
        "prompts were near; `refresh`: a new result; `off`: no caching.",
        "hires": "A second pass over the result, enlarged `scale` times by `upscaler` (`latent`, `lanczos`, or a "
        "name from `/ads/v2/diffusion/upscalers`), with "
        "`strength` and `steps` as in image-to-image.",
        "output_size": "Width and height in pixels that the finished image is resized to, of any shape.",
        "output_fit": "How it becomes that shape: cropped, or padded with its edges' colours.",
        "local_contrast": "Evens out light and dark by regions (CLAHE's clip limit); 0 leaves it as it is, 2 is usual.",
        "contrast": "Multiplies the finished image's contrast.",
        "sharpen": "Sharpens the finished image; 0.5 is usual.",
        "ad_format": "The name of an `output_size`, from `/ads/v2/diffusion/ad-formats`.",
        "template": "The name of a prompt with places, from `/ads/v2/diffusion/templates`.",
        "template_values": "What goes into the template's places, by their names.",
        "guidance_interval": "Guides only the steps from one share of them to another; the others take half the work.",
        "deep_cache": "n > 1 runs the UNet's deep blocks in every n-th step only: quicker, and a slightly other image.",
        "exact": "Makes the bytes of an image independent of what runs beside it, at a higher cost.",
        "deadline_ms": "The request is refused at once if it cannot be ready in time, and dropped when time is up.",
    }
)


def params_schema() -> dict[str, Any]:
    """The JSON schema of `GenerationParams`, with a description of every field."""
    schema = inline_schema(GenerationParams)
    for name, description in _FIELDS.items():
        schema["properties"][name]["description"] = description
    return schema
