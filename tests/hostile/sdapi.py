"""Rows about the endpoints for A1111's and Hugging Face's clients: pictures as text, fields that say nothing."""

import base64
import json
from typing import Any, Final

from tests.deployments.uploads.test_image_files import file_of, gradient, png_claiming
from tests.hostile.pictures import FIELD, SVG, flat, png
from tests.hostile.rows import Row, got, said

TEXT: Final = "/sdapi/v1/txt2img"
IMAGE: Final = "/sdapi/v1/img2img"
INFERENCE: Final = "/hf/tiny"
PNG: Final = (("Content-Type", "image/png"),)
EXTRA: Final = "/sdapi/v1/extra-single-image"
PNG_INFO: Final = "/sdapi/v1/png-info"
INSIDE: Final = "http://169.254.169.254/SECRET"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


GOOD: Final = encoded(file_of(gradient()))
SURROGATE: Final = png(64, 64, (b"tEXt", b'parameters\0Steps: 2, Sampler: a, X: "\\ud800", Seed: 3'), idat=flat(64, 64))
NO_MODEL: Final = {"override_settings": {"sd_model_checkpoint": "../SECRET"}}
SIZE: Final = {"width": 64, "height": 64}


def text(name: str, fields: dict[str, Any], status: int = 422, code: str | None = None, param: str = "") -> Row:
    body = json.dumps({"prompt": "SECRET cup", **SIZE} | fields).encode()
    return said(name, body, status, code, param or None, door=TEXT)


def picture(name: str, image: Any, status: int = 422, param: str = "init_images", code: str = "invalid_value") -> Row:
    body = json.dumps({"prompt": "SECRET cup", "init_images": [image], **SIZE}).encode()
    return said(name, body, status, None if status == 200 else code, None if status == 200 else param, door=IMAGE)


def inference(
    name: str, body: Any, status: int = 422, code: str | None = FIELD, param: str = "", door: str = "/hf/tiny"
) -> Row:
    return said(name, json.dumps(body).encode(), status, None if status == 200 else code, param or None, door=door)


def unit(name: str, fields: Any, status: int = 422, code: str | None = None, param: str = "alwayson_scripts") -> Row:
    return text(name, {"alwayson_scripts": {"ControlNet": {"args": [fields]}}}, status, code, param)


