"""Writes a request as an HTTP message: to Darkroom in its own API, to the peers as one JSON object. Peers read it here.

Both answer with the bytes of one PNG, so nobody pays for more than its picture.
"""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.engine.protocol.inputs import Inputs, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from serve_app.client.messages import encode_request

PEERS_PATH: Final = "/generate"
PEERS_HEALTH: Final = "/health"

ASKED: Final = (
    "prompt",
    "seed",
    "num_inference_steps",
    "sampler",
    "guidance_scale",
    "width",
    "height",
    "strength",
    "model_name",
)


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: the path, and httpx's arguments of a POST."""

    path: str
    options: Mapping[str, Any] = field(repr=False)


def message_to_darkroom(request: Request, deadline_s: float | None) -> Message:
    """Writes `request` as Darkroom's API has it, where a caller can say how long it waits."""
    body = _asked(request)
    if deadline_s is not None:
        body["deadline_ms"] = round(deadline_s * 1000)
    files = _files(request)
    path, options = encode_request(body, Uploads(image=files["image"], mask=files.get("mask")) if files else None)
    return Message(path, {**options, "headers": {"Accept": "image/png"}})


def message_to_peer(request: Request) -> Message:
    """Writes `request` as the peers' servers of this bench read it."""
    images = {name: base64.b64encode(file).decode() for name, file in _files(request).items()}
    return Message(PEERS_PATH, {"json": {"name": request.id, "params": _asked(request), **images}})


def read_request(body: bytes | Mapping[str, Any]) -> Request:
    """Reads what `message_to_peer` has written: the JSON, or the object that a framework has made of it."""
    asked = json.loads(body) if isinstance(body, bytes) else body
    inputs = Inputs(image=_read_image(asked.get("image")), mask=_read_image(asked.get("mask")))
    return Request(asked["name"], GenerationParams(**asked["params"]), inputs=inputs)


def png_of(picture: NDArray[np.uint8]) -> bytes:
    """Encodes a picture [H, W, 3] or a mask [H, W] at the level of compression that Darkroom uses."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=4)
    return file.getvalue()


def _asked(request: Request) -> dict[str, Any]:
    asked = request.params.model_dump(include=set(ASKED))
    return {name: value for name, value in asked.items() if value is not None}


def _files(request: Request) -> dict[str, bytes]:
    named = {"image": request.inputs.image, "mask": request.inputs.mask}
    return {name: png_of(array) for name, array in named.items() if array is not None}


def _read_image(encoded: str | None) -> NDArray[np.uint8] | None:
    return None if encoded is None else np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=np.uint8)
