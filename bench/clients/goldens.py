"""Makes golden pictures: a small set of requests whose pictures the same engine makes beforehand, each alone.

They differ so much from each other that a picture can be traced to the request it was made for; the picture of a
neighbour in the batch is never close enough to pass.
"""

import asyncio
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.worker.engine_worker import EngineWorker

Pixels = NDArray[np.int16]

SIZE: Final = 128

# A picture is a golden one when no value differs by so much, of 255; two golden ones differ by more somewhere.
NEAR: Final = 2
FAR: Final = 32

SLOW_STEPS: Final = 16
LONG: Final = "long"
POISON: Final = "poison"

PICTURES: Final[Mapping[str, Mapping[str, Any]]] = {
    "cup": {"prompt": "a red cup on a white background", "seed": 1, "num_inference_steps": 6},
    # Alike but for the seed: nothing else tells these two apart in a batch.
    "other-cup": {"prompt": "a red cup on a white background", "seed": 2, "num_inference_steps": 6},
    "bottle": {"prompt": "a blue bottle", "seed": 3, "num_inference_steps": 5, "sampler": "euler_a"},
    "star": {"prompt": "a green star", "seed": 4, "num_inference_steps": 8, "sampler": "ddim", "guidance_scale": 1.0},
    "shoe": {"prompt": "a yellow shoe on the left", "seed": 5, "num_inference_steps": 6, "sampler": "unipc"},
    "heart": {"prompt": "a purple heart", "seed": 6, "num_inference_steps": 7, "guidance_scale": 3.0},
}
"""What load asks for: several samplers, step counts and guidances, each a tenth of a second or so."""

SLOW: Final[Mapping[str, Mapping[str, Any]]] = {
    f"slow-{name}": {**asked, "seed": asked["seed"] + 100, "num_inference_steps": SLOW_STEPS}
    for name, asked in PICTURES.items()
}
"""The same, but slower to make: an engine is overloaded with fewer requests than the way to it can carry."""

SPECIAL: Final[Mapping[str, Mapping[str, Any]]] = {
    LONG: {"prompt": "a pink box", "seed": 7, "num_inference_steps": 30},
    POISON: {"prompt": f"{POISON}: a brown ring", "seed": 8, "num_inference_steps": 10},
}
"""One that takes seconds, so that a fault can strike in its midst; and one that kills replicas that are told to die."""

NAMES: Final = tuple(PICTURES)
SLOW_NAMES: Final = tuple(SLOW)

ALL: Final[Mapping[str, Mapping[str, Any]]] = {**PICTURES, **SLOW, **SPECIAL}


def request_body(name: str) -> dict[str, Any]:
    """Returns the JSON that requests the picture `name`."""
    return {**ALL[name], "width": SIZE, "height": SIZE}


class Goldens:
    """The golden pictures, by name, [h, w, 3]. Raises ValueError if two of them could be confused."""

    def __init__(self, pictures: Mapping[str, Pixels]) -> None:
        self._pictures = dict(pictures)
        for name, distance in self._distances():
            if distance <= FAR:
                raise ValueError(f"the golden pictures {name} differ by {distance}/255 only")

    @property
    def nearest(self) -> int:
        """The smallest difference (of 255) between any two of them."""
        return min(distance for _, distance in self._distances())

    def name_of(self, file: bytes) -> str | None:
        """Returns the name of the golden picture that `file` shows; None if it shows none."""
        made = pixels(file)
        return next((name for name, golden in self._pictures.items() if difference(made, golden) < NEAR), None)

    def renamed(self, names: Mapping[str, str]) -> "Goldens":
        """Returns the same pictures under other names."""
        return Goldens({names[name]: picture for name, picture in self._pictures.items()})

    def _distances(self) -> list[tuple[str, int]]:
        named = list(self._pictures.items())
        pairs = [(one, other) for index, one in enumerate(named) for other in named[index + 1 :]]
        return [(f"{a!r} and {b!r}", difference(left, right)) for (a, left), (b, right) in pairs]


def pixels(file: bytes) -> Pixels:
    """Decodes an encoded picture to its pixels."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=np.int16)


def difference(left: Pixels, right: Pixels) -> int:
    """Returns the largest difference of any value, of 255; 255 if the sizes differ."""
    return int(np.abs(left - right).max()) if left.shape == right.shape else 255


def make_goldens(spec: ModelSpec, names: Sequence[str] = tuple(ALL)) -> Goldens:
    """Makes the pictures one by one, each alone, on one thread of this machine's CPU."""
    worker = EngineWorker.load([spec], EngineConfig(device="cpu", dtype="float32", threads=1))
    try:
        return Goldens({name: pixels(asyncio.run(_generate(worker, spec, name))) for name in names})
    finally:
        worker.stop()


async def _generate(worker: EngineWorker, spec: ModelSpec, name: str) -> bytes:
    request = Request(name, effective_params(GenerationParams(**request_body(name)), spec))
    done = [event async for event in worker.generate(request) if isinstance(event, ImageDone)]
    return done[0].data
