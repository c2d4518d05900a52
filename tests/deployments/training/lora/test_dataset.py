"""What a training takes: pictures that have one caption each, with the trigger. A hostile zip is refused unread."""

import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.protocol.errors import InvalidParameter
from deployments.training.lora.dataset import Example, check_examples, dataset_hash, make_examples, read_examples
from deployments.training.lora.lessons import _prior_prompts
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from tests.deployments.training.lora.pictures import picture, write_pictures

LIMITS = TrainingLimits(pictures=8, bytes=2**20, pixels=8 * 100 * 100)


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"name": "lamp", "trigger": "zorb", "model_name": "tiny"} | changes)


def captions(files: dict[str, bytes], **changes: Any) -> dict[str, str]:
    return {each.name: each.caption for each in make_examples(files, settings(**changes), LIMITS)}


def refusal(read: Callable[[], list[Example]]) -> str:
    with pytest.raises(InvalidParameter) as refused:
        read()
    assert refused.value.field == "pictures"
    return refused.value.message


def refusal_of(files: dict[str, bytes], limits: TrainingLimits = LIMITS, **changes: Any) -> str:
    return refusal(lambda: make_examples(files, settings(**changes), limits))


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def zip_refusal(path: Path, limits: TrainingLimits = LIMITS) -> str:
    return refusal(lambda: read_examples(path, settings(), limits))


def test_captions_come_from_files_beside_the_pictures() -> None:
    files = {
        "b.png": picture(1),
        "b.txt": b"a {trigger}\non  blue",
        "a.jpg": picture(2, format="JPEG"),
        "a.txt": b"A Zorb",
    }
    assert captions(files) == {"a.jpg": "A Zorb", "b.png": "a zorb on blue"}


def test_captions_come_from_a_template_or_from_names() -> None:
    files = {"red-lamp_on_blue (3).png": picture(1), "IMG_0042.png": picture(2)}
    assert set(captions(files, template="a photo of {trigger}").values()) == {"a photo of zorb"}
    assert captions(files) == {"red-lamp_on_blue (3).png": "zorb, red lamp on blue", "IMG_0042.png": "zorb"}


@pytest.mark.parametrize(
    ("trigger", "caption", "without"),
    [
        ("lamp", "a clamp on a table", None),
        ("lamp", "a lamplight", None),
        ("lamp", "lamps", None),
        ("lamp", "a red Lamp, on a table", "a red, on a table"),
        ("lamp", "lamp-post", "-post"),
        ("lamp", "a lamp by a LAMP", "a by a"),
        ("<lamp>", "a lamp", None),
        ("<lamp>", "a<lamp>, lit", "a, lit"),
        ("c++", "a c++ mug", "a mug"),
        ("c++", "abc++", None),
        ("red lamp", "a red\tLAMP", "a"),
        ("red lamp", "a tired lamp", None),
        ("a.b", "a axb", None),
        ("лампа", "Лампа на столе", "на столе"),
        ("лампа", "лампада", None),
    ],
)
def test_a_caption_has_the_trigger_as_whole_words_only(trigger: str, caption: str, without: str | None) -> None:
    """What lacks it gets it put before; what the model itself is asked for has none of it."""
    asked = settings(trigger=trigger, prior_pictures=1)
    (made,) = make_examples({"a.png": picture(), "a.txt": b"{trigger}"}, asked, LIMITS)
    assert made.caption == trigger
    (given,) = make_examples({"a.png": picture(), "a.txt": caption.encode()}, asked, LIMITS)
    plain = " ".join(caption.split())
    assert given.caption == (f"{trigger}, {plain}" if without is None else plain)
    assert _prior_prompts([given], asked) == [plain if without is None else without]


@pytest.mark.parametrize(
    ("files", "changes", "words"),
    [
        ({"a.png": picture(), "b.png": picture(), "b.txt": b"x"}, {}, "'a.png' has no caption file"),
        ({"a.png": picture(), "c.txt": b"x"}, {}, "belongs to no pictures"),
        ({"a.png": picture(), "a.jpg": picture(format="JPEG"), "a.txt": b"x"}, {}, "belongs to 2 pictures"),
        ({"a.png": picture(), "a.txt": b"\xff\xfe\x00"}, {}, "not text in UTF-8"),
        ({"a.png": picture(), "a.txt": b"  "}, {}, "1 to 4000 characters"),
        ({"a.png": picture(), "a.txt": b"x" * 2**20}, {}, "1 to 4000 characters"),
        ({"a.png": picture(), "a.txt": b"x"}, {"captions": "names"}, "captions are to come from the names"),
        ({"a.png": picture(), "notes.pdf": b"x"}, {}, "neither a picture"),
        ({"a.png": b"GIF89a"}, {}, "must be a PNG, JPEG or WebP picture"),
        ({"a.txt": b"x"}, {}, "there is no picture"),
        ({f"{n}.png": picture(n) for n in range(9)}, {}, "9 pictures, and 8 are allowed"),
        ({f"{n}.png": picture(n, 200, 200) for n in range(3)}, {}, "more than 80,000 pixels"),
    ],
)
def test_what_is_not_pictures_with_captions_is_refused_by_its_name(
    files: dict[str, bytes], changes: dict[str, Any], words: str
) -> None:
    assert words in refusal_of(files, **changes)


