"""Hostile and mistaken requests: each has its proper answer, which echoes nothing, and reaches no engine."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.api.parsing.body import MAX_BODY_BYTES
from tests.serve_app.fakes import PATH, FakeBackend

JSON = {"Content-Type": "application/json"}

# What the caller sends -> status, code.
BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "invalid_json"),
    "garbage": (b"{prompt: 1}", 400, "invalid_json"),
    "truncated": (b'{"prompt": "SECRET', 400, "invalid_json"),
    "not utf-8": (b'{"prompt": "SECRET\xff"}', 400, "invalid_json"),
    "utf-16": ('{"prompt": "SECRET"}'.encode("utf-16"), 400, "invalid_json"),
    "utf-32": ('{"prompt": "SECRET"}'.encode("utf-32"), 400, "invalid_json"),
    "two byte order marks": (b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "SECRET"}', 400, "invalid_json"),
    "NaN": (b'{"prompt": "SECRET", "guidance_scale": NaN}', 400, "invalid_json"),
    "Infinity": (b'{"prompt": "SECRET", "guidance_scale": -Infinity}', 400, "invalid_json"),
    "deep": (b"[" * 50_000, 400, "nested_too_deep"),
    "deep object": (b'{"a":' * 50_000, 400, "nested_too_deep"),
    "array": (b"[]", 422, "wrong_type"),
    "string": (b'"SECRET"', 422, "wrong_type"),
    "null": (b"null", 422, "wrong_type"),
    "duplicate": (b'{"prompt": "SECRET", "prompt": "b"}', 422, "duplicate_key"),
    "nested duplicate": (b'{"prompt": {"a": 1, "a": 2}}', 422, "duplicate_key"),
    "surrogate": (rb'{"prompt": "SECRET \ud800"}', 422, "invalid_unicode"),
    "surrogate key": (rb'{"prompt": "SECRET", "\ud800": 1}', 422, "invalid_unicode"),
    "surrogate model": (rb'{"prompt": "SECRET", "model_name": "\udfff"}', 422, "invalid_unicode"),
    "1e999": (b'{"prompt": "SECRET", "guidance_scale": 1e999}', 422, "not_finite"),
    "1e999 pixels": (b'{"prompt": "SECRET", "width": 1e999}', 422, "wrong_type"),
    "5000 digits": (b'{"prompt": "SECRET", "seed": ' + b"9" * 5000 + b"}", 422, "too_large"),
    "minus 5000 digits": (b'{"prompt": "SECRET", "width": -' + b"9" * 5000 + b"}", 422, "too_small"),
    "5000 digits of guidance": (b'{"prompt": "SECRET", "guidance_scale": ' + b"9" * 5000 + b"}", 422, "too_large"),
}

# Fields beside a good prompt -> status, code, param.
FIELDS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"prompt": "SECRET\0"}, 422, "invalid_value", "prompt"),
    ({"negative_prompt": "SECRET\x1b[31m"}, 422, "invalid_value", "negative_prompt"),
    ({"style_preset": "SECRET\x7f"}, 422, "invalid_value", "style_preset"),
    ({"model_name": "SECRET\n"}, 422, "invalid_value", "model_name"),
    ({"sampler": "euler\0"}, 422, "invalid_value", "sampler"),
    ({"width": 2.0**60}, 422, "wrong_type", "width"),
    ({"prompt": None}, 422, "wrong_type", "prompt"),
    ({"prompt": ["SECRET"]}, 422, "wrong_type", "prompt"),
    ({"prompt": "SECRET" * 2000}, 422, "too_long", "prompt"),
    ({"width": True}, 422, "wrong_type", "width"),
    ({"width": "512"}, 422, "wrong_type", "width"),
    ({"width": 512.5}, 422, "wrong_type", "width"),
    ({"width": 0}, 422, "too_small", "width"),
    ({"height": -512}, 422, "too_small", "height"),
    ({"width": 10**9}, 422, "too_large", "width"),
    ({"width": 511}, 422, "not_a_multiple", "width"),
    ({"width": 2048, "height": 2048}, 422, "invalid_parameter", "width"),
    ({"num_images": 0}, 422, "too_small", "num_images"),
    ({"num_images": 10**9}, 422, "too_large", "num_images"),
    ({"guidance_scale": -5}, 422, "too_small", "guidance_scale"),
    ({"guidance_scale": 1e30}, 422, "too_large", "guidance_scale"),
    ({"guidance_scale": True}, 422, "wrong_type", "guidance_scale"),
    ({"num_inference_steps": 10**6}, 422, "too_large", "num_inference_steps"),
    ({"seed": -2}, 422, "too_small", "seed"),
    ({"seed": 2**64}, 422, "too_large", "seed"),
    ({"output_format": "SECRET"}, 422, "not_allowed", "output_format"),
    ({"sampler": "SECRET"}, 422, "invalid_value", "sampler"),
    ({"model_name": "SECRET/../../etc/passwd"}, 404, "model_not_found", "model_name"),
    ({"model_name": "x" * 300}, 422, "too_long", "model_name"),
    ({"trust_remote_code": True}, 422, "unknown_field", "trust_remote_code"),
    ({"custom_pipeline": "SECRET"}, 422, "unknown_field", "custom_pipeline"),
    ({"__proto__": {"SECRET": 1}}, 422, "unknown_field", "__proto__"),
]


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """A whole problem, which echoes nothing; the marker in what was sent is SECRET."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    body: dict[str, Any] = response.json()
    assert set(body) == {
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "error",
        "errors",
        "request_id",
        "retryable",
    }
    assert (body["status"], body["error"]["code"], body["error"]["message"]) == (status, code, body["detail"])
    assert body["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "SECRET" not in response.text
    return body


@pytest.mark.parametrize(("sent", "status", "code"), BODIES.values(), ids=BODIES)
async def test_every_bad_body_has_its_answer(
    client: httpx.AsyncClient, backend: FakeBackend, sent: bytes, status: int, code: str
) -> None:
    assert_problem(await client.post(PATH, content=sent, headers=JSON), status, code)
    assert not backend.asked


@pytest.mark.parametrize(("fields", "status", "code", "param"), FIELDS, ids=lambda value: str(value)[:40])
async def test_every_bad_field_is_named(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    body = assert_problem(await client.post(PATH, json={"prompt": "SECRET", **fields}), status, code)
    assert body["error"]["param"] == param
    assert body["errors"][0]["pointer"] == f"#/{param}"
    assert not backend.asked


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 7},
        {"prompt": ""},
        {"prompt": " \n\t"},
        {"prompt": "", "style_preset": "luxury"},
        {"prompt": "two\r\nlines\tand a tab"},
        {"width": 512.0, "num_images": 1.0},
        {"guidance_scale": 0},
        {"seed": -1},
        {"seed": 2**53},
        {"seed": None, "width": None, "style_preset": None},
        {"prompt": "<script>alert(1)</script> <|endoftext|> 咖啡 ☕"},
        {"prompt": "cup\nSteps: 1, Seed: 2"},
        {"sampler": "DPM++ 2M Karras"},
        {"sampler": "EulerDiscreteScheduler"},
    ],
    ids=str,
)
async def test_what_is_unusual_but_right_is_served(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    assert (await client.post(PATH, json={"prompt": "a cup", **fields})).status_code == 200


async def test_all_faults_are_listed(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json={"width": 1, "num_images": 99})
    errors = assert_problem(response, 422, "required")["errors"]
    assert {(error["pointer"], error["code"]) for error in errors} == {
        ("#/prompt", "required"),
        ("#/width", "not_a_multiple"),
        ("#/num_images", "too_large"),
    }


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("promt", "prompt"),
        ("num_inference_step", "num_inference_steps"),
        ("steps", "num_inference_steps"),
        ("cfg_scale", "guidance_scale"),
        ("model", "model_name"),
        ("scheduler", "sampler"),
    ],
)
async def test_an_unknown_field_is_told_the_right_name(client: httpx.AsyncClient, wrong: str, right: str) -> None:
    response = await client.post(PATH, json={"prompt": "a cup", wrong: 1})
    assert f"did you mean {right}?" in assert_problem(response, 422, "unknown_field")["detail"]


