"""docs/glossary.md: every word once, in order, and lives where the page says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "glossary.md").read_text()
ROWS = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in PAGE.splitlines() if line[:2] == "| "]
HEAD, *ENTRIES = ROWS


def classes_in(path: Path) -> set[str]:
    files = path.rglob("*.py") if path.is_dir() else [path]
    return {
        node.name
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def test_every_word_is_there_once_and_in_order() -> None:
    words = [word for word, *_ in ENTRIES]
    assert HEAD == ("word", "meaning", "where")
    assert words == sorted(set(words))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[0])
def test_a_word_has_one_sentence_and_lives_where_it_says(entry: tuple[str, ...]) -> None:
    _, meaning, where = entry
    assert meaning.endswith(".")
    assert not re.search(r"\. [A-Z]", meaning)
    names = re.findall(r"`([^`]+)`", where)
    paths = [ROOT / name for name in names if "/" in name]
    assert paths
    assert all(path.exists() for path in paths)
    found = set().union(*(classes_in(path) for path in paths))
    assert {name for name in names if "/" not in name} <= found
