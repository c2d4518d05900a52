"""A manifest says who made a picture and from what, and a changed picture is told from one that was not."""

import io
from pathlib import Path

import pytest
from PIL import Image

from serve_app.config.errors import ConfigError
from serve_app.config.labels import SigningConfig
from serve_app.config.secret import Secret
from serve_app.labels import manifests
from serve_app.labels.development_certificate import make_development_certificate
from serve_app.labels.manifests import ManifestReader, ManifestSigner, Provenance, Source
from serve_app.labels.source_type import CHANGED, MADE
from tests.serve_app.labels.files import FORMATS, file_of, opened, pixels_of

SIGNER = ManifestSigner(SigningConfig())
READER = ManifestReader()

every_format = pytest.mark.parametrize("output_format", FORMATS)


@every_format
def test_a_signed_file_says_who_made_it_and_that_a_machine_did(output_format: str) -> None:
    file = file_of(output_format)
    signed = SIGNER.sign(file, Provenance(MADE, is_watermarked=True))
    report = READER.read(signed)
    assert (report.state, report.generator, report.serial) == ("valid", "Darkroom", SIGNER.serial)
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
    assert READER.read(bytes(signed)).state == "invalid"


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
        assert READER.read(damaged).state != "trusted"
        made = SIGNER.sign(file_of("png"), Provenance(CHANGED, (Source(damaged, is_parent=True),)))
        assert READER.read(made).state in ("valid", "invalid")


def test_a_manifest_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = SIGNER.sign(file_of("png"), Provenance(MADE))
    monkeypatch.setattr(manifests, "MAX_INGREDIENT_BYTES", 5000)
    made = SIGNER.sign(file_of("png"), Provenance(CHANGED, (Source(parent, is_parent=True),)))
    assert READER.read(made).ingredients == 0
    assert READER.read(made).source_types == (CHANGED,)


def test_the_operator_s_certificate_signs(tmp_path: Path) -> None:
    chain, key = make_development_certificate()
    (tmp_path / "chain.pem").write_text(chain)
    (tmp_path / "key.pem").write_text(key)
    files = Secret(file=tmp_path / "chain.pem"), Secret(file=tmp_path / "key.pem")
    signer = ManifestSigner(SigningConfig(certificate=files[0], private_key=files[1]))
    assert not signer.is_development
    assert READER.read(signer.sign(file_of("png"), Provenance(MADE))).serial == signer.serial


@pytest.mark.parametrize("swap", ["key of another", "no certificate", "no key"])
def test_a_certificate_that_does_not_sign_is_refused_at_the_start(swap: str, tmp_path: Path) -> None:
    chain, key = make_development_certificate()
    texts = {
        "key of another": (chain, make_development_certificate()[1]),
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
