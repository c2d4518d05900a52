"""Fingerprints of the work that a request asks for: equal for equal work, whatever the request's id.

Everything is encoded as canonical JSON, in which no value can spill into the next field; images are included by hash.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from deployments.engine.protocol.inputs import ImageArray, Mask
from deployments.engine.protocol.numerics import NUMERICS_VERSION
from deployments.engine.protocol.params import SERVICE_FIELDS
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec, as_part

# The prompt includes the style and the template. The seed is separate: a caller that gives none gets another one each
# time.
_NOT_THE_WORK: Final = {"seed", "style_preset", "template", "template_values", *SERVICE_FIELDS}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`work` is canonical JSON of everything that decides the pixels, except the `seed`."""

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
    """The fingerprint of a request to `spec`. `setting` is what else its engines' images depend on, as plain data.

    It includes the tenant, so that nobody is served what was made for another. Reads all uploads.
    """
    assert request.params.seed is not None
    work = {
        "numerics": NUMERICS_VERSION,
        "tenant": request.tenant,
        "model": weights_of(spec),
        "setting": setting,
        **work_of(request),
    }
    return Fingerprint(canonical_json(work), request.params.seed)


def work_of(request: Request) -> dict[str, Any]:
    """The parameters and uploads, without the seed, as plain data."""
    inputs, files = request.inputs, request.uploads
    return {
        "params": request.params.model_dump(mode="json", exclude=_NOT_THE_WORK),
        "embeddings": [list(file.identity) for file in request.embeddings],
        # The names are in the files' texts; what is behind them decides the pixels.
        "loras": [[*use.file.identity, use.scale] for use in request.loras],
        "inputs": [_hash_array(each) for each in (inputs.image, inputs.mask, *inputs.hints)],
        "references": [_hash_array(each) for each in inputs.references],
        "uploads": None
        if files is None
        else {
            "image": _hash_file(files.image),
            "mask": _hash_file(files.mask),
            "mask_type": files.mask_type,
            "mask_alpha": files.mask_alpha,
            "hints": [_hash_file(hint) for hint in files.hints],
            "references": [_hash_file(reference) for reference in files.references],
            "preprocess": files.preprocess,
            "fit": files.fit,
        },
    }


def canonical_json(value: Any) -> str:
    """Encodes `value` as JSON in the one form that equal values share."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash_of(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def weights_of(spec: ModelSpec) -> list[Any]:
    """What its images depend on of a model, as plain data."""
    made_of: list[Mapping[str, Any]] = [spec.parts, spec.controlnets]
    return [
        spec.name,
        spec.source,
        spec.revision,
        spec.config,
        spec.prediction_type,
        *({name: _source_of(each) for name, each in named.items()} for named in made_of),
        # What was made unchecked is not served where images are checked.
        *([asdict(spec.safety)] if spec.safety.is_on else []),
        *([{"file": spec.file}] if spec.file else []),
        *(["encoded and decoded in tiles"] if spec.vae_tiling else []),
        *([{name: asdict(adapter) for name, adapter in spec.ip_adapters.items()}] if spec.ip_adapters else []),
        *([{"local files": spec.local_digest}] if spec.local_digest else []),
    ]


def version_of(specs: Iterable[ModelSpec], settings: Mapping[str, Any]) -> str:
    """Returns a digest of all that the images of engines that host `specs` depend on; `settings` by model, plain data.

    Engines of the same version give the same images, and may continue each other's.
    """
    engine = [NUMERICS_VERSION, [[weights_of(spec), settings[spec.name]] for spec in specs]]
    return hash_of(canonical_json(engine).encode())


def _source_of(part: Any) -> list[str | None]:
    given = as_part(part)
    return [given.source, given.revision, *([] if given.mode is None else [str(given.mode)])]


def _hash_array(image: ImageArray | Mask | None) -> list[Any] | None:
    return None if image is None else [list(image.shape), hash_of(image.tobytes())]


def _hash_file(content: bytes | None) -> str | None:
    return None if content is None else hash_of(content)
