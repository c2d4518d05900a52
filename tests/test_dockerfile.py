"""What the images must have, as far as their recipe tells: nobody here has a GPU to try them on."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.launch import launcher

ROOT = Path(__file__).parents[1]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of those that it is built on, in their order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    pairs = [(word.upper(), " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]
    begins = [i for i, (word, _) in enumerate(pairs) if word == "FROM"]
    stages: dict[str, list[tuple[str, str]]] = {}
    for begin, end in zip(begins, [*begins[1:], len(pairs)], strict=True):
        base, _, own = pairs[begin][1].partition(" AS ")
        stages[own] = [*stages.get(base, []), *pairs[begin + 1 : end]]
    return stages[name]


def environment(name: str) -> dict[str, str]:
    given = [shlex.split(rest) for word, rest in stage(name) if word == "ENV"]
    return dict(entry.split("=", 1) for entries in given for entry in entries)


def installed_by_apt(name: str) -> set[str]:
    """What root installs from Debian; without it being asked for, not what is merely recommended."""
    packages: set[str] = set()
    for word, rest in stage(name):
        if word == "USER":
            break
        for command in rest.split("&&") if word == "RUN" else []:
            if "apt-get install" in command:
                packages |= {each for each in command.split("apt-get install")[1].split() if not each.startswith("-")}
    return packages


def is_in_context(path: str, patterns: list[str]) -> bool:
    """Whether Docker sends a file to the build: the last pattern that matches it, or a folder above it, decides."""
    above = ["/".join(path.split("/")[: end + 1]) for end in range(path.count("/") + 1)]
    is_excluded = False
    for pattern in patterns:
        expression = expression_of(pattern.removeprefix("!").strip("/"))
        if any(re.fullmatch(expression, each) for each in above):
            is_excluded = not pattern.startswith("!")
    return not is_excluded


def expression_of(pattern: str) -> str:
    """The regular expression of a path pattern: `*` and `?` stay within a name, `**` goes through folders."""
    words = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(words.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def ignore_patterns() -> list[str]:
    lines = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def copied(name: str) -> set[str]:
    return {source for word, rest in stage(name) if word == "COPY" for source in rest.split()[:-1]}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_images_have_every_file_of_the_packages_that_they_install(name: str) -> None:
    """Modules and what lies beside them: whatever is left out is missed only where the image is started."""
    wheel: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    packages = set(wheel["wheel"]["packages"])
    assert packages | {"pyproject.toml", "constraints.txt", "README.md"} == copied(name)
    files = [
        file
        for source in copied(name)
        for file in ([ROOT / source] if (ROOT / source).is_file() else (ROOT / source).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert len(files) > 400
    names = [str(file.relative_to(ROOT)) for file in files]
    assert [each for each in names if not is_in_context(each, ignore_patterns())] == []


def test_what_images_do_not_install_stays_out_of_them() -> None:
    for each in ("tests/conftest.py", ".git/config", "k8s/base/redis.yaml", "serve_app/__pycache__/app.pyc", ".env"):
        assert not is_in_context(each, ignore_patterns())


def test_the_last_pattern_that_matches_decides() -> None:
    assert not is_in_context("a/b/c.py", ["*", "!a", "a/b"])
    assert is_in_context("a/b/c.py", ["*", "a/b", "!a"])
    assert is_in_context("a/b.py", ["?.py", "*.py"])
    assert not is_in_context("a/b.py", ["**/*.py"])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_what_an_image_runs_by_itself_is_something_that_the_command_line_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "serve", lambda *_, **__: None)
    *_, (_, told) = (instruction for instruction in stage(name) if instruction[0] == "CMD")
    command, *arguments = json.loads(told)
    assert command == "darkroom"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output


def test_the_gpu_image_has_a_compiler_for_the_kernels_that_triton_writes() -> None:
    """It compiles a launcher in C for each of them, at run time, and links it with libc."""
    assert {"gcc", "libc6-dev"} <= installed_by_apt("gpu")
    assert environment("gpu")["CC"] == "gcc"
    assert "gcc" not in installed_by_apt("cpu")


def test_the_gpu_image_keeps_compiled_kernels_and_avoids_the_slow_ones_of_its_torch() -> None:
    given = environment("gpu")
    assert {given["TORCHINDUCTOR_CACHE_DIR"], given["TRITON_CACHE_DIR"]} == {"/cache/inductor", "/cache/triton"}
    assert given["TORCHINDUCTOR_LOOP_REINDEXING_AFTER_FUSION"] == "0"


def test_all_that_images_install_with_pip_is_pinned() -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {"torch", "triton", "xformers", "accelerate"} <= pinned
    for name in ("cpu", "gpu"):
        commands = [part for word, rest in stage(name) if word == "RUN" for part in rest.split("&&") if "pip " in part]
        assert commands
        assert all("-c constraints.txt" in command for command in commands)
