"""A job's end is told to its caller: signed, until it was heard, and to nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from deployments.engine.protocol.errors import NumericalFailure
from serve_app.callbacks.deliverer import DeliveryAttempt, RetryPlan
from serve_app.callbacks.message import Message
from serve_app.callbacks.signing import WebhookSigner
from serve_app.config.secret import Secret
from tests.serve_app.callbacks.ingresses import (
    OLD_SECRET,
    SECRET,
    IngressWithCallbacks,
    callbacks_config,
    ingress,
    secret_file,
)
from tests.serve_app.callbacks.receivers import Manner, Received, Receiver, certified, receiver
from tests.serve_app.fakes import refusing, slow, until


@pytest.fixture
async def heard() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


@pytest.fixture
async def here(heard: Receiver, tmp_path: Path) -> AsyncIterator[IngressWithCallbacks]:
    async with ingress(callbacks_config(tmp_path, heard, timeout_s=0.5)) as running:
        yield running


def verified(secret: str, received: Received) -> dict[str, Any]:
    """What it says, if the signature is right."""
    said: dict[str, Any] = Webhook(secret).verify(received.body, received.headers)
    return said


async def test_a_webhook_tells_how_a_job_has_ended(heard: Receiver, here: IngressWithCallbacks) -> None:
    job = await here.submit({"prompt": "a", "num_images": 2}, {"prompt": "b", "width": 3}, webhook_url=heard.url())
    done = await here.settled(job)
    assert done["webhooks"] == [{"event": "job.succeeded", "state": "delivered", "attempts": 1}]
    (received,) = heard.received
    assert (received.method, received.headers["content-type"]) == ("POST", "application/json")
    assert received.headers["user-agent"].startswith("darkroom/")
    said = verified(SECRET, received)
    assert said["type"] == "job.succeeded"
    expected = {"id": job["id"], "state": "succeeded", "entries": 2, "succeeded": 1, "failed": 1, "images": 2}
    assert expected.items() <= said["data"].items()
    assert said["data"]["url"] == f"http://test{job['url']}"
    assert said["data"]["finished_at"] == done["finished_at"]
    assert len(received.body) < 1024
    stats = await here.service.get_generation_stats()
    assert {name: number for name, number in stats["callbacks"].items() if number} == {"webhook_delivered": 1}


async def test_failed_and_cancelled_jobs_are_told_as_well(heard: Receiver, here: IngressWithCallbacks) -> None:
    here.backend.script = refusing(NumericalFailure("not finite"))
    await here.settled(await here.submit(webhook_url=heard.url()))
    here.backend.script = slow
    job = await here.submit(webhook_url=heard.url())
    await until(lambda: here.backend.running == 1)
    await here.client.delete(job["url"])
    await here.settled(job)
    assert [verified(SECRET, each)["type"] for each in heard.received] == ["job.failed", "job.cancelled"]


async def test_only_the_events_that_were_asked_for_are_told(heard: Receiver, here: IngressWithCallbacks) -> None:
    quiet = await here.submit(webhook_url=heard.url("/quiet"), webhook_events=["job.failed", "job.cancelled"])
    loud = await here.submit(webhook_url=heard.url("/loud"), webhook_events=["job.succeeded"])
    assert "webhooks" in await here.settled(loud)
    assert (await here.settled(quiet))["webhooks"] == []
    assert [each.target for each in heard.received] == ["/loud"]


@pytest.mark.parametrize("manner", [500, 503, 404, 429, "hang", "close", "cut"])
async def test_what_fails_is_tried_again_as_the_same_message(
    manner: Manner, heard: Receiver, here: IngressWithCallbacks
) -> None:
    heard.behaves("/hook", manner, manner)
    done = await here.settled(await here.submit(webhook_url=heard.url()))
    assert done["webhooks"] == [{"event": "job.succeeded", "state": "delivered", "attempts": 3}]
    first, *others = heard.received
    assert len(others) == 2
    assert {each.headers["webhook-id"] for each in others} == {first.headers["webhook-id"]}
    assert {each.body for each in others} == {first.body}
    for each in heard.received:
        verified(SECRET, each)
    assert here.service.callback_counts == {("webhook", "retried"): 2, ("webhook", "delivered"): 1}


@pytest.mark.parametrize(
    ("manner", "reason"),
    [(410, "status_410"), ((302, {"Location": "/elsewhere"}), "redirected"), ((307, {"Location": "/x"}), "redirected")],
)
async def test_what_is_gone_or_elsewhere_is_not_tried_again(
    manner: Manner, reason: str, heard: Receiver, here: IngressWithCallbacks, caplog: pytest.LogCaptureFixture
) -> None:
    heard.behaves("/hook", manner)
    done = await here.settled(await here.submit(webhook_url=heard.url("/hook?token=topsecret")))
    assert done["webhooks"] == [{"event": "job.succeeded", "state": "failed", "attempts": 1, "reason": reason}]
    assert len(heard.received) == 1
    (record,) = [each for each in caplog.records if "given up" in each.message]
    assert reason in record.message
    assert f"127.0.0.1:{heard.port}" in record.message
    assert "topsecret" not in caplog.text
    assert SECRET not in caplog.text


async def test_it_is_given_up_when_its_time_is_over(heard: Receiver, tmp_path: Path) -> None:
    async with ingress(callbacks_config(tmp_path, heard, webhook_retry_for_s=0.2)) as here:
        heard.behaves("/hook", *[500] * 1000)
        done = await here.settled(await here.submit(webhook_url=heard.url()))
        (webhook,) = done["webhooks"]
        assert (webhook["state"], webhook["reason"]) == ("failed", "status_500")
        assert webhook["attempts"] == len(heard.received) > 1


async def test_a_hanging_receiver_holds_up_nobody_else(heard: Receiver, tmp_path: Path) -> None:
    config = callbacks_config(tmp_path, heard, timeout_s=60, in_flight=4, in_flight_per_host=2)
    async with receiver() as stuck, ingress(config.model_copy(update={"ports": (heard.port, stuck.port)})) as here:
        stuck.behaves("/hook", "hang", "hang", "hang", "hang", "hang", "hang")
        for _ in range(6):
            await here.submit(webhook_url=stuck.url())
        await until(lambda: stuck.at_a_time == 2)
        await here.settled(await here.submit(webhook_url=heard.url()))
        assert stuck.most_at_a_time == 2


async def test_a_message_is_signed_with_every_secret(heard: Receiver, here: IngressWithCallbacks) -> None:
    """Whichever of them a receiver knows, so that one can take the place of another."""
    await here.settled(await here.submit(webhook_url=heard.url()))
    (received,) = heard.received
    assert verified(SECRET, received) == verified(OLD_SECRET, received)
    assert len(received.headers["webhook-signature"].split(" ")) == 2


async def test_a_tenant_cannot_forge_anothers_messages(
    heard: Receiver, here: IngressWithCallbacks, tmp_path: Path
) -> None:
    job = await here.submit(webhook_url=heard.url(), tenant="acme")
    await here.settled(job, "acme")
    signer = WebhookSigner([Secret.model_validate(secret_file(tmp_path, "new", SECRET))])
    ((acme,), (other,)) = signer.secrets_of("acme"), signer.secrets_of("other")
    (received,) = heard.received
    verified(acme, received)
    for secret in (other, SECRET):
        with pytest.raises(Exception, match="No matching signature"):
            verified(secret, received)


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(heard: Receiver, tmp_path: Path) -> None:
    context, _ = certified(tmp_path, "127.0.0.1")
    async with receiver(context) as behind, ingress(callbacks_config(tmp_path, behind, webhook_retry_for_s=0)) as here:
        done = await here.settled(await here.submit(webhook_url=behind.url()))
        assert done["webhooks"][0]["reason"] == "certificate_not_valid"
        assert behind.received == []


def message(attempts: int, created: float = 0.0) -> Message:
    return Message(
        id="a", kind="webhook", job="j", tenant="", place="p", url="https://a/", created=created, attempts=attempts
    )


def test_waits_double_to_a_bound_and_up_to_half_of_each_is_left_out() -> None:
    plan, again = RetryPlan(5, 60, 3600), DeliveryAttempt("retry", "status_500")
    for tried, longest in ((1, 5), (2, 10), (3, 20), (5, 60), (500, 60)):
        waits = [plan.wait_s(again, message(tried), 0) or 0 for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert plan.wait_s(again, message(1), 3600) is None
    assert plan.wait_s(DeliveryAttempt("stop"), message(1), 0) is None
    assert plan.wait_s(DeliveryAttempt("done"), message(1), 0) is None


def test_a_server_that_asks_for_patience_gets_it() -> None:
    plan = RetryPlan(5, 60, 3600)
    assert plan.wait_s(DeliveryAttempt("retry", "status_503", retry_after_s=100), message(1), 0) == 100
    assert plan.wait_s(DeliveryAttempt("retry", "status_503", retry_after_s=4000), message(1), 0) is None


async def test_a_full_outbox_is_said(heard: Receiver, tmp_path: Path) -> None:
    async with ingress(callbacks_config(tmp_path, heard, waiting=1, timeout_s=60)) as here:
        heard.behaves("/stuck", "hang")
        await here.submit(webhook_url=heard.url("/stuck"))
        await until(lambda: heard.at_a_time == 1)
        done = await here.settled(await here.submit(webhook_url=heard.url()))
        assert done["webhooks"] == [
            {"event": "job.succeeded", "state": "failed", "attempts": 0, "reason": "outbox_full"}
        ]


async def test_a_body_is_what_the_docs_say(heard: Receiver, here: IngressWithCallbacks) -> None:
    """docs/callbacks.md shows one."""
    await here.settled(await here.submit(webhook_url=heard.url()))
    page = (Path(__file__).parents[3] / "docs" / "callbacks.md").read_text()
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    said = json.loads(heard.received[0].body)
    assert shown.keys() == said.keys()
    assert shown["data"].keys() - {"uploads"} == said["data"].keys()


async def test_nothing_is_left_open_when_a_process_stops(heard: Receiver, tmp_path: Path) -> None:
    async with ingress(callbacks_config(tmp_path, heard, timeout_s=60)) as here:
        heard.behaves("/hook", "hang")
        await here.submit(webhook_url=heard.url())
        await until(lambda: heard.at_a_time == 1)
        async with asyncio.timeout(5):
            await here.stop()
    await until(lambda: heard.at_a_time == 0)