@pytest.mark.parametrize("name", ["SECRET<script>", "SECRET" * 50, "SECRET\r\nX: y"])
async def test_an_odd_field_name_is_not_echoed(client: httpx.AsyncClient, name: str) -> None:
    assert_problem(await client.post(PATH, json={"prompt": "a cup", name: 1}), 422, "unknown_field")


@pytest.mark.parametrize(
    ("width", "nearest"), [(511, "504 or 512"), (513, "512 or 520"), (1, "64"), (2049, "2048"), (65, "64 or 72")]
)
async def test_a_size_between_two_is_told_the_nearest(client: httpx.AsyncClient, width: int, nearest: str) -> None:
    response = await client.post(PATH, json={"prompt": "a cup", "width": width})
    assert response.json()["errors"][0]["message"] == f"must be a multiple of 8; nearest: {nearest}"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, "unsupported_media_type"),
        ({"Content-Type": ""}, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=utf-16"}, "unsupported_media_type"),
        ({**JSON, "Content-Encoding": "gzip"}, "unsupported_content_encoding"),
    ],
    ids=str,
)
async def test_only_plain_json_is_read(client: httpx.AsyncClient, headers: dict[str, str], code: str) -> None:
    assert_problem(await client.post(PATH, content=b'{"prompt": "SECRET"}', headers=headers), 415, code)


