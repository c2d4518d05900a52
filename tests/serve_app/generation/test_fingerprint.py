"""Two requests have the same fingerprint if and only if their images are the same."""

from dataclasses import replace
from typing import Any

import pytest

from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import SERVICE_FIELDS, GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ControlSettings, HiresSettings, LoraSettings, ReferenceSettings
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec, PartSpec
from serve_app.generation import fingerprint
from serve_app.generation.fingerprint import Fingerprint, fingerprint_of

SPEC = ModelSpec("tiny", "maker/tiny", revision="abc", native_size=64, controlnets={"canny": PartSpec("nets/canny")})
PARAMS = GenerationParams(
    prompt="a cup", width=64, height=64, seed=7, model_name="tiny", sampler="ddim", style_preset="luxury"
)
REQUEST = Request("r1", PARAMS, uploads=Uploads(image=b"image"))

# Whatever is not here decides the pixels, or nobody has thought about it.
# The prompt that they make is what counts.
IN_THE_PROMPT = {"style_preset": "LUXURY", "template": "product_photo", "template_values": (("product_name", "a cup"),)}
NOT_PIXELS = {**dict.fromkeys(SERVICE_FIELDS), **IN_THE_PROMPT}

OTHER_PARAMS: dict[str, Any] = {
    "prompt": "a cups",
    "negative_prompt": "a cup",
    "width": 128,
    "height": 128,
    "num_images": 2,
    "guidance_scale": 7.0,
    "num_inference_steps": 51,
    "seed": 8,
    "model_name": "other",
    "sampler": "pndm",
    "clip_skip": 1,
    "strength": 0.5,
    "mask_feather": 1,
    "controls": (ControlSettings(type="canny"),),
    "guess_mode": True,
    "reference": ReferenceSettings(scale=0.5),
    "loras": (LoraSettings(name="coffee"),),
    "output_format": "webp",
    "exact": True,
    "deep_cache": 2,
    "mask_inverted": True,
    "mask_fill": "noise",
    "padding_mask_crop": 0,
    "hires": HiresSettings(),
    "output_size": (300, 250),
    "output_fit": "pad",
    "ad_format": "billboard",
    "local_contrast": 2.0,
    "contrast": 1.1,
    "sharpen": 0.5,
    "guidance_interval": (0.2, 0.8),
    "output_quality": 80,
    "metadata": "none",
}
OTHER_UPLOADS: dict[str, Any] = {
    "image": b"images",
    "mask": b"image",
    "mask_type": "center",
    "hints": (b"image",),
    "references": (b"image",),
    "preprocess": True,
    "fit": "pad",
}


def of(request: Request = REQUEST, spec: ModelSpec = SPEC, setting: Any = None) -> Fingerprint:
    return fingerprint_of(request, spec, setting)


def test_every_parameter_is_thought_of() -> None:
    assert set(OTHER_PARAMS) | set(NOT_PIXELS) == set(GenerationParams.model_fields)


@pytest.mark.parametrize("name", OTHER_PARAMS)
def test_every_parameter_that_decides_the_pixels_counts(name: str) -> None:
    other = REQUEST.params.model_copy(update={name: OTHER_PARAMS[name]})
    assert of(replace(REQUEST, params=other)) != of()
    assert of(replace(REQUEST, params=other)).key != of().key


@pytest.mark.parametrize("name", OTHER_UPLOADS)
def test_every_picture_and_what_is_done_with_it_counts(name: str) -> None:
    assert REQUEST.uploads is not None
    other = replace(REQUEST, uploads=replace(REQUEST.uploads, **{name: OTHER_UPLOADS[name]}))
    assert of(other).work_key != of().work_key


