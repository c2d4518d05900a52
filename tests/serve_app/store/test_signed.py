"""What comes back from elsewhere is believed only if it is what was put there, at that place, with that key."""

import pytest

from serve_app.store.signed import BadSignature, sign, verify

KEY = b"a key of some length, as it should be"


@pytest.mark.parametrize("files", [(), (b"one",), (b"", b"\x00two", b"three")])
def test_what_was_sealed_comes_back(files: tuple[bytes, ...]) -> None:
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