async def test_json_with_its_charset_named_is_read(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert (await client.post(PATH, content=b'{"prompt": "a cup"}', headers=headers)).status_code == 200


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length(client: httpx.AsyncClient) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b" " * 65_536

    announced = json.dumps({"prompt": "SECRET" * MAX_BODY_BYTES}).encode()
    assert_problem(await client.post(PATH, content=announced, headers=JSON), 413, "body_too_large")
    response = await client.post(PATH, content=endless(), headers=JSON)
    assert_problem(response, 413, "body_too_large")
    assert taken <= MAX_BODY_BYTES / 65_536 + 2
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("previews", ["-1", "9", "two", "1.5", "9" * 5000])
async def test_previews_out_of_range_are_refused(client: httpx.AsyncClient, previews: str) -> None:
    response = await client.post(PATH, json={"prompt": "SECRET"}, params={"previews": previews})
    body = response.json()
    assert (response.status_code, body["error"]["param"]) == (422, "previews")
    assert body["errors"][0]["pointer"] == "?previews"


async def test_an_unknown_route_and_method_are_problems_too(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/SECRET"), 404, "not_found")
    response = await client.get(PATH)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "video/mp4, text/*;q=0"])
async def test_an_answer_that_we_do_not_have_is_not_acceptable(client: httpx.AsyncClient, accept: str) -> None:
    response = await client.post(PATH, json={"prompt": "SECRET"}, headers={"Accept": accept})
    assert_problem(response, 406, "not_acceptable")


async def test_a_bug_is_500_with_nothing_but_the_request_id(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.script = lambda _: [RuntimeError("SECRET at /root/engine.py")]
    response = await client.post(PATH, json={"prompt": "a cup"}, headers={"x-request-id": "mine-1"})
    assert_problem(response, 500, "internal_error")
    assert response.json()["request_id"] == "mine-1"
    assert "mine-1" in caplog.text
    assert "SECRET at /root/engine.py" in caplog.text


@pytest.mark.parametrize("given", [b"a" * 129, b"white space", b"a\xff", b"a\r\nb: c", b""])
async def test_a_strange_request_id_is_replaced(client: httpx.AsyncClient, given: bytes) -> None:
    response = await client.get("/livez", headers=[(b"x-request-id", given)])
    assert len(response.headers["x-request-id"]) == 36


async def test_a_harmless_request_id_is_kept_and_every_answer_has_one(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/nowhere", PATH, "/openapi.json"):
        assert (await client.get(path)).headers["x-request-id"]
        response = await client.get(path, headers={"x-request-id": "a.B_9-" * 21})
        assert response.headers["x-request-id"] == "a.B_9-" * 21
