"""A job's images are put where its caller wants them, the job says so, and they can be fetched here all the same."""

import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serve_app.callbacks.ingresses import IngressWithCallbacks, callbacks_config, ingress
from tests.serve_app.callbacks.receivers import Manner, Receiver, receiver
from tests.serve_app.fakes import until


@pytest.fixture
async def bucket() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


@pytest.fixture
async def here(bucket: Receiver, tmp_path: Path) -> AsyncIterator[IngressWithCallbacks]:
    async with ingress(callbacks_config(tmp_path, bucket, upload_timeout_s=0.5)) as running:
        yield running


ENTRIES = ({"prompt": "a", "num_images": 2, "output_format": "webp"}, {"prompt": "b"})


def uploads_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [image["upload"] for entry in job["results"] for image in entry["images"] if "upload" in image]


async def test_images_are_put_under_a_template(bucket: Receiver, here: IngressWithCallbacks) -> None:
    template = bucket.url("/ads/{job}/{entry}-{image}.{format}?signed=yes")
    job = await here.settled(await here.submit(*ENTRIES, upload_url=template))
    put = {each.target: each for each in bucket.received}
    names = (("0-0.webp", "0/0"), ("0-1.webp", "0/1"), ("1-0.png", "1/0"))
    assert put.keys() == {f"/ads/{job['id']}/{name}?signed=yes" for name, _ in names}
    for name, place in names:
        received = put[f"/ads/{job['id']}/{name}?signed=yes"]
        kept = await here.client.get(f"{job['url']}/images/{place}")
        assert (received.method, received.body) == ("PUT", kept.content)
        assert received.headers["content-type"] == kept.headers["content-type"]
        assert received.headers["content-length"] == str(len(kept.content))
        assert base64.b64decode(received.headers["content-md5"]) == hashlib.md5(kept.content).digest()
        digest = base64.b64encode(hashlib.sha256(kept.content).digest()).decode()
        assert received.headers["content-digest"] == f"sha-256=:{digest}:"
        with Image.open(io.BytesIO(received.body)) as picture:
            assert picture.size == (64, 64)
    assert job["uploads"] == {"uploaded": 3, "upload_failed": 0, "pending": 0}
    first = uploads_of(job)[0]
    assert (first["state"], first["size"]) == ("uploaded", len(put[f"/ads/{job['id']}/0-0.webp?signed=yes"].body))
    assert first["sha256"] == hashlib.sha256(put[f"/ads/{job['id']}/0-0.webp?signed=yes"].body).hexdigest()


async def test_images_are_put_to_presigned_urls(bucket: Receiver, here: IngressWithCallbacks) -> None:
    """One for each image; an entry without any stays here."""
    urls = [[bucket.url("/a?X-Amz-Signature=1"), bucket.url("/b?X-Amz-Signature=2")], None]
    headers = {"X-Ms-Blob-Type": "BlockBlob", "cache-control": "max-age=60"}
    job = await here.settled(await here.submit(*ENTRIES, upload_urls=urls, upload_headers=headers))
    assert sorted(each.target for each in bucket.received) == ["/a?X-Amz-Signature=1", "/b?X-Amz-Signature=2"]
    assert {each.headers["x-ms-blob-type"] for each in bucket.received} == {"BlockBlob"}
    assert {each.headers["cache-control"] for each in bucket.received} == {"max-age=60"}
    assert [each["state"] for each in uploads_of(job)] == ["uploaded"] * 2
    assert "upload" not in job["results"][1]["images"][0]


@pytest.mark.parametrize("manner", [500, 429, "hang", "close"])
async def test_an_upload_that_fails_is_tried_again(
    manner: Manner, bucket: Receiver, here: IngressWithCallbacks
) -> None:
    bucket.behaves("/a", manner)
    job = await here.settled(await here.submit(upload_urls=[[bucket.url("/a")]]))
    assert [each["state"] for each in uploads_of(job)] == ["uploaded"]
    first, second = bucket.received
    assert first.body == second.body


@pytest.mark.parametrize(
    ("manner", "reason"),
    [(403, "status_403"), (400, "status_400"), (410, "status_410"), ((307, {"Location": "/b"}), "redirected")],
)
async def test_an_address_that_is_refused_is_left_alone(
    manner: Manner, reason: str, bucket: Receiver, here: IngressWithCallbacks
) -> None:
    bucket.behaves("/a", manner)
    job = await here.settled(await here.submit(upload_urls=[[bucket.url("/a")]]))
    assert uploads_of(job) == [{"state": "upload_failed", "reason": reason, "attempts": 1}]
    assert job["state"] == "succeeded"
    assert job["uploads"] == {"uploaded": 0, "upload_failed": 1, "pending": 0}
    assert (await here.client.get(f"{job['url']}/images/0/0")).status_code == 200


async def test_a_bucket_that_hangs_holds_up_no_job(bucket: Receiver, tmp_path: Path) -> None:
    async with ingress(
        callbacks_config(tmp_path, bucket, upload_timeout_s=60, in_flight_per_host=1), running=1
    ) as here:
        bucket.behaves("/stuck", "hang")
        stuck = await here.submit(upload_urls=[[bucket.url("/stuck")]])
        await until(lambda: bucket.at_a_time == 1)
        other = await here.submit(webhook_url=bucket.url("/hook"))
        await here.settled(other)
        now = await here.job(stuck)
        assert (now["state"], uploads_of(now)) == ("succeeded", [{"state": "pending"}])


async def test_the_webhook_hears_once_when_nothing_is_left_to_be_put(
    bucket: Receiver, here: IngressWithCallbacks
) -> None:
    bucket.behaves("/bad", 403)
    urls = [[bucket.url("/good"), bucket.url("/bad")], None]
    job = await here.settled(await here.submit(*ENTRIES, upload_urls=urls, webhook_url=bucket.url()))
    assert {each["event"]: each["state"] for each in job["webhooks"]} == {
        "job.succeeded": "delivered",
        "job.uploaded": "delivered",
    }
    told = {(said := json.loads(each.body))["type"]: said["data"] for each in bucket.at("/hook")}
    assert told["job.uploaded"]["uploads"] == {"uploaded": 1, "upload_failed": 1, "pending": 0}
    assert "uploads" in told["job.succeeded"]
    assert len(bucket.at("/hook")) == 2


async def test_a_job_without_images_has_nothing_to_put_and_says_so(
    bucket: Receiver, here: IngressWithCallbacks
) -> None:
    urls = [[bucket.url("/a")]]
    job = await here.submit({"prompt": "a", "width": 3}, upload_urls=urls, webhook_url=bucket.url())
    job = await here.settled(job)
    assert job["uploads"] == {"uploaded": 0, "upload_failed": 0, "pending": 0}
    assert [each["event"] for each in job["webhooks"]] == ["job.failed", "job.uploaded"]


async def test_an_image_that_is_gone_cannot_be_put(bucket: Receiver, tmp_path: Path) -> None:
    config = callbacks_config(tmp_path, bucket, upload_retry_for_s=0.3, first_retry_s=0.1)
    async with ingress(config, keep_s=1) as here:
        bucket.behaves("/a", *[500] * 100)
        job = await here.submit(upload_urls=[[bucket.url("/a")]])
        await until(lambda: len(bucket.received) > 0)
        here.app.state.jobs._store._local._jobs.clear()
        outbox = here.callbacks._outbox
        await until(lambda: outbox.waiting_here() == 0, 10)
        settled = await outbox.settlements(job["id"])
        assert settled["0/0"].reason in ("image_gone", "status_500")
