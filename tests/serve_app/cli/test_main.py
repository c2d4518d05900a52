"""The command line: errors in one line that names the field, exit codes, files."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from deployments.engine.protocol.params import GenerationParams
from serve_app.api.application import create_api
from serve_app.cli import progress
from serve_app.cli.exits import EXIT_FAILED, EXIT_NO_IMAGE, EXIT_NOT_FOUND, EXIT_UNREACHABLE, EXIT_USAGE
from serve_app.cli.main import app
from serve_app.cli.options import PARAMETERS, PROMPT, REFERENCE, parameters_of
from serve_app.cli.progress import Failure, FinishedImage, Step, output_format, show_progress
from serve_app.client import DarkroomClient, DarkroomError, ServerEvent
from serve_app.gateway.api_keys import hash_of, parse_keys
from serve_app.launch import launcher
from serve_app.service import DiffusionService
from tests.deployments.engine.tiny import save_tiny_checkpoint, save_tiny_controlnet
from tests.serve_app.fakes import FakeBackend
from tests.serve_app.servers import http_server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def one_line(result: Result) -> str:
    (line,) = result.output.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--width", "63"), "width"),
        (("--steps", "0"), "steps"),
        (("--sampler", "eular"), "sampler"),
        (("--seed", "-7"), "seed"),
        (("--guidance", "99"), "guidance"),
        (("--lora", "coffee:9"), "lora"),
        (("--lora", "coffee:much"), "lora"),
        (("--lora", "../coffee"), "lora"),
        (("--reference-scale", "9"), "reference_scale"),
    ],
)
def test_a_slip_is_told_without_a_server_and_names_the_field(
    options: tuple[str, ...], field: str, tmp_path: Path
) -> None:
    result = run("generate", "a cup", "-o", str(tmp_path / "cup.png"), *options)
    assert result.exit_code == EXIT_USAGE
    assert one_line(result).startswith(f"darkroom: {field}: ")


def test_loras_are_named_with_their_scales(tmp_path: Path, fake_server: tuple[str, FakeBackend]) -> None:
    url, backend = fake_server
    options = ("--lora", "coffee:0.5", "--lora", "shoe", "--url", url)
    result = run("generate", "a cup", "-o", str(tmp_path / "cup.png"), *options)
    assert "no LoRA of this name" in one_line(result)
    assert backend.asked == []
    unset = dict.fromkeys(each.name for each in (PROMPT, *PARAMETERS, *REFERENCE))
    given = parameters_of({**unset, "loras": ["coffee:0.5", "shoe"]}, {})
    assert given == {"loras": [{"name": "coffee", "scale": 0.5}, {"name": "shoe"}]}


@pytest.mark.parametrize("name", ["cup.gif", "cup", "nowhere/cup.png"])
def test_an_output_that_cannot_be_written_is_refused_first(name: str, tmp_path: Path) -> None:
    result = run("generate", "a cup", "-o", str(tmp_path / name))
    assert result.exit_code == EXIT_USAGE
    assert one_line(result).startswith("darkroom: output: ")


def test_no_server_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    result = run("generate", "a cup", "-o", str(tmp_path / "cup.png"), "--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == EXIT_UNREACHABLE
    assert "no server" in one_line(result)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    source = save_tiny_checkpoint(folder / "tiny")
    hosted = {"name": "tiny", "models": ["tiny"], "device": "cpu", "dtype": "float32", "threads": 1}
    nets = {"canny": {"source": str(save_tiny_controlnet(folder / "canny", seed=5))}}
    model = {"name": "tiny", "source": str(source), "controlnets": nets}
    settings = {"models": [model], "deployments": [hosted]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder / "tiny.yaml"


def test_local_makes_the_pictures_in_this_process(config: Path, tmp_path: Path) -> None:
    here = ("--local", "--config", str(config), "--steps", "2")
    result = run("generate", "a cup", "-o", str(tmp_path / "cup.webp"), *here, "--seed", "3", "--num-images", "2")
    assert result.exit_code == 0, result.output
    assert sorted(line.rpartition("/")[2] for line in result.stdout.splitlines()) == [
        "cup-0.webp (seed 3)",
        "cup-1.webp (seed 4)",
    ]
    with Image.open(tmp_path / "cup-1.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("img2img", ("--strength", "0.5")),
        ("inpaint", ("--mask-type", "top", "--feather", "4")),
        ("inpaint", ("--mask", "photo.png")),
        ("control", ("--preprocess", "--scale", "0.7")),
    ],
)
def test_local_makes_pictures_from_pictures(
    command: str, options: tuple[str, ...], config: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    here = ("--local", "--config", str(config), "--steps", "4", "--seed", "1")
    result = run(command, "photo.png", "a cup", "-o", "made.png", *options, *here)
    assert result.exit_code == 0, result.output
    with Image.open("made.png") as made, Image.open(photo) as before:
        assert made.size == before.size
        assert made.tobytes() != before.tobytes()
        if command == "inpaint" and "top" in options:
            assert made.crop((0, 32, 64, 64)).tobytes() == before.crop((0, 32, 64, 64)).tobytes()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("img2img", "gone.png"), "image"),
        (("img2img", "photo.png", "--strength", "2"), "strength"),
        (("inpaint", "photo.png", "--mask", "gone.png"), "mask"),
        (("inpaint", "photo.png", "--mask-type", "middle"), "mask_type"),
        (("inpaint", "photo.png", "--mask-alpha", "strokes"), "mask_alpha"),
        (("inpaint", "photo.png", "--mask", "photo.png", "--mask-type", "center"), "mask_type"),
        (("control", "photo.png", "--scale", "3"), "scale"),
        (("control", "photo.png", "--type", "pose"), "type"),
    ],
)
def test_a_slip_with_pictures_names_its_option(
    arguments: tuple[str, ...], field: str, config: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    command, picture, *options = arguments
    result = run(command, picture, "a cup", "-o", "made.png", "--local", "--config", str(config), *options)
    assert result.exit_code == EXIT_USAGE
    assert one_line(result).startswith(f"darkroom: {field}: ")


def test_local_knows_the_models_of_its_configuration_only(config: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "cup.png")
    result = run("generate", "a cup", "-o", output, "--local", "--config", str(config), "--model", "tinny")
    assert result.exit_code == EXIT_NOT_FOUND
    assert one_line(result) == "darkroom: model: there is no such model; did you mean 'tiny'?"


def test_a_model_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "gone.yaml"
    model = {"name": "gone", "source": str(tmp_path / "gone"), "native_size": 64}
    config.write_text(yaml.safe_dump({"models": [model], "deployments": [{"name": "a", "models": ["gone"]}]}))
    result = run("generate", "a cup", "-o", str(tmp_path / "cup.png"), "--local", "--config", str(config))
    assert result.exit_code == EXIT_FAILED
    assert "no folder" in one_line(result)


Told = Step | FinishedImage | Failure


def told_by_a_server(monkeypatch: pytest.MonkeyPatch, *events: ServerEvent) -> list[Told]:
    def stream(_self: DarkroomClient, _params: GenerationParams, **_: object) -> Iterator[ServerEvent]:
        yield from events

    monkeypatch.setattr(DarkroomClient, "stream", stream)
    return list(progress.stream_from_server("http://127.0.0.1:1", GenerationParams(prompt="a cup")))


def test_a_servers_stream_becomes_steps_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"index": 0, "seed": 3, "format": "png", "width": 64, "height": 64, "data": "cGl4ZWxz"}
    life = told_by_a_server(
        monkeypatch,
        ServerEvent("progress", {"step": 1, "steps": 2, "position": 0}),
        ServerEvent("image", image),
        ServerEvent("done", {}),
    )
    assert life == [Step(1, 2), FinishedImage(0, 3, b"pixels")]


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (DarkroomError(404, "model_not_found", "no such model", "model_name"), 5, "darkroom: model: no such model"),
        (DarkroomError(422, "too_small", "width must be more", "width"), 2, "darkroom: width: must be more"),
        (DarkroomError(401, "missing_api_key", "a key is needed"), 3, "darkroom: a key is needed"),
        (DarkroomError(403, "insufficient_scope", "not this key"), 3, "darkroom: not this key"),
        (DarkroomError(429, "rate_limited", "later"), 4, "darkroom: later"),
        (DarkroomError(503, "overloaded", "the queue is full"), 4, "darkroom: the queue is full"),
        (DarkroomError(504, "deadline_exceeded", "too late"), 4, "darkroom: too late"),
        (DarkroomError(499, "cancelled", "it was cancelled"), 7, "darkroom: it was cancelled"),
        (DarkroomError(500, "numerical_failure", "not finite"), 7, "darkroom: not finite"),
        (DarkroomError(401, "invalid_api_key", "unknown"), 3, "darkroom: unknown"),
        (DarkroomError(500, "internal_error", "something went wrong"), 1, "darkroom: something went wrong"),
        (DarkroomError(0, "connection_lost", "the connection was lost"), 6, "darkroom: the connection was lost"),
        (DarkroomError(0, "invalid_api_key", "no key has these"), 2, "darkroom: no key has these"),
    ],
)
def test_a_servers_refusal_has_its_exit_code_and_names_the_option(
    error: DarkroomError, exit_code: int, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stream(_self: DarkroomClient, _params: GenerationParams, **_: object) -> Iterator[ServerEvent]:
        yield from ()
        raise error

    monkeypatch.setattr(DarkroomClient, "stream", stream)
    result = run("generate", "a cup", "-o", str(tmp_path / "cup.png"), "--json")
    assert (result.exit_code, result.stderr.strip()) == (exit_code, line)
    told = json.loads(result.stdout)["error"]
    assert (told["code"], told["status"], told["field"]) == (error.code, error.status, error.field)


def test_an_image_that_fails_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    life: list[Told] = [FinishedImage(1, 8, b"b"), Failure(0, "the numbers were not finite")]
    monkeypatch.setattr(progress, "stream_from_server", lambda *_: (each for each in life))
    result = run("generate", "a cup", "-o", str(tmp_path / "cup.png"), "--num-images", "2")
    assert result.exit_code == EXIT_NO_IMAGE
    assert "image 0: the numbers were not finite" in result.output
    assert (tmp_path / "cup-1.png").read_bytes() == b"b"


def test_the_bar_shows_the_queue_and_then_the_steps() -> None:
    screen = io.StringIO()
    life: list[Told] = [Step(0, 20, 3), Step(5, 20)]
    assert list(show_progress(iter(life), "cup.png", Console(file=screen, force_terminal=True, width=100))) == []
    assert "step 5 of 20" in screen.getvalue()


def test_the_files_name_says_the_format(tmp_path: Path) -> None:
    assert output_format(tmp_path / "cup.JPG") == "jpeg"


def test_unpinned_models_are_refused_before_anything_starts(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("extends: production\nmodels: [{name: sd15, source: maker/other}]\n")
    result = run("serve", "--config", str(config))
    assert result.exit_code == EXIT_USAGE
    assert "pin `revision`" in one_line(result)


def test_a_new_key_is_shown_once_and_its_line_knows_only_the_hash() -> None:
    arguments = ("--tenant", "acme", "--scopes", "generate, operate", "--priority", "high")
    first, second = [run("keys", "new", *arguments).stdout.splitlines() for _ in range(2)]
    key, line = first
    assert key not in line
    (entry,) = parse_keys(line)
    assert entry.hash == hash_of(key)
    assert (entry.tenant, sorted(entry.scopes), entry.priority) == ("acme", ["generate", "operate"], "high")
    # Both lines can be in one file.
    assert len(parse_keys(f"{line}\n{second[1]}\n")) == 2


@pytest.mark.parametrize(
    "arguments",
    [("--tenant", "a b"), ("--tenant", "a", "--scopes", "everything"), ("--tenant", "a", "--priority", "highest")],
)
def test_a_key_that_no_file_could_hold_is_not_drawn(arguments: tuple[str, ...]) -> None:
    result = run("keys", "new", *arguments)
    assert result.exit_code == EXIT_USAGE
    assert one_line(result).startswith("darkroom: ")
    assert "dk_" not in result.output


def test_a_server_for_everybody_is_refused_unless_that_is_said(config: Path) -> None:
    result = run("serve", "--config", str(config), "--host", "0.0.0.0")
    assert result.exit_code == EXIT_USAGE
    assert "--without-keys" in one_line(result)


def test_keys_that_cannot_be_read_are_told_before_anything_starts(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text()) | {"keys": {"file": str(tmp_path / "gone.yaml")}}
    (tmp_path / "with-keys.yaml").write_text(yaml.safe_dump(settings))
    result = run("serve", "--config", str(tmp_path / "with-keys.yaml"))
    assert result.exit_code == EXIT_USAGE
    assert "gone.yaml" in one_line(result)
    result = run("serve", "--config", str(tmp_path / "with-keys.yaml"), "--without-keys")
    assert result.exit_code == EXIT_USAGE
    assert "the configuration has `keys`" in one_line(result)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_command_line_gives_its_key(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def from_server(_url: object, _params: object, _uploads: object, api_key: str | None) -> Iterator[Told]:
        asked.append(api_key)
        yield from ()

    monkeypatch.setattr(progress, "stream_from_server", from_server)
    monkeypatch.setenv("DARKROOM_API_KEY", "dk_from_the_environment")
    said = ("--api-key", "dk_from_the_option") if by == "option" else ()
    assert run("generate", "a cup", "-o", str(tmp_path / "cup.png"), *said).exit_code == 0
    assert asked == [f"dk_from_the_{by}"]


def test_a_port_in_use_exits_with_2(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", "--config", str(config), "--port", str(taken.getsockname()[1]))
    assert result.exit_code == EXIT_USAGE
    assert "in use" in one_line(result)


@pytest.fixture
def fake_server() -> Iterator[tuple[str, FakeBackend]]:
    backend = FakeBackend()
    with http_server(create_api(DiffusionService(backend))) as url:
        yield url, backend


def test_a_file_of_requests_becomes_a_folder_of_pictures(tmp_path: Path, fake_server: tuple[str, FakeBackend]) -> None:
    file, out = tmp_path / "asked.jsonl", tmp_path / "made"
    file.write_text('{"prompt": "a", "seed": 1, "num_images": 2}\n\n{"prompt": "b", "width": 3}\n{"prompt": "c"}\n')
    result = run("batch", str(file), "-o", str(out), "--url", fake_server[0], "--priority", "low")
    assert result.exit_code == EXIT_NO_IMAGE
    assert sorted(path.name for path in out.iterdir()) == ["0001-0.png", "0001-1.png", "0004-0.png"]
    assert "line 3: width must be a multiple of 8" in result.output
    assert "darkroom: 1 of 3 requests" in result.output
    assert {request.params.priority for request in fake_server[1].asked} == {"low"}
    job_id = result.output.splitlines()[0].removeprefix("job ")
    shown = run("jobs", "show", job_id, "--url", fake_server[0])
    assert json.loads(shown.output)["succeeded"] == 2
    assert one_line(run("jobs", "cancel", job_id, "--url", fake_server[0])) == "succeeded"
    assert run("jobs", "show", "0" * 32, "--url", fake_server[0]).exit_code == EXIT_NOT_FOUND


@pytest.mark.parametrize("text", ["", "\n\n", "[1]", '{"prompt": "a"}\nnonsense', "\udcff"])
def test_a_file_that_holds_no_requests_is_said_in_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_bytes(text.encode(errors="surrogateescape"))
    result = run("batch", str(file), "-o", str(tmp_path / "made"))
    assert result.exit_code == EXIT_USAGE
    assert one_line(result).startswith("darkroom: file: ")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], ["127.0.0.1"]),
        (["--host", "0.0.0.0", "--without-keys"], []),
        (["--host", "::", "--without-keys", "--allow-host", "a.example", "--allow-host", "*.b.example"], None),
        (["--host", "10.1.2.3", "--without-keys"], ["10.1.2.3"]),
    ],
)
def test_a_server_without_keys_is_told_its_names(
    monkeypatch: pytest.MonkeyPatch, options: list[str], named: list[str] | None
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(launcher, "serve", lambda config, *_, **__: served.append(config.ingress.hosts))
    assert run("serve", *options).exit_code == 0
    assert [list(hosts) for hosts in served] == [["a.example", "*.b.example"] if named is None else named]


def test_a_server_with_keys_answers_to_every_name_unless_some_are_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(run("keys", "new", "--tenant", "acme").stdout.splitlines()[1])
    (tmp_path / "with-keys.yaml").write_text(f"extends: demo\nkeys: {{file: {file}}}\n")
    served: list[Any] = []
    monkeypatch.setattr(launcher, "serve", lambda config, *_, **__: served.append(config.ingress.hosts))
    for options in ([], ["--host", "10.1.2.3"], ["--host", "10.1.2.3", "--allow-host", "a.example"]):
        assert run("serve", "--config", str(tmp_path / "with-keys.yaml"), *options).exit_code == 0
    assert served == [(), (), ("a.example", "10.1.2.3")]


def test_a_time_for_headers_that_is_none_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_HEAD_TIMEOUT_S", "soon")
    result = run("serve")
    assert result.exit_code == EXIT_USAGE
    assert "DARKROOM_HEAD_TIMEOUT_S must be seconds" in one_line(result)


def test_a_name_that_is_none_is_refused_before_anything_starts() -> None:
    result = run("serve", "--allow-host", "http://a.example")
    assert result.exit_code == EXIT_USAGE
    assert "--allow-host: 'http://a.example' is no host" in one_line(result)
