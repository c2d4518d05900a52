"""C2PA manifests: signs who made a picture and how into its file, and reads what a file's manifest says.

Files may be anybody's, so nothing is ever fetched for a manifest, and what one unpacks to is bounded.
"""

import io
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Final, Literal

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from serve_app.config.errors import ConfigError
from serve_app.config.labels import SigningConfig
from serve_app.labels.development_certificate import make_development_certificate
from serve_app.labels.source_type import NAMESPACE, SourceType
from serve_app.observability.versions import darkroom_version

State = Literal["none", "valid", "invalid", "unreadable"]

KeyOrigin = Literal["the operator's", "derived from redis.key", "drawn at this start"]

MAX_INGREDIENT_BYTES: Final = 1024 * 1024
"""What the manifests of a request's own pictures may add to each of its files."""

_SETTINGS: Final = {
    "version": 1,
    "core": {"max_decompressed_manifest_size_in_mb": 4, "allowed_network_hosts": []},
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}
_MAX_WORDS: Final = 200

# Far more than a manifest store of the size that is unpacked has in earnest.
_MAX_VALUES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that a file was made from: one that was changed is its parent; hints and references are inputs."""

    file: bytes
    is_parent: bool


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a manifest of ours says. `sources` are the request's own pictures, at most one of them a parent.

    `is_resized` says that the parent has only got another size.
    """

    source_type: SourceType
    sources: Sequence[Source] = ()
    is_watermarked: bool = False
    is_resized: bool = False


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """What a file's manifest says, and whether the file is still as it was signed.

    `valid` is unchanged since, whoever signed it; `is_ours` also that the signer's certificate is our own.
    `every_source_type` is what the manifests of the pictures that it was made from say, too.
    """

    state: State
    is_ours: bool = False
    signer: str | None = None
    generator: str | None = None
    source_types: tuple[str, ...] = ()
    every_source_type: frozenset[str] = frozenset()
    actions: tuple[str, ...] = ()
    ingredients: int = 0


class ManifestSigner:
    """Signs files. May be used by several threads."""

    def __init__(self, config: SigningConfig, development_secret: bytes | None = None) -> None:
        """Without a certificate in `config`, one is derived from `development_secret`, or from a drawn one.

        Raises ConfigError if the certificate and the key cannot be read, or do not sign.
        """
        self.key_origin: KeyOrigin = "the operator's"
        if config.certificate is None or config.private_key is None:
            self.key_origin = "derived from redis.key" if development_secret else "drawn at this start"
            self.chain, key = make_development_certificate(development_secret or secrets.token_bytes(32))
        else:
            self.chain, key = config.certificate.read("labels.c2pa.certificate"), config.private_key.read("labels.c2pa")
        algorithm = "es256" if self.is_development else config.algorithm
        self._lock = Lock()
        try:
            own = x509.load_pem_x509_certificates(self.chain.encode())[0]
            if load_pem_private_key(key.encode(), None).public_key() != own.public_key():
                raise ValueError("the key is another's")
            self._signer = c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(algorithm.encode(), self.chain.encode(), key.encode(), None)
            )
            self._context = c2pa.Context.from_dict(_SETTINGS)
        except (c2pa.C2paError, ValueError, TypeError, IndexError):
            # The library's own message might repeat the key.
            raise ConfigError("labels.c2pa: the certificate chain and the private key are not a pair in PEM") from None
        self.certificate, self.expires = own.public_bytes(Encoding.PEM).decode(), own.not_valid_after_utc

    @property
    def is_development(self) -> bool:
        """Whether the certificate is one that nobody should trust."""
        return self.key_origin != "the operator's"

    def sign(self, file: bytes, provenance: Provenance) -> bytes:
        """Returns `file`, a PNG, JPEG or WebP, with a signed manifest.

        Sources with a broken manifest are left out, and those whose manifests are too large together; the parent is
        the last to be. Raises C2paError if it cannot be signed.
        """
        if provenance.sources and (signed := self._try_to_sign(file, provenance)) is not None:
            return signed
        kept: tuple[Source, ...] = ()
        best: bytes | None = None
        for source in sorted(provenance.sources, key=lambda each: not each.is_parent):
            signed = self._try_to_sign(file, replace(provenance, sources=(*kept, source)))
            if signed is not None:
                kept, best = (*kept, source), signed
        return self._sign(file, replace(provenance, sources=())) if best is None else best

    def _try_to_sign(self, file: bytes, provenance: Provenance) -> bytes | None:
        """Returns the signed file; None where its sources cannot be read, or are too large."""
        try:
            signed = self._sign(file, provenance)
        except c2pa.C2paError:
            return None
        return signed if len(signed) - len(file) <= MAX_INGREDIENT_BYTES else None

    def _sign(self, file: bytes, provenance: Provenance) -> bytes:
        signed = io.BytesIO()
        with self._lock, c2pa.Builder.from_json(_manifest_of(provenance), self._context) as builder:
            for index, source in enumerate(provenance.sources):
                described = {
                    "title": "input",
                    "relationship": "parentOf" if source.is_parent else "inputTo",
                    "label": f"input {index}",
                }
                builder.add_ingredient(described, media_type_of(source.file), io.BytesIO(source.file))
            builder.sign(self._signer, media_type_of(file), io.BytesIO(file), signed)
        return signed.getvalue()


