"""A layer in front of the engines that labels the files of finished pictures."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from deployments.engine.protocol.errors import GenerationFailed
from deployments.engine.protocol.events import Event, ImageDone, ImageFailed
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.request import Request
from serve_app.backends.layer import Layer
from serve_app.backends.protocol import Backend
from serve_app.labels.labeller import Labeller

log = logging.getLogger(__name__)


class LabellingBackend(Layer):
    """Has the pictures of `inner` marked where they are made, and labels their files here, where the key is.

    It stands behind the cache: a file is labelled once, however often it is served.
    """

    def __init__(self, inner: Backend, labeller: Labeller) -> None:
        super().__init__(inner)
        self._labeller = labeller

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        # The files that it brings are still needed when its first picture is made.
        marked = replace(request, mark=self._labeller.mark)
        async with aclosing(self.inner.generate(marked)) as events:
            async for event in events:
                yield await asyncio.to_thread(self._label, event, request) if isinstance(event, ImageDone) else event

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        return await self.inner.enlarge(replace(enlargement, mark=self._labeller.mark))

    def _label(self, image: ImageDone, request: Request) -> Event:
        """Labels an image; one that cannot be labelled is not given out."""
        try:
            return self._labeller.label(image, request)
        except Exception:
            log.exception("request %s: an image could not be labelled", request.id)
            return ImageFailed(image.request_id, image.index, GenerationFailed("the image could not be labelled"))
