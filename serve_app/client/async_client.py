"""The same client for programs on asyncio."""

import asyncio
from asyncio import sleep
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing, suppress
from copy import copy
from time import monotonic
from typing import Any, Unpack

import httpx

from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from serve_app.client.answers import (
    DarkroomError,
    ServedEntry,
    ServedImage,
    ServerAnswer,
    WatchedImages,
    entries_in_order,
    error_of,
    failure_of,
    images_of,
    is_elsewhere,
    reading_answer,
)
from serve_app.client.events import ServerEvent, read_until_done_async
from serve_app.client.messages import (
    ANSWER_SECONDS,
    BATCH,
    CANCEL_SECONDS,
    CONNECT_SECONDS,
    DEFAULT_URL,
    HEALTH,
    JOBS,
    STREAM_SECONDS,
    STYLE_TRANSFERS,
    UNFINISHED,
    UPSCALE,
    CallbackOptions,
    Entry,
    Listed,
    answer_timeout,
    batch_body,
    encode_request,
    headers_of,
    http_options,
    job_path,
    list_path,
    params_body,
    poll_seconds,
    read_health,
    request_path,
    restyle_form,
    translate_errors,
    translate_setup_errors,
    upscale_form,
)
from serve_app.client.retries import Tries


class AsyncDarkroomClient:
    """As `DarkroomClient`, awaited. Used on one event loop; a call that is cancelled cancels its request."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        timeout: float = ANSWER_SECONDS,
        *,
        api_key: str | None = None,
        retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        options = http_options(base_url, api_key)
        with translate_setup_errors():
            self._http = httpx.AsyncClient(**options, transport=transport)
        self._stream_timeout = httpx.Timeout(STREAM_SECONDS, connect=min(timeout, CONNECT_SECONDS))
        self._timeout_s, self._retries = timeout, retries

    async def __aenter__(self) -> "AsyncDarkroomClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def with_timeout(self, timeout: float) -> "AsyncDarkroomClient":
        """Returns a client with another `timeout`, in seconds, over the same connections. Close only one of the two."""
        other = copy(self)
        other._timeout_s = timeout
        return other

    async def generate(
        self,
        params: GenerationParams | None = None,
        *,
        uploads: Uploads | None = None,
        reference_images: Sequence[bytes] = (),
        request_id: str | None = None,
        on_event: Callable[[ServerEvent], object] | None = None,
        **fields: Any,
    ) -> list[ServedImage]:
        """Returns the images, in order, as `DarkroomClient.generate` does. Raises DarkroomError."""
        body = params_body(params, fields)
        if on_event is not None:
            watched = WatchedImages()
            stream = self.stream(
                None, uploads=uploads, reference_images=reference_images, request_id=request_id, **body
            )
            async with aclosing(stream) as events:
                async for event in events:
                    on_event(event)
                    watched.add(event.name, event.data)
            return watched.images()
        path, options = encode_request(body, uploads, reference_images)
        answer = await self._request(
            "POST", path, needs=("images",), headers=headers_of(request_id, once=True), **options
        )
        return images_of(answer)

    async def stream(
        self,
        params: GenerationParams | None = None,
        *,
        uploads: Uploads | None = None,
        reference_images: Sequence[bytes] = (),
        previews: int = 0,
        request_id: str | None = None,
        **fields: Any,
    ) -> AsyncGenerator[ServerEvent, None]:
        """Yields the request's events as they come; closing the iterator cancels the request. Raises DarkroomError."""
        path, options = encode_request(params_body(params, fields), uploads, reference_images)
        options |= {
            "params": {"previews": previews},
            "headers": {"Accept": "text/event-stream", **headers_of(request_id)},
            "timeout": self._stream_timeout,
        }
        with translate_errors():
            async with self._http.stream("POST", path, **options) as response:
                if not response.is_success:
                    ServerAnswer(response.status_code, response.headers, await response.aread()).raise_for_status()
                async for event in read_until_done_async(response.aiter_lines()):
                    yield event

    async def cancel(self, request_id: str) -> bool:
        """Cancels one's own request or batch with that id; False if there is none. Its waiting caller gets an error."""
        answer = await self._request("DELETE", request_path(request_id), needs=("cancelled",))
        cancelled: bool = answer["cancelled"]
        return cancelled

    async def batch(
        self, requests: Sequence[Entry], *, priority: str | None = None, deadline_ms: int | None = None
    ) -> list[ServedEntry]:
        """Returns the result of each of `requests`, in order. Waits, even if they are too many for one answer.

        What is cancelled meanwhile has the error `cancelled`.
        """
        body = batch_body(requests, priority, deadline_ms)
        answer = await self._request("POST", BATCH, needs=("id", "results"), json=body, headers=headers_of(once=True))
        answer = await self._until_over(answer)
        return entries_in_order(await self.entries_of(answer), answer.get("entries", len(requests)))

    async def submit(
        self,
        requests: Sequence[Entry],
        *,
        priority: str | None = None,
        deadline_ms: int | None = None,
        idempotency_key: str | None = None,
        **callbacks: Unpack[CallbackOptions],
    ) -> str:
        """Submits `requests` as a job and returns its id. The job goes on after this program has ended.

        With the `idempotency_key` of an earlier call it is that one's job. `callbacks` has a webhook called at its end,
        and its images put elsewhere (docs/callbacks.md).
        """
        body, headers = (
            batch_body(requests, priority, deadline_ms, callbacks),
            {"Prefer": "respond-async", **headers_of(once=True)},
        )
        headers |= {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        answer = await self._request("POST", BATCH, needs=("id",), json=body, headers=headers)
        job_id: str = answer["id"]
        return job_id

    async def restyle(
        self, images: Sequence[bytes], reference_images: Sequence[bytes], **fields: Any
    ) -> list[ServedEntry]:
        """Returns each of the pictures in the files `images`, restyled after `reference_images`, in order.

        `fields` are image-to-image's, and all of them share these; the prompt may be left out. Waits for the job.
        """
        job_id = await self.submit_restyle(images, reference_images, **fields)
        job = await self._until_over({"id": job_id, "state": "queued"})
        return entries_in_order(await self.entries_of(job), len(images))

    async def submit_restyle(
        self,
        images: Sequence[bytes],
        reference_images: Sequence[bytes],
        *,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> str:
        """Submits what `restyle` waits for as a job, and returns its id. `fields` may have a `webhook_url`, too."""
        form = restyle_form(images, reference_images, fields)
        headers = headers_of(once=True) | ({} if idempotency_key is None else {"Idempotency-Key": idempotency_key})
        job_id: str = (await self._request("POST", STYLE_TRANSFERS, needs=("id",), headers=headers, **form))["id"]
        return job_id

    async def job(self, job_id: str) -> dict[str, Any]:
        """Returns the job's state and its results so far."""
        return await self._request("GET", job_path(job_id), needs=("id", "state", "results"))

    async def jobs(self) -> list[dict[str, Any]]:
        """Returns one's own newest jobs, at most a hundred, the newest first, without their results."""
        found: list[dict[str, Any]] = (await self._request("GET", JOBS, needs=("jobs",)))["jobs"]
        return found

    async def upscale(
        self, image: bytes, *, scale: float = 2.0, upscaler: str | None = None, output_format: str = "png"
    ) -> bytes:
        """Returns the picture in the file `image`, `scale` times as wide and high, as a file.

        `upscaler` is one of `list_of("upscalers")`; the server's first without one. Raises DarkroomError.
        """
        form = upscale_form(image, scale, upscaler, output_format)
        return (await self._send("POST", UPSCALE, **form)).content

    async def list_of(self, what: Listed) -> list[dict[str, Any]]:
        """Returns the models, samplers, styles, ... that the server has, each with its `name`."""
        path, field = list_path(what)
        found: list[dict[str, Any]] = (await self._request("GET", path, needs=(field,)))[field]
        return found

    async def entries_of(self, job: dict[str, Any], but: Collection[int] = ()) -> list[ServedEntry]:
        """Returns the results in `job`, as `DarkroomClient.entries_of` does. Raises DarkroomError."""
        with reading_answer():
            return [await self._read_entry(entry) for entry in job["results"] if entry["index"] not in but]

    async def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancels the job, if it is unfinished, and returns its state. Its results so far are kept."""
        return await self._request("DELETE", job_path(job_id), needs=("state",))

    async def health(self) -> dict[str, Any]:
        """Returns the server's health object, healthy or not. Raises DarkroomError."""
        return read_health(await self._receive("GET", HEALTH, self._tries(), {}))

    async def _request(self, method: str, path: str, needs: Sequence[str] = (), **options: Any) -> dict[str, Any]:
        return (await self._send(method, path, **options)).json(*needs)

    async def _send(self, method: str, path: str, **options: Any) -> ServerAnswer:
        """Returns the answer. Every request here may be sent again: it changes nothing, or has a key."""
        tries = self._tries()
        while True:
            try:
                answer = await self._receive(method, path, tries, options)
                answer.raise_for_status()
                return answer
            except DarkroomError as error:
                seconds = tries.wait_s(error)
            await sleep(seconds)

    async def _receive(self, method: str, path: str, tries: Tries, options: dict[str, Any]) -> ServerAnswer:
        left = tries.left_s()
        with translate_errors():
            async with asyncio.timeout(left):
                response = await self._http.request(method, path, timeout=answer_timeout(left), **options)
        return ServerAnswer(response.status_code, response.headers, response.content)

    async def _until_over(self, job: dict[str, Any]) -> dict[str, Any]:
        """Returns the job once it is over. Whoever cancels this cancels the job."""
        began = monotonic()
        try:
            while job.get("state") in UNFINISHED:
                await sleep(poll_seconds(monotonic() - began))
                job = await self.job(job["id"])
        except asyncio.CancelledError:
            with suppress(DarkroomError):
                await self.with_timeout(CANCEL_SECONDS).cancel_job(job["id"])
            raise
        return job

    def _tries(self) -> Tries:
        return Tries(self._retries, self._timeout_s)

    async def _read_entry(self, entry: dict[str, Any]) -> ServedEntry:
        if "images" not in entry:
            return ServedEntry(entry["index"], (), error_of(entry))
        images, failure = list[ServedImage](), failure_of(entry)
        for image in entry["images"]:
            try:
                images.append(await self._read_image(image))
            except DarkroomError as error:
                if is_elsewhere(error):
                    raise
                failure = failure or error
        return ServedEntry(entry["index"], tuple(images), failure)

    async def _read_image(self, image: dict[str, Any]) -> ServedImage:
        if "url" not in image:
            return ServedImage.from_json(image)
        return ServedImage.from_json(image, (await self._send("GET", image["url"])).content)
