"""The Makefile: what `make` runs, and what `.ci/venv` says on a system that lacks something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A Python without ensurepip, as Debian has it, and stand-ins for the system's commands. Nobody is root here."""
    (tmp_path / "ensurepip").mkdir()
    (tmp_path / "ensurepip" / "__init__.py").write_text("raise ImportError('Debian keeps it elsewhere')")
    command(tmp_path, "id", "echo 1000")
    command(tmp_path, "apt-get", f'echo "$*" >> {tmp_path}/asked; rm -rf {tmp_path}/ensurepip')
    return tmp_path


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def make_venv(debian: Path, python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"PYTHONPATH": str(debian), "PATH": f"{debian}:{os.environ['PATH']}"}
    order = ["sh", str(ROOT / ".ci" / "venv"), python, str(debian / "made")]
    return subprocess.run(order, capture_output=True, text=True, env=env, check=False)


def test_a_user_is_told_what_to_install(debian: Path) -> None:
    result = make_venv(debian)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"sudo apt-get install {PACKAGE}" in result.stderr
    assert not (debian / "asked").exists()
    assert not (debian / "made").exists()


def test_root_gets_it_installed(debian: Path) -> None:
    command(debian, "id", "echo 0")
    result = make_venv(debian)
    assert result.returncode == 0, result.stderr
    assert PACKAGE in (debian / "asked").read_text()
    assert (debian / "made" / "bin" / "pip").exists()


def test_a_missing_python_is_told_in_one_line(debian: Path) -> None:
    result = make_venv(debian, "python9.9")
    assert result.returncode == 1
    assert result.stderr.startswith("darkroom: there is no 'python9.9'")


@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("serve", "darkroom serve --config demo --host 127.0.0.1 --port 8000"),
        ("bench", "python -m bench.engine"),
        ("bench", "python -m bench.engine --workload mixed"),
        ("faults", "python -m bench.faults"),
        ("lint", "mypy"),
        ("test", 'python -m "not ray"'),
    ],
)
def test_what_make_runs(target: str, runs: str) -> None:
    shown = subprocess.run(["make", "-n", target], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert runs in shown
    assert "-c constraints.txt" in shown or (ROOT / ".venv" / ".installed").exists()


def test_fast_tests_run_before_the_ones_that_start_a_cluster() -> None:
    shown = subprocess.run(["make", "-n", "test"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown.index('-m "not ray"') < shown.index("-m ray")


def run_tests(folder: Path, tests: str) -> "subprocess.CompletedProcess[str]":
    """What `.ci/pytest` does with a module of tests; they see in `tried` how often they were run."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    head = "import pathlib, pytest\ntried = pathlib.Path(__file__).parent / 'tried'\n"
    (folder / "test_some.py").write_text(head + tests)
    order = ["sh", str(ROOT / ".ci" / "pytest"), sys.executable, "--numprocesses", "2"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    # All other plugins take seconds to start.
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p xdist.plugin"}
    return subprocess.run(order, capture_output=True, text=True, env=env, check=False, cwd=folder)


def test_a_test_that_failed_beside_others_must_pass_alone(tmp_path: Path) -> None:
    flaky = "def test_second_time():\n    first = not tried.exists()\n    tried.touch()\n    assert not first\n"
    result = run_tests(tmp_path, flaky + "def test_good():\n    pass\n")
    assert result.returncode == 0, result.stdout
    assert "once more, alone: 1 of" in result.stderr
    assert "1 failed, 1 passed" in result.stdout


def test_a_test_that_fails_alone_fails_the_run(tmp_path: Path) -> None:
    result = run_tests(tmp_path, "def test_bad():\n    assert False\n")
    assert result.returncode == 1
    assert "once more, alone" in result.stderr


def test_where_many_fail_the_first_run_decides(tmp_path: Path) -> None:
    many = (
        "@pytest.mark.parametrize('n', range(4))\ndef test_many(n):\n    first = not (tried.parent / str(n)).exists()\n"
    )
    result = run_tests(tmp_path, many + "    (tried.parent / str(n)).touch()\n    assert not first\n")
    assert result.returncode == 1
    assert "once more" not in result.stderr


def test_one_that_cannot_be_run_alone_fails_the_run(tmp_path: Path) -> None:
    forgetting = (
        "import pytest\n\n\n@pytest.hookimpl(tryfirst=True)\ndef pytest_sessionfinish(session):\n"
        "    failed = session.config.pluginmanager.get_plugin('lfplugin').lastfailed\n"
        "    for test in [test for test in failed if 'made' in str(test)]:\n        del failed[test]\n"
    )
    (tmp_path / "conftest.py").write_text(forgetting)
    made = "def test_made():\n    assert False\n"
    flaky = "def test_second_time():\n    first = not tried.exists()\n    tried.touch()\n    assert not first\n"
    result = run_tests(tmp_path, made + flaky)
    assert result.returncode == 1
    assert "once more" not in result.stderr


def test_no_tests_at_all_is_no_success(tmp_path: Path) -> None:
    assert run_tests(tmp_path, "").returncode == 5
