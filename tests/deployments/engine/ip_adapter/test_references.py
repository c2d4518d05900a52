"""A row with reference images is diffusers' picture with its IP-Adapter loaded, alone and among all sorts of others."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from bench.engine.pipelines import arguments
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.events import Failed, ImageDone, ImageFailed
from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import IpAdapterSpec
from tests.deployments.engine.harness import Tape, difference, load_reference, request_for, run
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import (
    call_with_images,
    load_adapter,
    reference_with_images,
    with_images,
)
from tests.deployments.engine.lora.rows.loras import TEXT, TinyLora, reading, with_loras
from tests.deployments.engine.test_kinds import KINDS, picture

WIDE: Final[ImageArray] = np.kron(picture(21)[:40], np.ones((1, 2, 1), np.uint8))
TALL: Final[ImageArray] = picture(22)[:, :30]

REFERENCES: Final[dict[str, tuple[tuple[ImageArray, ...], dict[str, Any]]]] = {
    "plain": ((WIDE,), {"adapter": "plain"}),
    "plain, weak": ((TALL,), {"adapter": "plain", "scale": 0.4}),
    "another": ((WIDE,), {"adapter": "other", "scale": 1.3}),
    "plus": ((TALL,), {"adapter": "plus"}),
    "two images": ((WIDE, TALL), {"adapter": "plain", "scale": 0.8}),
    "three images of plus": ((WIDE, TALL, picture(23)), {"adapter": "plus", "weights": (1.0, 0.3, 0.0)}),
    "for a while": ((WIDE,), {"adapter": "plain", "start": 0.2, "end": 0.7}),
    "at the end": ((TALL,), {"adapter": "plus", "start": 0.5}),
    "of no weight": ((WIDE,), {"adapter": "plain", "scale": 0.0}),
}
MORE: Final[dict[str, dict[str, Any]]] = {
    "plain": {"guidance_scale": 1},
    "plus": {"negative_prompt": "a red cup"},
    "two images": {"sampler": "dpmpp_2m"},
}
SETTINGS: Final[dict[str, Any]] = {"num_inference_steps": 5, "sampler": "euler_a", "guidance_scale": 4}

LORAS: Final = {"everything": TinyLora("everything", 3, 3, ("",), TEXT, strength=0.3)}


def refer(request: Request, name: str, **settings: Any) -> Request:
    """`request` with the reference images of that name."""
    images, own = REFERENCES[name]
    return with_images(request, images, **own | settings)


def asked_of(model: LoadedModel, **more: Any) -> list[Request]:
    """A request for each kind of reference, for each kind of input with one of them, and for some without any."""
    asked = [refer(request_for(model, n, **SETTINGS | MORE.get(n, {}) | more), n) for n in REFERENCES]
    names = list(REFERENCES)
    for i, (kind, (inputs, own)) in enumerate(KINDS.items()):
        request = request_for(model, kind, inputs, seed=i, **SETTINGS | own | more)
        asked.append(refer(request, names[i % len(names)]))
    plain = [request_for(model, f"without {i}", seed=i, **SETTINGS | more) for i in range(3)]
    return [*asked, *plain]


@pytest.fixture(scope="session")
def crowd(tiny_referring: LoadedModel) -> tuple[list[Request], Tape]:
    asked = asked_of(tiny_referring)
    tape, engine = run(tiny_referring, asked, max_rows=64)
    assert [each for request in asked for kind in (Failed, ImageFailed) for each in tape.of(request.id, kind)] == []
    assert engine.tracker.total.unet_calls < 10
    return asked, tape


@pytest.mark.parametrize("kind", [*REFERENCES, *KINDS, "without 0"])
def test_each_kind_in_a_crowd_of_others_is_the_picture_of_diffusers(
    kind: str,
    crowd: tuple[list[Request], Tape],
    tiny_referring: LoadedModel,
    tiny_checkpoint: Path,
    ip_adapters: dict[str, IpAdapterSpec],
) -> None:
    asked, tape = crowd
    request = next(each for each in asked if each.id == kind)
    reference = reference_with_images(tiny_checkpoint, tiny_referring, request, ip_adapters)
    assert difference(tape.images(kind)[0], reference) <= 1
    alone, _ = run(tiny_referring, [request])
    assert difference(alone.images(kind)[0], reference) <= 1


def test_with_loras_it_is_the_picture_of_diffusers_with_both(
    tiny_referring: LoadedModel, tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec]
) -> None:
    """A LoRA of the projections of the prompt leaves those of the references as they are."""
    requests = [
        with_loras(refer(request_for(tiny_referring, name, **SETTINGS), name), LORAS["everything"].use(scale))
        for name, scale in (("plain", 0.8), ("plus", -0.5))
    ]
    others = [refer(request_for(tiny_referring, "without", **SETTINGS), "two images")]
    tape, _ = run(tiny_referring, [*requests, *others], read_adapter=reading(LORAS))
    for request in requests:
        pipeline = load_reference(tiny_checkpoint, tiny_referring, request)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline.load_lora_weights(LORAS["everything"].state(), adapter_name="everything")
        pipeline.set_adapters(["everything"], [request.loras[0].scale])
        reference = call_with_images(pipeline, tiny_referring, request, ip_adapters)
        assert difference(tape.images(request.id)[0], reference) <= 1, request.id


def test_both_passes_see_the_reference(
    tiny_referring: LoadedModel, tiny_checkpoint: Path, ip_adapters: dict[str, IpAdapterSpec]
) -> None:
    more: dict[str, Any] = {"sampler": "ddim", "hires": {"scale": 1.5, "strength": 0.6}}
    request = refer(request_for(tiny_referring, "x", **SETTINGS | more), "two images", end=0.8)
    tape, _ = run(tiny_referring, [request, refer(request_for(tiny_referring, "other", **SETTINGS), "plus")])
    second, asked = request.second_pass, request.params.reference
    assert second is not None
    assert asked is not None
    first = load_reference(tiny_checkpoint, tiny_referring, request)
    options = load_adapter(first, ip_adapters["plain"], request, asked)
    latents = first(**(arguments([request], 0) | options), output_type="latent").images
    larger = torch.nn.functional.interpolate(latents, size=(12, 12), mode="bilinear")
    blank = np.zeros((96, 96, 3), np.uint8)
    followed = replace(second, inputs=Inputs(image=blank, references=request.inputs.references))
    reference = reference_with_images(tiny_checkpoint, tiny_referring, followed, ip_adapters, image=larger)
    assert difference(tape.images("x")[0], reference) <= 1


@pytest.mark.parametrize(
    "changed",
    [
        {"images": (TALL,)},
        {"images": (WIDE, TALL)},
        {"images": (WIDE, TALL), "weights": (0.2, 1.0)},
        {"adapter": "other"},
        {"adapter": "plus"},
        {"scale": 0.3},
        {"end": 0.4},
        {"images": ()},
    ],
    ids=str,
)
def test_everything_that_is_asked_for_shows(changed: dict[str, Any], tiny_referring: LoadedModel) -> None:
    one, other = (request_for(tiny_referring, name, prompt="a cup", **SETTINGS) for name in ("one", "other"))
    one = refer(one, "plain")
    settings = {"adapter": "plain"} | changed
    if images := settings.pop("images", (WIDE,)):
        other = with_images(other, images, **settings)
    tape, _ = run(tiny_referring, [one, other])
    assert difference(tape.images("one")[0], tape.images("other")[0]) > 4


def test_a_row_without_references_has_the_bits_of_a_model_without_adapters(
    tiny_referring: LoadedModel, tiny_controlled: LoadedModel
) -> None:
    asked = asked_of(tiny_referring)
    together, _ = run(tiny_referring, asked, max_rows=64, padded_sizes=(64,))
    for request in (each for each in asked if each.params.reference is None):
        before, _ = run(tiny_controlled, [request], max_rows=64, padded_sizes=(64,))
        assert together.of(request.id, ImageDone)[0].data == before.of(request.id, ImageDone)[0].data, request.id


def test_to_be_exact_is_to_have_the_same_bits_beside_any_others(tiny_referring: LoadedModel) -> None:
    asked = asked_of(tiny_referring, exact=True)[::3]
    crowd = asked_of(tiny_referring)
    others = [replace(each, id=f"{each.id}, not exact") for each in crowd[:6] + crowd[-1:]]
    together, _ = run(tiny_referring, [*asked, *others])
    for request in asked:
        alone, _ = run(tiny_referring, [request])
        assert difference(together.images(request.id)[0], alone.images(request.id)[0]) == 0, request.id


def test_steps_without_the_deep_blocks_see_the_reference(tiny_referring: LoadedModel) -> None:
    asked = [
        request_for(tiny_referring, "x", deep_cache=2, **SETTINGS),
        refer(request_for(tiny_referring, "y", prompt="a picture of x", deep_cache=2, **SETTINGS), "plus"),
        refer(request_for(tiny_referring, "z", prompt="a picture of x", **SETTINGS), "plus"),
    ]
    tape, _ = run(tiny_referring, asked)
    cached, whole = tape.images("y")[0], tape.images("z")[0]
    assert difference(cached, tape.images("x")[0]) > 4
    assert 0 < float(np.abs(cached - whole).mean()) < 20
    alone, _ = run(tiny_referring, asked[1:2])
    # Together they were six entries, padded to eight.
    assert difference(cached, alone.images("y")[0]) <= 1
