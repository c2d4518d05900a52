"""What README and docs name is there: paths, links, and in the README's tree every folder of code."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACES = ("serve_app", "deployments", "bench", "tests", "k8s", "docs")
FILES = [
    *(path for path in ROOT.iterdir() if path.is_file()),
    *(path for place in PLACES for path in (ROOT / place).rglob("*") if "__pycache__" not in path.parts),
]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose_of(page: Path) -> str:
    """The page without its fenced blocks, which are commands and configurations."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def paths_in(page: Path) -> set[str]:
    """What stands in backticks and is a path by its form: it begins with a folder of ours, or ends as our files do."""
    spans = {span.strip() for span in re.findall(r"`([^`\n]+)`", prose_of(page))}
    is_path = re.compile(rf"(?:{'|'.join(PLACES)})(?:/[\w.*-]+)+/?|(?:{'|'.join(PLACES)})/|[\w./*-]+\.(?:py|yaml|md)")
    return {span for span in spans if is_path.fullmatch(span)}


def test_paths_are_found_in_prose() -> None:
    assert {"serve_app/service.py", "tests/test_architecture.py"} <= set().union(*map(paths_in, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_path_that_a_page_names_exists_and_is_no_other(page: Path) -> None:
    wrong = {}
    for path in sorted(paths_in(page)):
        if path.startswith(tuple(f"{place}/" for place in PLACES)):
            found = len(list(ROOT.glob(path.removesuffix("/"))))
        else:
            # A short form stands for the one file that ends like it.
            found = len([file for file in FILES if f"/{named(file)}".endswith(f"/{path}")])
            found = found if found == 1 else 0
        if not found:
            wrong[path] = "is not there, or not the only one"
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose_of(page))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def tree() -> Iterator[str]:
    """The folders that the README's tree names, as paths: two blanks of indent are one folder deeper."""
    above: list[str] = []
    for line in README.split("## The tree")[1].split("```")[1].splitlines()[1:]:
        name = line.split()[0]
        assert name.endswith("/"), line
        assert len(line.split()) > 1, f"{name} says nothing"
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        yield "".join(above).rstrip("/")


def test_the_tree_names_every_folder_of_code_once_and_no_other() -> None:
    folders = list(tree())
    assert len(folders) == len(set(folders))
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    code = {
        named(path.parent)
        for place in ("serve_app", "deployments", "bench")
        for path in (ROOT / place).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert code <= set(folders)


def test_every_file_that_the_tree_names_is_there() -> None:
    text = README.split("## The tree")[1].split("```")[1]
    names = set(re.findall(r"\b[a-z_0-9]+\.(?:py|yaml)\b", text))
    assert names <= {path.name for path in FILES}