def test_a_folder_and_its_zip_are_the_same(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    (folder / ".DS_Store").write_bytes(b"x")
    entries = [(path.name, path.read_bytes()) for path in folder.iterdir()]
    archive = zipped(tmp_path / "pictures.zip", *entries, ("__MACOSX/._0.png", b"x"))
    one, other = (read_examples(source, settings(), LIMITS) for source in (folder, archive))
    assert one == other
    assert dataset_hash(one) == dataset_hash(other)
    assert dataset_hash(one) != dataset_hash(one[1:])


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "x/../../a.png", "..\\a.png", "C:a.png", "a\nb.png"])
def test_a_zip_cannot_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    assert "leads out" in zip_refusal(zipped(tmp_path / "x.zip", (name, picture())))


def test_a_zip_of_links_twins_or_other_files_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "a link or a device" in zip_refusal(zipped(tmp_path / "link.zip", (link, b"/etc/passwd")))
    assert "two files" in zip_refusal(zipped(tmp_path / "twins.zip", ("a.png", picture()), ("A.png", picture())))
    assert "neither a picture" in zip_refusal(zipped(tmp_path / "more.zip", ("a.png", picture()), ("inner.zip", b"PK")))
    odd = zipped(tmp_path / "odd.zip", ("a.png", picture()), method=zipfile.ZIP_LZMA)
    assert "compressed in a way" in zip_refusal(odd)


def test_a_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "bomb.zip", ("a.png", b"\0" * 900_000))
    assert "become too large" in zip_refusal(bomb)
    assert "more than 1,048,576 bytes" in zip_refusal(zipped(tmp_path / "large.zip", ("a.png", b"\0" * 2**21)))
    many = zipped(tmp_path / "many.zip", *((f"{n}.png", b"") for n in range(17)))
    assert "17 files" in zip_refusal(many)


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path / "lie.zip", ("a.png", picture() * 50))
    raw = bytearray(path.read_bytes())
    where = raw.rindex(b"PK\x01\x02") + 24
    raw[where : where + 4] = struct.pack("<I", 100)
    path.write_bytes(bytes(raw))
    refusal(lambda: read_examples(path, settings(), LIMITS))


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 broken")
    assert "neither a folder nor a zip" in zip_refusal(tmp_path / "broken.zip")
    assert "there is no folder or zip" in zip_refusal(tmp_path / "nothing.zip")


def test_what_is_checked_is_what_is_read_and_one_file_is_held_at_a_time(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    captions = {each.name: each.caption for each in read_examples(folder, settings(), LIMITS)}
    assert check_examples(folder, settings(), LIMITS) == captions
    # What follows a picture's end is read and unpacked, and counts, whatever it is.
    large, limits = picture() + bytes(range(256)) * 2**13, TrainingLimits(pictures=20)
    archive = zipped(tmp_path / "x.zip", *((f"{n}.png", large) for n in range(20)), method=zipfile.ZIP_STORED)
    tracemalloc.start()
    try:
        check_examples(archive, settings(), limits)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(large)
    finally:
        tracemalloc.stop()


def test_a_zip_of_very_many_files_is_refused_before_its_directory_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "many.zip", *((f"{n}.png", b"") for n in range(2000)))
    tracemalloc.start()
    try:
        assert "too many files" in zip_refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
    # The count may be a lie, in an end with a comment after it: the directory's size is what would be read.
    raw = bytearray(path.read_bytes())
    where = raw.rindex(b"PK\x05\x06")
    raw[where + 8 : where + 12] = struct.pack("<HH", 1, 1)
    raw[where + 20 : where + 22] = struct.pack("<H", 3)
    path.write_bytes(bytes(raw) + b"abc")
    assert "too many files" in zip_refusal(path)


def test_a_zip_with_a_second_directory_for_large_ones_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "large.zip", ("a.png", picture()))
    raw = path.read_bytes()
    where = raw.rindex(b"PK\x05\x06")
    path.write_bytes(raw[:where] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1) + raw[where:])
    assert "ZIP64" in zip_refusal(path)


def test_a_zip_whose_names_are_no_text_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "names.zip", ("ü.png", picture()))
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xff\xff"))
    assert "neither a folder nor a zip" in zip_refusal(path)
