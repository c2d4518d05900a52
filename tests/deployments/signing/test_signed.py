"""What comes back from elsewhere is believed only if it is what was put there, at that place, with that key."""

import pytest

from deployments.signing.signed import BadSignature, sign, verify

KEY = b"a key of some length, as it should be"


@pytest.mark.parametrize("files", [(), (b"one",), (b"", b"\x00two", b"three")])
def test_what_was_signed_comes_back(files: tuple[bytes, ...]) -> None:
    header = {"a": [1, None, "ü"]}
    assert verify("place", sign("place", header, files, KEY), KEY) == (header, files)


def test_every_changed_byte_is_noticed() -> None:
    data = sign("place", {"a": 1}, (b"file",), KEY)
    for position in range(len(data)):
        forged = bytearray(data)
        forged[position] ^= 1
        with pytest.raises(BadSignature):
            verify("place", bytes(forged), KEY)


def test_another_place_key_or_length_is_noticed() -> None:
    data = sign("place", {}, (b"file",), KEY)
    for place, forged, key in (
        ("place2", data, KEY),
        ("plac", data, KEY),
        ("place", data, b"another key"),
        ("place", data[:-1], KEY),
        ("place", data + b"x", KEY),
        ("place", b"", KEY),
        ("place", b"\x80\x04pickle", KEY),
    ):
        with pytest.raises(BadSignature):
            verify(place, forged, key)


def test_lengths_that_are_signed_and_wrong_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, by the signature; but no file may begin in another, or end beyond the end."""
    data = sign("place", {}, (b"one", b"two"), KEY)
    begin = len(b"darkroom sealed 1\n") + 32
    monkeypatch.setattr("deployments.signing.signed._mac", lambda *_: data[begin - 32 : begin])
    assert verify("place", data, KEY) == ({}, (b"one", b"two"))
    for bad in (data[:-1], data + b"\0", data[:begin] + b"\xff" * 4 + data[begin + 4 :]):
        with pytest.raises(BadSignature):
            verify("place", bad, KEY)
