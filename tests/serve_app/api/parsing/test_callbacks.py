"""What a caller asks to be called back about is checked before its job begins; nothing is looked up or called."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config.callbacks import CallbacksConfig
from tests.serve_app.callbacks.ingresses import BATCH, SECRET, ingress, secret_file

HOOK = "https://hooks.example.com/x"
PUT = "https://bucket.example.com/{entry}/{image}"


def both(folder: Path) -> CallbacksConfig:
    return CallbacksConfig.model_validate({"webhook_secrets": [secret_file(folder, "s", SECRET)], "uploads": True})


@pytest.mark.parametrize(
    ("fields", "place", "rule"),
    [
        ({"webhook_url": "http://hooks.example.com/"}, "webhook_url", "begin with https://"),
        ({"webhook_url": "https://127.0.0.1/"}, "webhook_url", "public address"),
        ({"webhook_url": "https://h.example:8443/"}, "webhook_url", "one of the ports 443"),
        ({"webhook_url": 3}, "webhook_url", "must be a string"),
        ({"webhook_events": ["job.failed"]}, "webhook_events", "needs a webhook_url"),
        ({"webhook_url": HOOK, "webhook_events": []}, "webhook_events", "at least 1"),
        ({"webhook_url": HOOK, "webhook_events": ["job.begun"]}, "webhook_events/0", "must be"),
        ({"webhook_ulr": HOOK}, "webhook_ulr", "did you mean webhook_url"),
        ({"upload_url": "https://b.example.com/{image}"}, "upload_url", "must contain {entry}"),
        ({"upload_url": "https://b.example.com/{entry}"}, "upload_url", "must contain {image}"),
        ({"upload_url": "https://b.example.com/{entry}/{image}/{name}"}, "upload_url", "must be a URL"),
        ({"upload_url": "https://10.0.0.1/{entry}/{image}"}, "upload_url", "public address"),
        ({"upload_url": PUT, "upload_urls": [None, None]}, "upload_urls", "beside upload_url"),
        ({"upload_urls": [["https://b.example.com/a"]]}, "upload_urls", "must have 2 entries"),
        ({"upload_urls": [["https://b.example.com/a"], None]}, "upload_urls/0", "must have 2 entries"),
        ({"upload_urls": [None, ["http://b.example.com/a"]]}, "upload_urls/1/0", "begin with https://"),
        ({"upload_urls": [["https://b/a", "https://b/a"], None]}, "upload_urls/0/1", "is there twice"),
        ({"upload_headers": {"x-amz-acl": "private"}}, "upload_headers", "needs an upload_url"),
        ({"upload_url": PUT, "upload_headers": {"authorization": "x"}}, "upload_headers", "may only have"),
        ({"upload_url": PUT, "upload_headers": {"metadata-flavor": "Google"}}, "upload_headers", "may only have"),
        ({"upload_url": PUT, "upload_headers": {"x-amz-a b": "1"}}, "upload_headers", "may only have"),
        ({"upload_url": PUT, "upload_headers": {"x-amz-a": "1\r\nx: y"}}, "upload_headers", "printable"),
        ({"upload_url": PUT, "upload_headers": {"x-amz-a": "ä"}}, "upload_headers", "printable"),
        ({"upload_url": PUT, "upload_headers": {f"x-amz-{i}": "" for i in range(17)}}, "upload_headers", "at most 16"),
    ],
)
async def test_a_wrong_field_is_named_with_its_rule(
    fields: dict[str, Any], place: str, rule: str, tmp_path: Path
) -> None:
    async with ingress(both(tmp_path)) as here:
        requests = [{"prompt": "a", "num_images": 2}, {"prompt": "b"}]
        answer = await here.client.post(BATCH, json={"requests": requests, **fields})
        assert answer.status_code == 422
        problem = answer.json()
        assert problem["errors"][0]["pointer"] == f"#/{place}"
        assert rule in problem["detail"]
        assert here.backend.asked == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"webhook_url": HOOK}, "webhooks_off"),
        ({"upload_url": PUT}, "uploads_off"),
        ({"upload_urls": [None]}, "uploads_off"),
    ],
)
async def test_what_is_not_configured_is_refused_as_that(fields: dict[str, Any], code: str, tmp_path: Path) -> None:
    other = CallbacksConfig.model_validate(
        {"uploads": True} if code == "webhooks_off" else {"webhook_secrets": [secret_file(tmp_path, "s", SECRET)]}
    )
    for config in (None, other):
        async with ingress(config) as here:
            answer = await here.client.post(BATCH, json={"requests": [{"prompt": "a"}], **fields})
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


async def test_null_is_as_if_left_out(tmp_path: Path) -> None:
    fields = dict.fromkeys(("webhook_url", "webhook_events", "upload_url", "upload_urls", "upload_headers"))
    async with ingress(None) as here:
        answer = await here.client.post(BATCH, json={"requests": [{"prompt": "a"}], **fields})
        assert answer.status_code == 200
