"""The command line as scripts use it: JSON on standard output, exit codes, completion, Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from deployments.engine.protocol.errors import NumericalFailure
from deployments.engine.protocol.sampler_names import SAMPLERS
from serve_app.cli.exits import EXIT_CODES
from serve_app.cli.main import app
from serve_app.client import DarkroomClient
from serve_app.generation.styles import STYLES
from tests.serve_app.fakes import FakeBackend, failing, refusing, slow
from tests.serve_app.servers import ROOT


def run(*arguments: str, url: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", url])


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def asked(tmp_path: Path) -> str:
    text = '{"prompt": "a", "seed": 1, "num_images": 2}\n\n{"prompt": "b", "width": 3}\n'
    (tmp_path / "asked.jsonl").write_text(text)
    return str(tmp_path / "asked.jsonl")


def test_generate_prints_one_document(url: str, tmp_path: Path) -> None:
    result = run("generate", "a", "-o", str(tmp_path / "a.webp"), "--num-images", "2", "--seed", "5", "--json", url=url)
    assert result.exit_code == 0
    (told,) = lines(result)
    assert [(image["index"], image["seed"]) for image in told["images"]] == [(0, 5), (1, 6)]
    assert [Path(image["path"]).stat().st_size for image in told["images"]] == [
        image["bytes"] for image in told["images"]
    ]
    assert told["failures"] == []


def test_a_failed_image_is_in_the_document_and_in_the_exit_code(url: str, backend: FakeBackend, tmp_path: Path) -> None:
    backend.script = failing(NumericalFailure("not finite"), 1)
    result = run("generate", "a", "-o", str(tmp_path / "a.png"), "--num-images", "2", "--json", url=url)
    assert result.exit_code == 7
    (told,) = lines(result)
    assert [image["index"] for image in told["images"]] == [0]
    assert told["failures"] == [{"index": 1, "message": "not finite"}]
    assert "image 1: not finite" in result.stderr


def test_a_batch_prints_a_line_for_each_thing_that_happens(url: str, asked: str, tmp_path: Path) -> None:
    result = run("batch", asked, "-o", str(tmp_path / "made"), "--json", url=url)
    assert result.exit_code == 7
    begun, *between, done = lines(result)
    assert done["id"] == begun["job"]
    assert (done["state"], done["succeeded"], done["failed"]) == ("succeeded", 1, 1)
    assert sorted((each["line"], each["image"]) for each in between if "image" in each) == [(1, 0), (1, 1)]
    (failed,) = [each for each in between if "error" in each]
    assert (failed["line"], failed["error"]["status"]) == (3, 422)


def test_jobs_are_submitted_waited_for_listed_and_downloaded(url: str, asked: str, tmp_path: Path) -> None:
    job_id = run("jobs", "submit", asked, url=url).stdout.strip()
    waited = run("jobs", "wait", job_id, "--json", url=url)
    assert waited.exit_code == 7, "an entry could not be made"
    assert lines(waited)[0]["state"] == "succeeded"
    listed = lines(run("jobs", "list", "--json", url=url))
    assert [job["id"] for job in listed[0]["jobs"]] == [job_id]
    assert job_id in run("jobs", "list", url=url).stdout
    downloaded = run("jobs", "download", job_id, "-o", str(tmp_path / "made"), "--json", url=url)
    assert downloaded.exit_code == 7
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["0000-0.png", "0000-1.png"]
    assert {Path(each["path"]).name for each in lines(downloaded) if "path" in each} == {"0000-0.png", "0000-1.png"}


def test_waiting_ends_when_its_time_is_over_and_the_job_goes_on(url: str, backend: FakeBackend, asked: str) -> None:
    backend.script = slow
    job_id = run("jobs", "submit", asked, url=url).stdout.strip()
    waited = run("jobs", "wait", job_id, "--timeout", "0", "--json", url=url)
    assert waited.exit_code == 4
    assert lines(waited)[0]["state"] == "running"
    assert lines(run("jobs", "cancel", job_id, "--json", url=url))[0]["state"] == "cancelled"
    assert run("jobs", "wait", job_id, url=url).exit_code == 7


@pytest.mark.parametrize("command", [("jobs", "show"), ("jobs", "wait"), ("jobs", "cancel")])
def test_a_job_that_is_not_there_has_an_exit_code_of_its_own(command: tuple[str, str], url: str) -> None:
    assert run(*command, "0" * 32, url=url).exit_code == 5


def test_what_the_server_has_is_listed(url: str) -> None:
    assert run("list", "models", url=url).stdout.split() == ["tiny", "other"]
    (told,) = lines(run("list", "styles", "--json", url=url))
    assert [row["name"] for row in told["styles"]] == list(STYLES)
    assert run("list", "ad-formats", url=url).exit_code == 0


def test_a_wrong_file_is_an_error_in_json_as_well(url: str, tmp_path: Path) -> None:
    result = run("batch", str(tmp_path / "gone.jsonl"), "-o", str(tmp_path), "--json", url=url)
    assert result.exit_code == 2
    assert lines(result)[0]["error"]["field"] == "file"


def test_every_exit_code_is_in_the_page_that_tells_them() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in page
    assert str(EXIT_CODES[7]) in " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())


# The command as it is installed, by its name: completion depends on it.
COMMAND = Path(sys.executable).parent / "darkroom"


def environment(**more: str) -> dict[str, str]:
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(ROOT), "PATH": path} | more


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_that_asks_the_command(shell: str) -> None:
    told = subprocess.run(
        [COMMAND], env=environment(_DARKROOM_COMPLETE=f"source_{shell}"), capture_output=True, text=True, check=True
    )
    assert f"_DARKROOM_COMPLETE=complete_{shell}" in told.stdout
    if checker := shutil.which(shell):
        subprocess.run([checker, "-n"], input=told.stdout, text=True, check=True)


def completed(words: str, shell: str = "zsh", **more: str) -> str:
    """What the shell is offered after `words`."""
    asking = {"_DARKROOM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
    if shell == "bash":
        asking |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    if shell == "fish":
        asking["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    said = subprocess.run([COMMAND], env=environment(**asking, **more), capture_output=True, text=True, check=False)
    return said.stdout


GONE = "http://127.0.0.1:9"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_offered_names_in_its_own_form(shell: str) -> None:
    assert "demo-sd" in completed("darkroom generate x --model demo", shell, DARKROOM_URL=GONE)


def test_samplers_and_styles_are_completed_without_a_server() -> None:
    told = completed("darkroom generate x --sampler dpm", "bash", DARKROOM_URL=GONE)
    assert told.split() == [name for name in SAMPLERS if name.startswith("dpm")]
    assert completed("darkroom generate x --style lu", "bash", DARKROOM_URL=GONE).split() == ["luxury"]


def test_models_and_jobs_are_completed_from_the_server(url: str, asked: str) -> None:
    here = {"DARKROOM_URL": url}
    assert "maker/tiny" in completed("darkroom generate x --model m", "bash", **here)
    job_id = run("jobs", "submit", asked, url=url).stdout.strip()
    assert completed(f"darkroom jobs show {job_id[:6]}", "bash", **here).strip() == job_id


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes(url: str) -> None:
    script = (
        'eval "$(_DARKROOM_COMPLETE=source_bash darkroom)"; COMP_WORDS=(darkroom generate x --model ti); COMP_CWORD=4;'
        ' "$(complete -p darkroom | sed -n "s/.*-F \\([^ ]*\\).*/\\1/p")" darkroom; echo "${COMPREPLY[@]}"'
    )
    told = subprocess.run(
        ["bash", "-c", script], env=environment(DARKROOM_URL=url), capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "tiny"


def interrupted(*arguments: str, when: threading.Event) -> "subprocess.CompletedProcess[str]":
    """Runs the command, and presses Ctrl-C once `when` is set."""
    command = [sys.executable, "-m", "serve_app.cli", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as begun:
        try:
            assert when.wait(60)
            begun.send_signal(signal.SIGINT)
            out, err = begun.communicate(timeout=60)
        finally:
            begun.kill()
        return subprocess.CompletedProcess(command, begun.returncode, out, err)


def begins_slowly(backend: FakeBackend) -> threading.Event:
    begun = threading.Event()

    def script(request: Any) -> Any:
        begun.set()
        return slow(request)

    backend.script = script
    return begun


def ended(backend: FakeBackend) -> bool:
    deadline = time.monotonic() + 30
    while backend.running and time.monotonic() < deadline:
        time.sleep(0.01)
    return not backend.running


def test_ctrl_c_ends_the_servers_work(url: str, backend: FakeBackend, tmp_path: Path) -> None:
    begun = begins_slowly(backend)
    done = interrupted("generate", "a", "-o", str(tmp_path / "a.png"), "--url", url, when=begun)
    assert (done.returncode, done.stdout) == (130, "")
    assert ended(backend)
    assert len(backend.cancelled) == 1


def test_ctrl_c_cancels_the_job_of_a_batch(url: str, backend: FakeBackend, asked: str, tmp_path: Path) -> None:
    begun = begins_slowly(backend)
    done = interrupted("batch", asked, "-o", str(tmp_path / "made"), "--url", url, "--json", when=begun)
    assert done.returncode == 130
    (job,) = lines(run("jobs", "list", "--json", url=url))[0]["jobs"]
    assert job["state"] == "cancelled"
    assert ended(backend)


def test_ctrl_c_while_a_job_is_submitted_cancels_it_as_well(
    url: str, backend: FakeBackend, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has the job, and the command does not know its id yet."""
    backend.script = slow
    submit, submitted = DarkroomClient.submit, list[str]()

    def interrupted_submit(self: DarkroomClient, *arguments: Any, **more: Any) -> str:
        submitted.append(submit(self, *arguments, **more))
        if len(submitted) == 1:
            raise KeyboardInterrupt
        return submitted[-1]

    monkeypatch.setattr(DarkroomClient, "submit", interrupted_submit)
    assert run("batch", asked, "-o", str(tmp_path / "made"), url=url).exit_code == 130
    assert len(set(submitted)) == 1
    assert json.loads(run("jobs", "show", submitted[0], url=url).stdout)["state"] == "cancelled"


def test_a_refusal_of_every_image_is_told_with_its_code(url: str, backend: FakeBackend, tmp_path: Path) -> None:
    backend.script = refusing(NumericalFailure("not finite"))
    result = run("generate", "a", "-o", str(tmp_path / "a.png"), "--json", url=url)
    assert result.exit_code == 7
    assert lines(result)[0]["error"]["code"] == "numerical_failure"


def test_a_picture_is_enlarged_into_the_format_of_its_name(url: str, tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.webp"
    Image.new("RGB", (64, 48), "teal").save(small)
    assert "lanczos" in run("list", "upscalers", url=url).stdout.split()
    (told,) = lines(run("upscale", str(small), "-o", str(large), "--scale", "3", "--json", url=url))
    assert told == {"path": str(large), "bytes": large.stat().st_size}
    with Image.open(large) as picture:
        assert (picture.size, picture.format) == ((192, 144), "WEBP")
    assert run("upscale", str(small), "-o", str(large), "--upscaler", "8x", url=url).exit_code != 0
    assert run("upscale", str(tmp_path / "none.png"), "-o", str(large), url=url).exit_code != 0
