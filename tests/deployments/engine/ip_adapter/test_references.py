"""A row with reference images is diffusers' picture with its IP-Adapter loaded, alone and among all sorts of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.request import NO_INPUTS, Request
from deployments.engine.protocol.spec import IpAdapterSpec
from tests.deployments.engine.harness import Tape, difference, request_for, run
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import reference_with_images
from tests.deployments.engine.lora.rows.loras import ATTENTION, TinyLora, reading, with_loras
from tests.deployments.engine.test_kinds import KINDS, picture

WIDE: Final[ImageArray] = np.kron(picture(21)[:40], np.ones((1, 2, 1), np.uint8))
TALL: Final[ImageArray] = picture(22)[:, :30]

REFERENCES: Final[dict[str, tuple[tuple[ImageArray, ...], dict[str, Any]]]] = {
    "plain": ((WIDE,), {"adapter": "plain"}),
    "plain, weak": ((TALL,), {"adapter": "plain", "scale": 0.4}),
    "another": ((WIDE,), {"adapter": "other", "scale": 1.3}),
    "plus": ((TALL,), {"adapter": "plus"}),
    "two images": ((WIDE, TALL), {"adapter": "plain", "scale": 0.8}),
    "three images of plus": ((WIDE, TALL, picture(23)), {"adapter": "plus", "weights": [1.0, 0.3, 0.0]}),
    "for a while": ((WIDE,), {"adapter": "plain", "start": 0.2, "end": 0.7}),
    "at the end": ((TALL,), {"adapter": "plus", "start": 0.5}),
    "of no weight": ((WIDE,), {"adapter": "plain", "scale": 0.0}),
}
MORE: Final[dict[str, dict[str, Any]]] = {
    "plain": {"guidance_scale": 1},
    "plus": {"negative_prompt": "a red cup"},
    "two images": {"sampler": "dpmpp_2m"},
}


def refer(request: Request, name: str) -> Request:
    """`request` with the reference images of that name."""
    images, settings = REFERENCES[name]
    params = request.params.model_validate(request.params.model_dump() | {"reference": settings})
    return replace(request, params=params, inputs=replace(request.inputs, references=images))


def asked_of(model: LoadedModel, **more: Any) -> list[Request]:
    """A request for each kind of reference, for each kind of input with one of them, and for some without any."""
    settings: dict[str, Any] = {"num_inference_steps": 5, "sampler": "euler_a", "guidance_scale": 4}
    asked = [refer(request_for(model, n, **settings | MORE.get(n, {}) | more), n) for n in REFERENCES]
    names = list(REFERENCES)
    for i, (kind, (inputs, own)) in enumerate(KINDS.items()):
        request = request_for(model, kind, inputs, seed=i, **settings | own | more)
        asked.append(refer(request, names[i % len(names)]))
    plain = [request_for(model, f"without {i}", seed=i, **settings | more) for i in range(3)]
    return [*asked, *plain]


@pytest.fixture(scope="session")
def crowd(referring_model: LoadedModel) -> tuple[list[Request], Tape]:
    asked = asked_of(referring_model)
    tape, engine = run(referring_model, asked, max_rows=64)
    assert engine.tracker.total.unet_calls < 10
    return asked, tape


@pytest.mark.parametrize("kind", [*REFERENCES, *KINDS, "without 0"])
def test_each_kind_in_a_crowd_of_others_is_the_picture_of_diffusers(
    kind: str,
    crowd: tuple[list[Request], Tape],
    referring_model: LoadedModel,
    tiny_checkpoint: Path,
    ip_adapters: dict[str, IpAdapterSpec],
) -> None:
    asked, tape = crowd
    request = next(each for each in asked if each.id == kind)
    reference = reference_with_images(tiny_checkpoint, referring_model, request, ip_adapters)
    assert difference(tape.images(kind)[0], reference) <= 1
    alone, _ = run(referring_model, [request])
    assert difference(alone.images(kind)[0], reference) <= 1