def test_how_reference_images_act_and_in_which_order_they_come_counts() -> None:
    def with_references(reference: ReferenceSettings, *files: bytes) -> str:
        params = PARAMS.model_copy(update={"reference": reference})
        return of(Request("r", params, uploads=Uploads(references=files))).work_key

    plain = ReferenceSettings()
    others = (ReferenceSettings(start=0.1), ReferenceSettings(end=0.5), ReferenceSettings(weights=(1.0, 0.5)))
    keys = [with_references(each, b"a", b"b") for each in (plain, *others, ReferenceSettings(adapter="face"))]
    keys += [with_references(plain, b"b", b"a"), with_references(plain, b"a"), with_references(plain, b"ab")]
    assert len(set(keys)) == len(keys)
    assert with_references(plain, b"a") == with_references(ReferenceSettings(scale=1.0), b"a")


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, source="maker/other"),
        replace(SPEC, revision="def"),
        replace(SPEC, revision=None),
        replace(SPEC, parts={"vae": "another/vae"}),
        replace(SPEC, controlnets={"canny": PartSpec("nets/canny", "abc")}),
        replace(SPEC, controlnets={"canny": PartSpec("nets/canny", mode=3)}),
        replace(SPEC, file="one.safetensors"),
        replace(SPEC, vae_tiling=True),
        replace(SPEC, local_digest="of files that were replaced"),
        replace(SPEC, ip_adapters={"style": IpAdapterSpec("maker/style", "maker/encoder")}),
    ],
)
def test_the_weights_count(spec: ModelSpec) -> None:
    assert of(spec=spec).work_key != of().work_key


@pytest.mark.parametrize(
    "use",
    [
        LoraUse(LoraFile("coffee", "/x.safetensors", digest="1" * 64), 1.0),
        LoraUse(LoraFile("coffee", "/x.safetensors", digest="2" * 64), 0.5),
        LoraUse(LoraFile("coffee", "maker/x", "a" * 40, "x.safetensors"), 1.0),
        LoraUse(LoraFile("coffee", "maker/x", "b" * 40, "x.safetensors"), 1.0),
        LoraUse(LoraFile("coffee", "maker/x", "b" * 40, "y.safetensors"), 1.0),
    ],
)
def test_the_weights_behind_a_loras_name_count(use: LoraUse) -> None:
    """A file that was replaced under its name makes other images."""
    plain = LoraUse(LoraFile("coffee", "/x.safetensors", digest="2" * 64), 1.0)
    assert of(replace(REQUEST, loras=(use,))).work_key != of(replace(REQUEST, loras=(plain,))).work_key
    moved = LoraUse(LoraFile("coffee", "/y.safetensors", digest="2" * 64), 1.0)
    assert of(replace(REQUEST, loras=(moved,))) == of(replace(REQUEST, loras=(plain,)))


def test_the_tenant_the_setting_and_the_numerics_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(replace(REQUEST, tenant="other")).work_key != of().work_key
    assert of(setting={"dtype": "float16"}).work_key != of().work_key
    before = of()
    monkeypatch.setattr(fingerprint, "NUMERICS_VERSION", 10**6)
    assert of().work_key != before.work_key


def test_how_it_is_served_does_not_count() -> None:
    served = {"priority": "high", "deadline_ms": 10, "cache": "reuse", **IN_THE_PROMPT}
    assert set(served) == set(NOT_PIXELS)
    params = REQUEST.params.model_copy(update=served)
    assert REQUEST.uploads is not None
    files = replace(REQUEST.uploads, image_field="init_image")
    assert of(Request("r2", params, previews=3, uploads=files)) == of()
    assert of(spec=replace(SPEC, aliases=("a/name",), licence="MIT", max_pixels=4096)) == of()


def test_nothing_can_pass_from_one_field_into_the_next() -> None:
    pairs = [("a", "b,c"), ("a,b", "c"), ('a","negative_prompt":"b', "c"), ("a", 'b"'), ("a\\", "b"), ("a", "\\b")]
    params = [PARAMS.model_copy(update={"prompt": prompt, "negative_prompt": other}) for prompt, other in pairs]
    tenants = [replace(REQUEST, params=each) for each in params]
    assert len({of(each).key for each in tenants}) == len(pairs)


def test_seeds_differ_and_the_work_is_the_same() -> None:
    other = of(replace(REQUEST, params=PARAMS.model_copy(update={"seed": 8})))
    assert (other.work_key, other.key != of().key) == (of().work_key, True)
