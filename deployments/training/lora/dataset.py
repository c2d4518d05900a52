"""Reads the pictures and captions that a LoRA is to learn from: a folder, or a zip file that nobody has looked into.

No torch. Everything is checked before anything is decoded, and nothing is ever unpacked to a path that a file names.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.fields import check_lines
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from deployments.uploads.image_files import read_header

FIELD: Final = "pictures"

_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp")
_CAPTION: Final = ".txt"
_IGNORED: Final = ("__MACOSX", ".DS_Store", "Thumbs.db")
"""What systems put into zips and folders by themselves."""

_LARGEST_FILE: Final = 64 * 2**20
_LARGEST_CAPTION: Final = 4000
_MOST_EXPANDED: Final = 200
"""How many times larger a zip's entry may become; a picture hardly becomes larger at all."""

_BYTES_OF_ENTRY: Final = 512
"""How much of a zip's directory one file may take: the length of its name, and a little."""
_END: Final = struct.Struct("<4s4xHHLLH")
_END_MARK: Final = b"PK\x05\x06"
_LARGE_MARK: Final = b"PK\x06\x07"
_LARGE_SIZE: Final = 20
_LONGEST_COMMENT: Final = 2**16

_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1
_COUNTER: Final = re.compile(r"[\s_-]*\(?\d+\)?$")
_WORD: Final = re.compile(r"[^\W\d_]{2,}")
_CAMERA: Final = re.compile(r"^(img|dsc|dscf|dscn|image|picture|photo|pic|screenshot|p|mvc)?[\s_-]*\d+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Example:
    """A picture's file, as PNG, JPEG or WebP, and the caption to learn it with, which has the trigger."""

    name: str
    data: bytes
    caption: str


def read_examples(source: Path, settings: TrainingSettings, limits: TrainingLimits) -> list[Example]:
    """Returns the examples in a folder or zip file `source`, sorted by name.

    Raises InvalidParameter, which names the file and the rule, if anything in it is not a picture or a caption, or is
    more than `limits` allow.
    """
    return make_examples(dict(_read_files(source, limits)), settings, limits)


def check_examples(source: Path, settings: TrainingSettings, limits: TrainingLimits) -> dict[str, str]:
    """Returns the captions by the pictures' names, of what `read_examples` would return; it has one file at a time.

    Raises as `read_examples` does.
    """
    return _check_files(_read_files(source, limits), settings, limits)


def make_examples(files: dict[str, bytes], settings: TrainingSettings, limits: TrainingLimits) -> list[Example]:
    """Returns the examples of files by their names, each a picture or a caption. Raises InvalidParameter."""
    captions = _check_files(sorted(files.items()), settings, limits)
    return [Example(name, files[name], caption) for name, caption in captions.items()]


def dataset_hash(examples: Sequence[Example]) -> str:
    """Returns the SHA-256 of all pictures and captions in hexadecimal."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.name.encode(), example.data, example.caption.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _refuse(message: str) -> InvalidParameter:
    return InvalidParameter(FIELD, message)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _check_count(pictures: int, limits: TrainingLimits) -> None:
    if pictures > limits.pictures:
        raise _refuse(f"there are {pictures} pictures, and {limits.pictures} are allowed")


def _check_bytes(total: int, limits: TrainingLimits) -> None:
    if total > limits.bytes:
        raise _refuse(f"they have more than {limits.bytes:,} bytes together")


def _check_files(
    files: Iterable[tuple[str, bytes]], settings: TrainingSettings, limits: TrainingLimits
) -> dict[str, str]:
    """Returns the captions by the pictures' names, sorted; keeps no more of a picture than its name."""
    pictures: list[str] = []
    texts: dict[str, bytes] = {}
    pixels = 0
    for name, data in files:
        if _suffix(name) == _CAPTION:
            if len(data) > 4 * _LARGEST_CAPTION:
                raise _refuse_caption(name)
            texts[name] = data
        elif _suffix(name) in _PICTURES:
            pictures.append(name)
            pixels += _count_pixels(name, data)
            if pixels > limits.pixels:
                raise _refuse(f"they have more than {limits.pixels:,} pixels together")
        else:
            raise _refuse(f"{name!r} is neither a picture ({', '.join(_PICTURES)}) nor a caption ({_CAPTION})")
    if not pictures:
        raise _refuse("there is no picture")
    _check_count(len(pictures), limits)
    captions = _read_captions(pictures, texts, settings)
    return {name: captions[name] for name in sorted(pictures)}


def _count_pixels(name: str, data: bytes) -> int:
    try:
        header = read_header(data, FIELD)
    except InvalidParameter as error:
        raise _refuse(f"{name!r} {error.message}") from None
    return header.width * header.height


def _read_captions(pictures: Sequence[str], texts: dict[str, bytes], settings: TrainingSettings) -> dict[str, str]:
    source = settings.captions or ("files" if texts else "template" if settings.template else "names")
    if source == "files":
        captions = dict(_captions_of_files(pictures, texts))
    elif texts:
        raise _refuse(f"there are caption files ({min(texts)!r}), and captions are to come from the {source}")
    elif source == "template":
        captions = {name: settings.fill(settings.template) for name in pictures}
    else:
        captions = {name: _caption_of_name(name) for name in pictures}
    return {name: _with_trigger(settings.fill(caption), settings.trigger) for name, caption in captions.items()}


def _captions_of_files(pictures: Sequence[str], texts: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    by_stem: dict[str, list[str]] = {}
    for name in pictures:
        by_stem.setdefault(_stem(name), []).append(name)
    for name in sorted(texts):
        if len(of := by_stem.pop(_stem(name), [])) != 1:
            raise _refuse(f"the caption {name!r} belongs to {len(of) or 'no'} pictures of its name")
        yield of[0], _read_caption(name, texts[name])
    if by_stem:
        raise _refuse(f"{min(by_stem.values())[0]!r} has no caption file beside it, and others do")


def _stem(name: str) -> str:
    return name[: -len(PurePosixPath(name).suffix)]


def _read_caption(name: str, data: bytes) -> str:
    try:
        text = check_lines(data.decode("utf-8-sig")).strip()
    except ValueError:
        raise _refuse(f"the caption {name!r} is not text in UTF-8") from None
    if not text or len(text) > _LARGEST_CAPTION:
        raise _refuse_caption(name)
    return " ".join(text.split())


def _refuse_caption(name: str) -> InvalidParameter:
    return _refuse(f"the caption {name!r} must have 1 to {_LARGEST_CAPTION} characters")


def _caption_of_name(name: str) -> str:
    """Reads `red-lamp_on_blue (3).png` as "red lamp on blue"; what cameras call their files says nothing."""
    stem = _stem(PurePosixPath(name).name)
    words = re.sub(r"[\s_-]+", " ", _COUNTER.sub("", stem)).strip()
    return "" if _CAMERA.match(stem) or not _WORD.search(words) else words


def trigger_pattern(trigger: str) -> re.Pattern[str]:
    """Returns what finds a trigger in captions: whole words, in letters of any case, with any blanks between them."""
    words = r"\s+".join(re.escape(word) for word in trigger.split())
    # A trigger may begin or end with a sign, beside which any letter is another word's.
    begin = r"(?<!\w)" if re.match(r"\w", trigger) else ""
    end = r"(?!\w)" if re.search(r"\w\Z", trigger) else ""
    return re.compile(begin + words + end, re.IGNORECASE)


def _with_trigger(caption: str, trigger: str) -> str:
    if trigger_pattern(trigger).search(caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _is_ignored(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part in _IGNORED or part.startswith("._") for part in parts)


def _read_files(source: Path, limits: TrainingLimits) -> Iterator[tuple[str, bytes]]:
    """Yields the files of a folder or zip, each read when it is asked for."""
    return _read_folder(source, limits) if source.is_dir() else _read_zip(source, limits)


def _read_folder(folder: Path, limits: TrainingLimits) -> Iterator[tuple[str, bytes]]:
    count = total = 0
    for path in sorted(folder.iterdir()):
        if _is_ignored(path.name):
            continue
        if not path.is_file():
            raise _refuse(f"{path.name!r} is not a file; put all pictures into one folder")
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise _refuse(f"{path.name!r} has more than {_LARGEST_FILE:,} bytes")
        count, total = count + (path.suffix.lower() != _CAPTION), total + size
        _check_count(count, limits)
        _check_bytes(total, limits)
        yield path.name, path.read_bytes()


def _read_zip(path: Path, limits: TrainingLimits) -> Iterator[tuple[str, bytes]]:
    try:
        _check_directory(path, limits)
        with zipfile.ZipFile(path) as archive:
            entries = [each for each in archive.infolist() if not each.is_dir() and not _is_ignored(each.filename)]
            _check_entries(entries, limits)
            for entry in entries:
                yield entry.filename, _read_entry(archive, entry)
    except FileNotFoundError:
        raise _refuse(f"there is no folder or zip file {path.name!r}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError):
        raise _refuse(f"{path.name!r} is neither a folder nor a zip file that can be read") from None


def _check_directory(path: Path, limits: TrainingLimits) -> None:
    """Raises InvalidParameter for a directory of too many files: `zipfile` takes all of it into memory at once.

    It is found as `zipfile` finds it, which goes by the directory's size, whatever else is said of the count.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - _LONGEST_COMMENT - _END.size - _LARGE_SIZE))
        tail = file.read()
    place = len(tail) - _END.size
    if place < 0 or not (tail.startswith(_END_MARK, place) and tail.endswith(b"\0\0")):
        place = tail.rfind(_END_MARK)
    if not 0 <= place <= len(tail) - _END.size:
        return  # It is no zip, as will be said of it.
    _, _, count, size, _, _ = _END.unpack_from(tail, place)
    most = 4 * limits.pictures + 16  # With captions, and with what systems add to each file.
    if tail[max(0, place - _LARGE_SIZE) : place].startswith(_LARGE_MARK):
        raise _refuse("the zip is in the format for large ones, ZIP64, which is not read here")
    if count > most or size > most * _BYTES_OF_ENTRY:
        raise _refuse(f"the zip has too many files: {limits.pictures} pictures are allowed")


def _check_entries(entries: Sequence[zipfile.ZipInfo], limits: TrainingLimits) -> None:
    """Raises InvalidParameter for a zip that is not plain pictures and captions, by its directory alone."""
    if len(entries) > 2 * limits.pictures:
        raise _refuse(f"the zip has {len(entries)} files, and {limits.pictures} pictures are allowed")
    _check_bytes(sum(entry.file_size for entry in entries), limits)
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if _leaves(name):
            raise _refuse(f"the zip's {name[:80]!r} leads out of its folder")
        if name.lower() in seen:
            raise _refuse(f"the zip has two files named {name[:80]!r}")
        seen.add(name.lower())
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refuse(f"the zip's {name[:80]!r} is a link or a device")
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
            raise _refuse(f"the zip's {name[:80]!r} is encrypted, or compressed in a way that is not read here")
        if _suffix(name) not in (*_PICTURES, _CAPTION):
            raise _refuse(f"the zip's {name[:80]!r} is neither a picture nor a caption")
        if entry.file_size > min(_LARGEST_FILE, _MOST_EXPANDED * max(entry.compress_size, 64)):
            raise _refuse(f"the zip's {name[:80]!r} would become too large")


def _leaves(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return (
        not name.isprintable()
        or "\\" in name
        or ":" in name
        or name.startswith("/")
        or any(part in ("..", ".") for part in parts)
    )


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    # What the directory says of its size may be a lie: no more is ever read than that.
    with archive.open(entry) as file:
        data = file.read(entry.file_size + 1)
    if len(data) != entry.file_size:
        raise _refuse(f"the zip's {entry.filename[:80]!r} is not as large as its directory says")
    return data
