"""What comes back from Redis is what was put there, or nothing."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.protocol.events import ImageDone
from deployments.signing.signed import sign, verify
from serve_app.cache.entry import BadEntry, CacheEntry, pack, unpack
from serve_app.generation.fingerprint import Fingerprint

KEY = b"k" * 32
PLACE = "cache:a generation:a result"

images = st.lists(
    st.builds(
        ImageDone,
        request_id=st.just(""),
        index=st.integers(0, 15),
        seed=st.integers(0, 2**63),
        format=st.sampled_from(["png", "webp", "jpeg"]),
        width=st.integers(64, 2048),
        height=st.integers(64, 2048),
        data=st.binary(max_size=64),
    ),
    max_size=3,
).map(tuple)
entries = st.builds(
    CacheEntry,
    fingerprint=st.builds(Fingerprint, work=st.text(max_size=40), seed=st.integers(0, 2**63)),
    images=images,
    seconds=st.floats(0, 1e6),
    made=st.floats(0, 1e10),
)

ONE = CacheEntry(Fingerprint("{}", 7), (ImageDone("", 0, 7, "png", 64, 64, b"png's bytes"),), 1.5, 1e9)


@given(entries)
def test_an_entry_comes_back_as_it_was(entry: CacheEntry) -> None:
    assert unpack(PLACE, pack(PLACE, entry, KEY), KEY) == entry


@given(entries, st.data())
def test_an_entry_that_is_cut_or_longer_or_changed_anywhere_is_none(entry: CacheEntry, data: st.DataObject) -> None:
    whole = pack(PLACE, entry, KEY)
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    for bad in (whole[:place], whole + b"\0", changed):
        with pytest.raises(BadEntry):
            unpack(PLACE, bad, KEY)


@pytest.mark.parametrize("bad", [b"", b"DRK1", pickle.dumps({"images": []}), json.dumps({"images": []}).encode()])
def test_what_is_not_ours_is_none(bad: bytes) -> None:
    with pytest.raises(BadEntry):
        unpack(PLACE, bad, KEY)


def test_another_key_another_place_or_another_version_is_none() -> None:
    whole = pack(PLACE, ONE, KEY)
    for place, bad, key in ((PLACE, whole, b"j" * 32), ("elsewhere", whole, KEY), (PLACE, b"DRK0" + whole[4:], KEY)):
        with pytest.raises(BadEntry):
            unpack(place, bad, key)


def test_what_is_signed_and_makes_no_sense_is_none() -> None:
    """Ours, by the signature; but perhaps another version's."""
    header, files = verify(PLACE, pack(PLACE, ONE, KEY), KEY)
    assert unpack(PLACE, sign(PLACE, header, files, KEY), KEY) == ONE
    for other, its_files in ((header, ()), (header, (*files, b"")), (header | {"new": 1}, files), ([], files)):
        with pytest.raises(BadEntry):
            unpack(PLACE, sign(PLACE, other, its_files, KEY), KEY)


def test_what_a_request_hears_is_its_own() -> None:
    accepted, image, finished = ONE.events("r9")
    assert {accepted.request_id, image.request_id, finished.request_id} == {"r9"}
