"""Calls back the callers of jobs: webhooks when a job ends, and its images put where they asked for them."""

import asyncio
import base64
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from deployments.engine.protocol.errors import Overloaded
from serve_app.callbacks.addresses import AddressRules
from serve_app.callbacks.deliverer import Clock, Deliverer, DeliveryAttempt
from serve_app.callbacks.message import Kind, Message
from serve_app.callbacks.outbox import MemoryOutbox, Outbox, UploadCount
from serve_app.callbacks.payload import end_event, webhook_body
from serve_app.callbacks.redis_outbox import RedisOutbox
from serve_app.callbacks.sender import Reply, Sender, SendError
from serve_app.callbacks.signing import WebhookSigner
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.sections import JobsConfig
from serve_app.jobs.callbacks import JobEvent, Settlement, upload_place
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore
from serve_app.store.redis import RedisTier

log = logging.getLogger(__name__)

# An upload is refused for good by what S3 and its kin answer to a bad address, and a webhook by its receiver's "gone".
_GONE: Final = 410
_UPLOAD_RETRIES: Final = frozenset((408, 409, 425, 429))


class Callbacks:
    """Hears of jobs (`JobListener`), keeps what is to be sent in an outbox, and sends it. Used on one event loop.

    The outbox is in Redis where there is one, so that messages survive this process. Images are read from `store` when
    they are sent. Raises ConfigError for a secret that cannot be used.
    """

    def __init__(
        self,
        config: CallbacksConfig,
        jobs: JobsConfig,
        store: JobStore,
        redis: RedisTier | None,
        counts: Counter[tuple[str, str]],
        clock: Clock = time.time,
    ) -> None:
        self.config = config
        self.rules = AddressRules(config)
        self._signer = WebhookSigner(config.webhook_secrets)
        self._store, self._clock = store, clock
        kept = jobs.kept + jobs.waiting
        self._outbox: Outbox = (
            MemoryOutbox(config.waiting, kept) if redis is None else RedisOutbox(redis, config.waiting, kept)
        )
        self._sender = Sender(self.rules, 2 * config.in_flight)
        self._deliverers: dict[Kind, Deliverer] = {
            "webhook": Deliverer("webhook", config, self._outbox, self._send_webhook, self._settle, counts, clock),
            "upload": Deliverer("upload", config, self._outbox, self._send_upload, self._settle, counts, clock),
        }

    def start(self) -> None:
        """Begins to send."""
        for deliverer in self._deliverers.values():
            deliverer.start()

    async def stop(self) -> None:
        """Ends what is being sent. Messages in Redis are left to others; those that are here only are lost."""
        await asyncio.gather(*(deliverer.stop() for deliverer in self._deliverers.values()))
        await self._sender.close()
        self.rules.close()
        if lost := self._outbox.waiting_here():
            log.warning("%d callbacks were in this process only, and end with it", lost)

    async def entry_ended(self, job: Job, index: int) -> None:
        """Begins to put the entry's images where they belong."""
        await self._add(list(self._uploads_of(job, index)))

    async def ended(self, job: Job) -> None:
        """Sends the webhook, and sees to it that no image was forgotten, whichever process made it."""
        request = job.callbacks
        if request is None:
            return
        settled = await self._outbox.settlements(job.id)
        uploads = list[Message]()
        # Entry by entry: there may be a thousand, and others wait for this thread.
        for index in list(job.documents):
            own = list(self._uploads_of(job, index))
            uploads += own
            await self._add([message for message in own if message.place not in settled])
            await asyncio.sleep(0)
        await self._announce(end_event(job), job, len(uploads) if request.has_uploads else None)
        if request.has_uploads and (await self._outbox.expect(job.id, len(uploads))).complete:
            await self._announce("job.uploaded", job, len(uploads))

    async def settlements(self, job: Job) -> Mapping[str, Settlement]:
        """Returns what has come of the job's callbacks so far, by their places."""
        return await self._outbox.settlements(job.id)

    def _uploads_of(self, job: Job, index: int) -> Iterator[Message]:
        request = job.callbacks
        for position, image in enumerate(job.documents[index].get("images", ())):
            number, image_format = image["index"], image["format"]
            target = None if request is None else request.upload_target(job.id, index, number, image_format)
            if request is not None and target is not None:
                yield Message(
                    id=f"{job.id}_{index}_{number}",
                    kind="upload",
                    job=job.id,
                    tenant=job.tenant,
                    place=upload_place(index, number),
                    url=target,
                    created=self._clock(),
                    headers={"Content-Type": f"image/{image_format}", **request.upload_headers},
                    entry=index,
                    position=position,
                )

    async def _announce(self, event: JobEvent, job: Job, uploads: int | None) -> None:
        request = job.callbacks
        if request is None or request.webhook_url is None or not request.wants(event):
            return
        settlements = await self._outbox.settlements(job.id) if uploads else {}
        message = Message(
            id=f"msg_{job.id}_{event.partition('.')[2]}",
            kind="webhook",
            job=job.id,
            tenant=job.tenant,
            place=event,
            url=request.webhook_url,
            created=self._clock(),
            body=webhook_body(event, job, self._clock(), settlements, uploads),
        )
        await self._add([message])

    async def _add(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        without_room = await self._outbox.add(messages)
        for message in (message for message in messages if message.id in without_room):
            log.warning("%s %s to %s: there is no room to keep it", message.kind, message.id, message.host)
            await self._settle(message, Settlement(done=False, attempts=0, reason="outbox_full"))
        self._deliverers[messages[0].kind].wake()

    async def _settle(self, message: Message, settlement: Settlement) -> None:
        count: UploadCount = await self._outbox.settle(message, settlement)
        if message.kind == "upload" and count.complete:
            job = await self._store.find(message.job)
            if job is not None:
                await self._announce("job.uploaded", job, count.expected)

    async def _send_webhook(self, message: Message) -> DeliveryAttempt:
        headers = self._signer.headers(message.id, message.body, message.tenant)
        attempt = await self._try("POST", message, headers, message.body.encode(), self.config.timeout_s)
        return attempt if isinstance(attempt, DeliveryAttempt) else _webhook_attempt(attempt)

    async def _send_upload(self, message: Message) -> DeliveryAttempt:
        try:
            files = await self._store.files(message.job, message.entry)
        except Overloaded:
            files = None
        if files is None or message.position >= len(files):
            # Perhaps in the memory of another process, which saves it once Redis answers.
            return DeliveryAttempt("retry", "image_gone")
        file = files[message.position]
        digest, md5 = await asyncio.to_thread(_digests, file)
        headers = message.headers | {
            "Content-MD5": base64.b64encode(md5).decode(),
            "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
        }
        reply = await self._try("PUT", message, headers, file, self.config.upload_timeout_s)
        return reply if isinstance(reply, DeliveryAttempt) else _upload_attempt(reply, len(file), digest.hex())

    async def _try(
        self, method: str, message: Message, headers: Mapping[str, str], body: bytes, timeout_s: float
    ) -> Reply | DeliveryAttempt:
        """Returns the answer, or how it went without one."""
        try:
            return await self._sender.send(method, message.url, headers, body, timeout_s)
        except SendError as error:
            return DeliveryAttempt("stop" if error.final else "retry", error.code)


def _webhook_attempt(reply: Reply) -> DeliveryAttempt:
    """A receiver that is down answers anything; only `gone` is for ever, and redirects are not followed."""
    if 200 <= reply.status < 300:
        return DeliveryAttempt("done")
    if 300 <= reply.status < 400:
        return DeliveryAttempt("stop", "redirected")
    return DeliveryAttempt("stop" if reply.status == _GONE else "retry", f"status_{reply.status}", reply.retry_after_s)


def _upload_attempt(reply: Reply, size: int, sha256: str) -> DeliveryAttempt:
    if 200 <= reply.status < 300:
        return DeliveryAttempt("done", size=size, sha256=sha256)
    if 300 <= reply.status < 400:
        return DeliveryAttempt("stop", "redirected")
    again = reply.status >= 500 or reply.status in _UPLOAD_RETRIES
    return DeliveryAttempt("retry" if again else "stop", f"status_{reply.status}", reply.retry_after_s)


def _digests(file: bytes) -> tuple[bytes, bytes]:
    """Returns the file's SHA-256 and, for stores that check no other, its MD5."""
    return hashlib.sha256(file).digest(), hashlib.md5(file, usedforsecurity=False).digest()
