"""A manifest says who made a picture and from what, and a changed picture is told from one that was not."""

import io
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

from serve_app.config.errors import ConfigError
from serve_app.config.labels import SigningConfig
from serve_app.config.secret import Secret
from serve_app.labels import manifests
from serve_app.labels.development_certificate import make_development_certificate
from serve_app.labels.manifests import ManifestReader, ManifestSigner, Provenance, Source
from serve_app.labels.source_type import CHANGED, MADE, NAMESPACE
from tests.serve_app.labels.files import FORMATS, file_of, opened, pixels_of

SIGNER = ManifestSigner(SigningConfig())
READER = ManifestReader(SIGNER.certificate)
SECRET, OTHER_SECRET = b"a" * 32, b"b" * 32

every_format = pytest.mark.parametrize("output_format", FORMATS)


def signer_with(chain: str, key: str, folder: Path) -> ManifestSigner:
    (folder / "chain.pem").write_text(chain)
    (folder / "key.pem").write_text(key)
    files = Secret(file=folder / "chain.pem"), Secret(file=folder / "key.pem")
    return ManifestSigner(SigningConfig(certificate=files[0], private_key=files[1]))


def cloned(chain: str) -> tuple[str, str]:
    """A chain whose certificates have all that these have, but for their keys and signatures, and its private key."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    made = []
    for true, key in zip(x509.load_pem_x509_certificates(chain.encode()), keys, strict=True):
        builder = x509.CertificateBuilder(true.issuer, true.subject, key.public_key(), true.serial_number)
        builder = builder.not_valid_before(true.not_valid_before_utc).not_valid_after(true.not_valid_after_utc)
        for extension in true.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        made.append(builder.sign(keys[1], hashes.SHA256()).public_bytes(Encoding.PEM).decode())
    return "".join(made), keys[0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def edited_elsewhere(file: bytes, *assertions: dict[str, Any]) -> bytes:
    """The file as another program gives it out that has changed something, and says of that what `assertions` say."""
    actions = [
        {"action": "c2pa.opened", "parameters": {"ingredientIds": ["opened"]}},
        {"action": "c2pa.color_adjustments"},
    ]
    manifest = {
        "claim_generator_info": [{"name": "Retoucher", "version": "1"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}, *assertions],
    }
    chain, key = make_development_certificate(OTHER_SECRET)
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain.encode(), key.encode(), None))
    signed, context = io.BytesIO(), c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    with c2pa.Builder.from_json(manifest, context) as builder:
        described = {"title": "opened", "relationship": "parentOf", "label": "opened"}
        builder.add_ingredient(described, "image/png", io.BytesIO(file))
        builder.sign(signer, "image/png", io.BytesIO(file_of("png")), signed)
    return signed.getvalue()


def test_a_certificate_with_our_number_and_names_is_another_s(tmp_path: Path) -> None:
    forger = signer_with(*cloned(SIGNER.chain), tmp_path)
    forged = forger.sign(file_of("png"), Provenance(MADE))
    report = READER.read(forged)
    assert (report.state, report.signer, report.is_ours) == ("valid", "Darkroom development certificate", False)
    assert ManifestReader(forger.certificate).read(forged).is_ours


def test_a_certificate_of_our_own_authority_is_another_s(tmp_path: Path) -> None:
    authority = signer_with(*make_development_certificate(SECRET), tmp_path)
    own, root = x509.load_pem_x509_certificates(authority.chain.encode())
    reader = ManifestReader(root.public_bytes(Encoding.PEM).decode())
    assert not reader.read(authority.sign(file_of("png"), Provenance(MADE))).is_ours
    assert (
        ManifestReader(own.public_bytes(Encoding.PEM).decode())
        .read(authority.sign(file_of("png"), Provenance(MADE)))
        .is_ours
    )


def test_a_file_of_ours_that_another_has_changed_is_not_ours_any_more() -> None:
    report = READER.read(edited_elsewhere(SIGNER.sign(file_of("png"), Provenance(MADE))))
    assert (report.state, report.ingredients, report.is_ours) == ("valid", 1, False)


def test_what_another_program_has_edited_and_signed_still_says_what_made_it() -> None:
    once = edited_elsewhere(SIGNER.sign(file_of("png"), Provenance(MADE)))
    for edited in (once, edited_elsewhere(once)):
        report = READER.read(edited)
        assert (report.state, report.generator, report.source_types) == ("valid", "Retoucher", ())
        assert report.every_source_type == {MADE}
    assert READER.read(edited_elsewhere(file_of("png"))).every_source_type == frozenset()


def test_a_source_type_is_found_behind_many_actions_and_in_other_assertions() -> None:
    many = [{"action": "c2pa.color_adjustments"}] * 100
    late = {"label": "c2pa.actions", "data": {"actions": [*many, {"action": "c2pa.edited", **said(CHANGED)}]}}
    assert READER.read(edited_elsewhere(file_of("png"), late)).every_source_type == {CHANGED}
    context = {"Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"}
    data = {"@context": context, "Iptc4xmpExt:DigitalSourceType": NAMESPACE + MADE}
    metadata = {"label": "c2pa.metadata", "data": data}
    assert READER.read(edited_elsewhere(file_of("png"), metadata)).every_source_type == {MADE}


def said(source_type: str) -> dict[str, str]:
    return {"digitalSourceType": NAMESPACE + source_type}


@every_format
def test_a_signed_file_says_who_made_it_and_that_a_machine_did(output_format: str) -> None:
    file = file_of(output_format)
    signed = SIGNER.sign(file, Provenance(MADE, is_watermarked=True))
    report = READER.read(signed)
    assert (report.state, report.generator, report.is_ours) == ("valid", "Darkroom", True)
    assert report.signer == "Darkroom development certificate"
    assert report.source_types == (MADE,)
    assert report.actions == ("c2pa.created", "c2pa.watermarked.unbound")
    assert (pixels_of(signed) == pixels_of(file)).all()
    assert len(signed) - len(file) < 5000


@every_format
def test_a_changed_file_is_told_from_a_signed_one(output_format: str) -> None:
    file = file_of(output_format, 256, 256)
    signed = bytearray(SIGNER.sign(file, Provenance(MADE)))
    signed[signed.index(file[2000:2100]) + 50] ^= 1
    report = READER.read(bytes(signed))
    assert (report.state, report.is_ours) == ("invalid", False)


@every_format
def test_a_file_without_a_manifest_has_none(output_format: str) -> None:
    assert READER.read(file_of(output_format)).state == "none"


@every_format
def test_a_picture_that_was_changed_keeps_its_own_manifest(output_format: str) -> None:
    uploaded = SIGNER.sign(file_of("png"), Provenance(MADE))
    made = SIGNER.sign(file_of(output_format), Provenance(CHANGED, (Source(uploaded, is_parent=True),)))
    report = READER.read(made)
    assert (report.state, report.ingredients) == ("valid", 1)
    assert report.actions == ("c2pa.opened", "c2pa.edited")
    assert report.source_types == (CHANGED,)
    assert made.count(b"c2pa.actions.v2") > 1


def test_a_parent_without_a_manifest_is_one_too_and_a_hint_is_an_input() -> None:
    sources = (Source(file_of("jpeg"), is_parent=True), Source(file_of("png"), is_parent=False))
    report = READER.read(SIGNER.sign(file_of("png"), Provenance(CHANGED, sources)))
    assert (report.state, report.ingredients) == ("valid", 2)
    hinted = READER.read(SIGNER.sign(file_of("png"), Provenance(MADE, sources[1:])))
    assert (hinted.actions, hinted.ingredients) == (("c2pa.created",), 1)


def test_nothing_of_a_parent_but_its_manifest_gets_into_the_file() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.34)})
    exif[0x010F] = "SecretCameraMaker"
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG", exif=exif, comment=b"SecretComment")
    assert b"SecretCameraMaker" in buffer.getvalue()
    for parent in (buffer.getvalue(), SIGNER.sign(buffer.getvalue(), Provenance(MADE))):
        made = SIGNER.sign(file_of("jpeg"), Provenance(CHANGED, (Source(parent, is_parent=True),)))
        assert READER.read(made).ingredients == 1
        assert b"Secret" not in made
        assert not opened(made).getexif()


@pytest.mark.parametrize(
    "garbage", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBP", b"\0" * 99]
)
def test_what_is_no_picture_is_unreadable_and_no_parent(garbage: bytes) -> None:
    assert READER.read(garbage).state in ("unreadable", "none")
    made = READER.read(SIGNER.sign(file_of("png"), Provenance(CHANGED, (Source(garbage, is_parent=True),))))
    assert made.state == "valid"


def test_a_damaged_manifest_breaks_nothing() -> None:
    signed = SIGNER.sign(file_of("png"), Provenance(MADE))
    start = signed.index(b"caBX")
    for at in range(start, start + 3300, 37):
        damaged = signed[:at] + bytes([signed[at] ^ 0x55]) + signed[at + 1 :]
        report = READER.read(damaged)
        assert report.state == "valid" or not report.is_ours
        made = SIGNER.sign(file_of("png"), Provenance(CHANGED, (Source(damaged, is_parent=True),)))
        assert READER.read(made).state in ("valid", "invalid")


@pytest.mark.parametrize("before", [True, False])
def test_a_hint_that_cannot_be_read_takes_no_other_source_with_it(before: bool) -> None:
    parent, hint = Source(SIGNER.sign(file_of("png"), Provenance(MADE)), is_parent=True), Source(file_of("jpeg"), False)
    broken = Source(b"\x89PNG\r\n\x1a\n", is_parent=False)
    sources = (broken, hint, parent) if before else (parent, hint, broken)
    report = READER.read(SIGNER.sign(file_of("png"), Provenance(CHANGED, sources)))
    assert (report.state, report.ingredients) == ("valid", 2)
    assert report.actions == ("c2pa.opened", "c2pa.edited")
    assert report.every_source_type == {CHANGED, MADE}


def test_where_sources_are_too_large_together_the_parent_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, hint = (SIGNER.sign(file_of("png"), Provenance(type_)) for type_ in (MADE, CHANGED))
    monkeypatch.setattr(manifests, "MAX_INGREDIENT_BYTES", 9000)
    sources = (Source(hint, is_parent=False), Source(parent, is_parent=True))
    report = READER.read(SIGNER.sign(file_of("png"), Provenance(MADE, sources)))
    assert (report.state, report.actions[0], report.ingredients) == ("valid", "c2pa.opened", 1)


def test_a_manifest_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = SIGNER.sign(file_of("png"), Provenance(MADE))
    monkeypatch.setattr(manifests, "MAX_INGREDIENT_BYTES", 5000)
    made = SIGNER.sign(file_of("png"), Provenance(CHANGED, (Source(parent, is_parent=True),)))
    assert READER.read(made).ingredients == 0
    assert READER.read(made).source_types == (CHANGED,)


def test_the_operator_s_certificate_signs(tmp_path: Path) -> None:
    signer = signer_with(*make_development_certificate(SECRET), tmp_path)
    assert not signer.is_development
    signed = signer.sign(file_of("png"), Provenance(MADE))
    assert ManifestReader(signer.certificate).read(signed).is_ours
    assert not READER.read(signed).is_ours


@pytest.mark.parametrize("swap", ["key of another", "no certificate", "no key"])
def test_a_certificate_that_does_not_sign_is_refused_at_the_start(swap: str, tmp_path: Path) -> None:
    chain, key = make_development_certificate(SECRET)
    texts = {
        "key of another": (chain, make_development_certificate(OTHER_SECRET)[1]),
        "no certificate": ("not PEM", key),
        "no key": (chain, "not PEM"),
    }[swap]
    for name, text in zip(("chain", "key"), texts, strict=True):
        (tmp_path / name).write_text(text)
    config = SigningConfig(certificate=Secret(file=tmp_path / "chain"), private_key=Secret(file=tmp_path / "key"))
    with pytest.raises(ConfigError, match=r"labels\.c2pa") as refused:
        ManifestSigner(config)
    assert "PRIVATE" not in str(refused.value)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="both"):
        SigningConfig(certificate=Secret(env="CHAIN"))
