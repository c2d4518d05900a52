"""What a request makes an engine do, in a form that can be compared: equal for equal work, under whichever id.

Everything goes through canonical JSON, in which no value can pass from one field into the next; pictures are in it by
their hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deployments.engine.protocol.inputs import ImageArray, Mask
from deployments.engine.protocol.numerics import NUMERICS_VERSION
from deployments.engine.protocol.params import SERVICE_FIELDS
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec, as_part

# The prompt has the style in it. The seed is kept apart: a caller that gave none gets another with each try.
_NOT_THE_WORK: Final = {"seed", "style_preset", *SERVICE_FIELDS}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`work` is canonical JSON of all that decides the pixels, but for the `seed`."""

    work: str
    seed: int

    @property
    def key(self) -> str:
        """A hash of both."""
        return hash_of(f"{self.seed}:{self.work}".encode())

    @property
    def work_key(self) -> str:
        """A hash of the work alone."""
        return hash_of(self.work.encode())


def fingerprint_of(request: Request, spec: ModelSpec, setting: Any) -> Fingerprint:
    """The fingerprint of a request to `spec`. `setting` is what else its engines' pictures depend on, as plain data.

    It has the tenant in it: nobody is ever served what was made for another. Reads all pictures that came along.
    """
    assert request.params.seed is not None
    work = {
        "numerics": NUMERICS_VERSION,
        "tenant": request.tenant,
        "model": _weights_of(spec),
        "setting": setting,
        **work_of(request),
    }
    return Fingerprint(canonical(work), request.params.seed)


def work_of(request: Request) -> dict[str, Any]:
    """Parameters and pictures, without the seed, as plain data."""
    inputs, files = request.inputs, request.uploads
    return {
        "params": request.params.model_dump(mode="json", exclude=_NOT_THE_WORK),
        "inputs": [_array(each) for each in (inputs.image, inputs.mask, *inputs.hints)],
        "uploads": None
        if files is None
        else {
            "image": _file(files.image),
            "mask": _file(files.mask),
            "mask_type": files.mask_type,
            "mask_alpha": files.mask_alpha,
            "hints": [_file(hint) for hint in files.hints],
            "preprocess": files.preprocess,
            "fit": files.fit,
        },
    }


def canonical(value: Any) -> str:
    """`value` as JSON in the one form that equal values have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash_of(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _weights_of(spec: ModelSpec) -> list[Any]:
    made_of: list[Mapping[str, Any]] = [spec.parts, spec.controlnets]
    return [
        spec.name,
        spec.source,
        spec.revision,
        spec.config,
        spec.prediction_type,
        *({name: _place(each) for name, each in named.items()} for named in made_of),
    ]


def _place(part: Any) -> list[str | None]:
    return [as_part(part).source, as_part(part).revision]


def _array(picture: ImageArray | Mask | None) -> list[Any] | None:
    return None if picture is None else [list(picture.shape), hash_of(picture.tobytes())]


def _file(content: bytes | None) -> str | None:
    return None if content is None else hash_of(content)
