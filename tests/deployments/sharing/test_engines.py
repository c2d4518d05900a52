"""Two engines, as two replicas have them: an image of the one goes on from the other's state to the same bytes."""

from dataclasses import replace
from pathlib import Path

import redis
import torch

from bench.redis_server import RedisServer
from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.sharing.state_sharing import StateSharing
from tests.deployments.engine.harness import Tape, difference, engine_of, request_for
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.sharing.conftest import spec_at, wait_until


def test_an_image_goes_on_from_what_another_engine_saved(
    inside: "redis.Redis", server: RedisServer, quick: None, tmp_path: Path
) -> None:
    model = load_model(ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path))), torch.device("cpu"), torch.float32)
    tapes = Tape(), Tape()
    engines = [engine_of(model, tape) for tape in tapes]
    sharings = [StateSharing(spec_at(server.url), engine.reuse.states) for engine in engines]

    def request(name: str, seed: int) -> Request:
        asked = request_for(model, name, prompt="a cup", cache="similar", sampler="dpmpp_2m")
        return replace(asked, params=asked.params.model_copy(update={"seed": seed}), seed_drawn=True)

    engines[0].submit(request("first", 1))
    engines[0].drain()
    wait_until(lambda: sharings[1].report().received == 1)
    for request_ in (request("second", 2), replace(request("third", 2), tenant="other")):
        engines[1].submit(request_)
        engines[1].drain()
    (first,), (second,), (third,) = tapes[0].images("first"), tapes[1].images("second"), tapes[1].images("third")
    assert difference(first, second) == 0
    assert difference(first, third) > 0
    assert engines[1].tracker.total.continued == 1
    for sharing, engine in zip(sharings, engines, strict=True):
        sharing.close()
        engine.close()