ROWS: Final = (
    text("a picture for A1111's client", {}, 200),
    text("fields that nobody knows", {"SECRET": ["SECRET"], "url": INSIDE, "save_images": True}, 200),
    text("nulls for everything", dict.fromkeys(("styles", "sampler_name", "hr_scale", "script_name", "width")), 200),
    text("numbers as texts", {"steps": "20", "cfg_scale": "7.5"}, 200),
    text("a billion batches", {"n_iter": 10**9}, code="too_large", param="n_iter"),
    text("seventeen in batches", {"n_iter": 9, "batch_size": 2}, code="invalid_value"),
    text("a width of a billion", {"width": 10**9}, code="too_large", param="width"),
    text("a seed of eighty digits", {"seed": 10**80}, param="seed"),
    text("steps that are a list", {"steps": ["SECRET"]}, param="steps"),
    text("a prompt that is a number", {"prompt": 7}, code="wrong_type", param="prompt"),
    text("a prompt of a megabyte", {"prompt": "SECRET" * 200_000}, code="too_long", param="prompt"),
    text("a prompt that cannot be encoded", {"prompt": "\ud800"}, code="invalid_unicode", param="prompt"),
    text("a LoRA that is a path", {"prompt": "<lora:../../SECRET:1>"}, code="invalid_value", param="prompt"),
    text("a sampler that is a path", {"sampler_name": "../SECRET"}, code="invalid_parameter", param="sampler_name"),
    text("a style that is a path", {"styles": ["../SECRET"]}, code="invalid_value", param="styles"),
    text(
        "a model of A1111's that is a path",
        {"override_settings": {"sd_model_checkpoint": "../SECRET"}},
        404,
        "model_not_found",
    ),
    text("settings that are a list", {"override_settings": ["SECRET"]}, code="wrong_type", param="override_settings"),
    text("scripts that are a list", {"alwayson_scripts": ["SECRET"]}, param="alwayson_scripts"),
    text("a script of ours that is a text", {"alwayson_scripts": {"ControlNet": "SECRET"}}, param="alwayson_scripts"),
    text("a script that nobody knows", {"alwayson_scripts": {"SECRET": {"args": [True]}}}, param="alwayson_scripts"),
    text("a thousand units", {"alwayson_scripts": {"ControlNet": {"args": [{}] * 1000}}}, param="alwayson_scripts"),
    unit("a unit that is a text", "SECRET"),
    unit("a unit whose picture is an address", {"module": "canny", "image": INSIDE}),
    unit("a unit whose picture is a list", {"module": "canny", "image": ["SECRET"]}, param=""),
    unit("a unit whose network is a path", {"model": "../../SECRET", "image": GOOD}),
    picture("a picture for A1111's client to change", GOOD, 200),
    picture("the same as a data URL", f"data:image/png;base64,{GOOD}", 200),
    picture("an address to fetch", INSIDE, code="invalid_parameter"),
    picture("a file to read", "file:///etc/passwd", code="invalid_parameter"),
    picture("a data URL of text", "data:text/html,<script>SECRET</script>", code="invalid_parameter"),
    picture(
        "a data URL in a data URL", f"data:image/png;base64,data:image/png;base64,{GOOD}", code="invalid_parameter"
    ),
    picture("an empty picture", "", code="invalid_parameter"),
    picture("a picture in half base64", GOOD[:-3], code="invalid_parameter"),
    picture("a bomb in base64", encoded(png_claiming(60_000, 60_000)), code="invalid_parameter"),
    picture("an SVG in base64", encoded(SVG), code="invalid_parameter"),
    picture("a picture that is an object", {"url": INSIDE}, code="wrong_type", param="init_images/0"),
    said("no picture to change", b'{"prompt": "SECRET"}', 422, "required", "init_images", door=IMAGE),
    said("a generation of A1111's twice", b'{"prompt": "a", "prompt": "b"}', 422, "duplicate_key", door=TEXT),
    said("a generation of A1111's that is a list", b'["SECRET"]', 422, "wrong_type", door=TEXT),
    said("options that are a list", b'["SECRET"]', 422, "wrong_type", door="/sdapi/v1/options"),
    said(
        "a model of the options that is not there",
        b'{"sd_model_checkpoint": "SECRET"}',
        404,
        "model_not_found",
        "override_settings/sd_model_checkpoint",
        door="/sdapi/v1/options",
    ),
    said("nothing to enlarge", b"{}", 422, "required", "image", door=EXTRA),
    said(
        "a picture to enlarge a thousand times",
        json.dumps({"image": GOOD, "upscaling_resize": 1000}).encode(),
        422,
        "too_large",
        "upscaling_resize",
        door=EXTRA,
    ),
    said(
        "an upscaler that is a path",
        json.dumps({"image": GOOD, "upscaler_1": "../SECRET"}).encode(),
        422,
        FIELD,
        "upscaler_1",
        door=EXTRA,
    ),
    said(
        "how a picture was made, in an escape", json.dumps({"image": encoded(SURROGATE)}).encode(), 200, door=PNG_INFO
    ),
    said(
        "a picture to enlarge with an escape in it", json.dumps({"image": encoded(SURROGATE)}).encode(), 200, door=EXTRA
    ),
    inference("an image for Hugging Face's client", {"inputs": "SECRET cup", "parameters": SIZE}, 200),
    inference("a picture for it to change", {"inputs": GOOD, "parameters": {"prompt": "SECRET"}}, 200),
    inference("inputs that are an address", {"inputs": INSIDE, "parameters": {"prompt": "SECRET"}}, param="inputs"),
    inference("inputs that are a list", {"inputs": ["SECRET"]}, param="inputs"),
    inference("no inputs", {"parameters": {}}, param="inputs"),
    inference("parameters that are a list", {"inputs": "SECRET", "parameters": ["SECRET"]}, param="parameters"),
    inference("a size that is a list", {"inputs": "SECRET", "parameters": {"target_size": [1]}}),
    inference("a size of a billion", {"inputs": "SECRET", "parameters": {"width": 10**9}}, code="too_large"),
    inference("a bomb to change", {"inputs": encoded(png_claiming(60_000, 60_000)), "parameters": {"prompt": "x"}}),
    inference("further fields", {"inputs": "SECRET", "url": INSIDE}, code="unknown_field"),
    inference("a model of many parts", {"inputs": "SECRET"}, 404, "not_found", door="/hf/..%2f..%2fetc"),
    said("a bare bomb", png_claiming(60_000, 60_000), 422, FIELD, "inputs", door=INFERENCE, headers=PNG),
    said("a bare SVG", SVG, 422, FIELD, "inputs", door=INFERENCE, headers=PNG),
    said("nothing, as a picture", b"", 422, FIELD, "inputs", door=INFERENCE, headers=PNG),
    said("a bare SVG that says so", SVG, 415, door=INFERENCE, headers=(("Content-Type", "image/svg+xml"),)),
    got("a list that A1111 has and we have not", "/sdapi/v1/SECRET", 404, "not_found"),
)