class ManifestReader:
    """Reads manifests of anybody's files. May be used by several threads."""

    def __init__(self, own_certificate: str | None = None) -> None:
        """`own_certificate`, in PEM, is the one whose manifests are ours."""
        # The whole certificate is compared: its number and its names are anybody's to choose.
        own = [{"trust_anchors": "", "allowed_list": own_certificate, "trust_uri": "own", "trust_kind": "manifest"}]
        trust = {"trust": {"anchors": own}} if own_certificate is not None else {}
        self._context = c2pa.Context.from_dict({**_SETTINGS, **trust})
        self._lock = Lock()

    def read(self, file: bytes) -> ManifestReport:
        """Returns what the manifest of `file`, a PNG, JPEG or WebP, says."""
        try:
            with self._lock:
                reader = c2pa.Reader.try_create(media_type_of(file), io.BytesIO(file), context=self._context)
                if reader is None:
                    return ManifestReport("none")
                with reader:
                    state, store = reader.get_validation_state(), json.loads(reader.json())
        except (c2pa.C2paError, ValueError, RecursionError):
            return ManifestReport("unreadable")
        return _report_of(state, store)


def media_type_of(file: bytes) -> str:
    """Returns the media type of a PNG, JPEG or WebP file, by its first bytes."""
    if file.startswith(b"\x89PNG"):
        return "image/png"
    return "image/jpeg" if file.startswith(b"\xff\xd8") else "image/webp"


def _manifest_of(provenance: Provenance) -> dict[str, Any]:
    agent = {"name": "Darkroom", "version": darkroom_version()}
    said = {"digitalSourceType": NAMESPACE + provenance.source_type, "softwareAgent": agent}
    numbered = list(enumerate(provenance.sources))
    parents, inputs = ([f"input {i}" for i, each in numbered if each.is_parent is kind] for kind in (True, False))
    changed = "c2pa.resized" if provenance.is_resized else "c2pa.edited"
    actions: list[dict[str, Any]] = [{"action": changed if parents else "c2pa.created", **said}]
    if parents:
        actions.insert(0, {"action": "c2pa.opened", "parameters": {"ingredientIds": parents}})
    if inputs:
        actions[-1]["parameters"] = {"ingredientIds": inputs}
    if provenance.is_watermarked:
        actions.append({"action": "c2pa.watermarked.unbound"})
    return {
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def _report_of(state: str | None, store: Any) -> ManifestReport:
    """Picks what is told of a manifest store out of JSON that may say anything."""
    manifests = _object(_object(store).get("manifests"))
    manifest = _object(manifests.get(_words(_object(store).get("active_manifest")) or ""))
    signature = _object(manifest.get("signature_info"))
    generator = _object(next(iter(_objects(manifest.get("claim_generator_info"))), {}))
    actions = list(_actions_of(manifest))
    types = (_words(action.get("digitalSourceType")) for action in actions)
    return ManifestReport(
        state="valid" if state in ("Valid", "Trusted") else "invalid",
        is_ours=state == "Trusted",
        signer=_words(signature.get("common_name")) or _words(signature.get("issuer")),
        generator=_words(generator.get("name")),
        source_types=tuple(each.rpartition("/")[2] for each in types if each),
        every_source_type=frozenset(_source_types_in(manifests)),
        actions=tuple(each for each in (_words(action.get("action")) for action in actions) if each),
        ingredients=len(list(_objects(manifest.get("ingredients")))),
    )


def _actions_of(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for assertion in _objects(manifest.get("assertions")):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            yield from list(_objects(_object(assertion.get("data")).get("actions")))[:20]


def _source_types_in(manifests: dict[str, Any]) -> Iterator[str]:
    """Yields IPTC's codes, wherever in the manifests they are: in actions, in templates of those, in metadata."""
    waiting: list[Any] = [manifests]
    for _ in range(_MAX_VALUES):
        if not waiting:
            break
        value = waiting.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, str) and name.rpartition(":")[2].lower() == "digitalsourcetype":
                    yield (_words(inner) or "").rpartition("/")[2]
            value = list(value.values())
        if isinstance(value, list):
            waiting.extend(each for each in value if isinstance(each, dict | list))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (each for each in value if isinstance(each, dict)) if isinstance(value, list) else iter(())


def _words(value: Any) -> str | None:
    """A text that can be shown, if it is one."""
    return "".join(each for each in value[:_MAX_WORDS] if each.isprintable()) if isinstance(value, str) else None
