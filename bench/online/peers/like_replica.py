"""A replica whose engine merges only like rows into one UNet call. It is deployed in place of `ModelReplica`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Any

from deployments.engine.protocol.events import Event
from deployments.engine.protocol.request import Bucket, Request
from deployments.model_deployment import ModelReplica


@dataclass(frozen=True, slots=True)
class LikeBucket(Bucket):
    """The key of rows that can share a UNet call, with what else must be equal here."""

    sampler: str
    guided: bool


class LikeRequest(Request):
    """A request whose rows share calls with those of like requests only."""

    @property
    def bucket(self) -> LikeBucket:
        assert self.params.width is not None
        assert self.params.height is not None
        sampler, guided = str(self.params.sampler), self.unet_rows > 1
        return LikeBucket(self.model, self.params.height, self.params.width, sampler, guided)


class LikeReplica(ModelReplica):
    """Takes every request for one that shares calls with like ones only."""

    async def generate(self, request: Request, version: str = "") -> AsyncGenerator[Event, None]:
        given: dict[str, Any] = {each.name: getattr(request, each.name) for each in fields(request)}
        async with aclosing(super().generate(LikeRequest(**given), version)) as events:
            async for event in events:
                yield event
