"""Commands of ours that README and docs show are ones that the command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.client.messages import Listed
from serve_app.config.server import packaged_configs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app)


def run_in(text: str) -> Iterator[str]:
    """Yields what stands behind `darkroom` in blocks of commands, and in substitutions there."""
    for block in re.findall(r"^```(?:bash|console|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.findall(r"(?:^|\$ |&& |\$\()darkroom ([a-z][^#&|)]*)", line)


def named_in(text: str) -> Iterator[str]:
    """Yields what stands behind `darkroom` in prose, where it may be a part of a command."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`darkroom ([a-z][^`\n]*)`", prose)


RUN = [(page.name, command.strip()) for page in PAGES for command in run_in(page.read_text())]
NAMED = [(page.name, command.strip()) for page in PAGES for command in named_in(page.read_text())]


def parts_of(shown: str) -> tuple[Any, list[str]]:
    """The command, and its arguments and options."""
    words, command = shlex.split(shown), cast(Any, COMMANDS)
    while isinstance(command, TyperGroup) and words:
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    return command, words


@pytest.mark.parametrize(("page", "shown"), [*RUN, *NAMED], ids=lambda each: each)
def test_a_command_that_is_shown_has_its_options(page: str, shown: str) -> None:
    command, words = parts_of(shown)
    given = options_of(words)
    assert given <= {name for parameter in command.params for name in parameter.opts} | {"--help"}
    # The packaged configurations have no folder for what was trained.
    assert "--register" not in given or "--config" in given


@pytest.mark.parametrize(("page", "shown"), RUN, ids=lambda each: each)
def test_a_command_that_is_shown_to_be_run_needs_no_other_options(page: str, shown: str) -> None:
    command, words = parts_of(shown)
    needed = [each for each in command.params if each.param_type_name == "option" and each.required]
    assert [each.name for each in needed if not options_of(words) & set(each.opts)] == []


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)}


def test_commands_are_found_in_blocks_and_in_prose() -> None:
    assert len(RUN) > 20
    assert ("training.md", "loras list") in NAMED


def test_the_page_of_commands_names_every_one() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    spans = {word for span in re.findall(r"`([^`]+)`", page) for word in span.split()}
    assert isinstance(COMMANDS, TyperGroup)
    for name, command in COMMANDS.commands.items():
        assert name in spans
        if isinstance(command, TyperGroup):
            assert set(command.commands) <= spans | {"new", "render", "check"}


def test_the_page_of_commands_names_everything_that_can_be_listed() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith("| `list "))
    assert set(re.findall(r"`(?:list )?([\w-]+)`", row)) == set(get_args(Listed))


def test_help_names_every_packaged_configuration() -> None:
    told = CliRunner().invoke(app, ["serve", "--help"]).output
    assert [name for name in packaged_configs() if name not in told] == []
