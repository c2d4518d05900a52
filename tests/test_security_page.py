"""docs/security.md tells the limits that the code has, and what it says of the demonstration server is so."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployments.engine.conditioning import prompt_syntax
from deployments.engine.lora import reader
from deployments.engine.protocol import params, settings
from deployments.uploads import file_chunks, image_files
from serve_app.api.middleware import upload_budget
from serve_app.api.parsing import body, forms, validation
from serve_app.api.responses import event_stream
from serve_app.cli import main
from serve_app.config.server import AppConfig
from serve_app.jobs import pictures
from serve_app.launch import local_cluster
from serve_app.serving import node_environment, request_head

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
MIB = 2**20


@pytest.mark.parametrize(
    "row",
    [
        f"| JSON body | {body.MAX_BODY_BYTES // MIB} MiB |",
        f"| form with its files | {forms.MAX_UPLOAD_BYTES // MIB} MiB, {forms.MAX_FILES} files, "
        f"{forms.MAX_FIELDS} fields, {forms.MAX_TEXT_BYTES // 1024} KiB a text |",
        f"| all forms in flight, of one ingress | {upload_budget.MAX_UPLOADS_IN_FLIGHT_BYTES // MIB} MiB |",
        f"| target and headers of a request, trailers too | {request_head.MAX_HEAD_BYTES // 1024} KiB, "
        f"{request_head.MAX_HEADERS} headers; the target {request_head.MAX_TARGET_BYTES // 1024} KiB |",
        f"| time for the headers | {node_environment.HEAD_TIMEOUT_S:g} s "
        f"| `{node_environment.HEAD_TIMEOUT_VARIABLE}` |",
        f"| time for a body | {body.READ_SECONDS:g} s, and its length at "
        f"{body.SLOWEST_BYTES_PER_SECOND // 1024} KiB/s |",
        f"| time for taking a stream's next event | {event_stream.WRITE_SECONDS:g} s |",
        f"| keys of a JSON object | {body.MAX_KEYS} |",
        f"| lists and objects of a body | {body.MAX_CONTAINERS:,} |",
        f"| faults that an answer lists | {validation.MAX_FAULTS}, and",
        f"weights 0 to {prompt_syntax.MAX_WEIGHT:g} |",
        f"64 to {params.MAX_SIDE} in eights |",
        f"| picture file | {image_files.MIN_SIDE} to {image_files.MAX_SIDE} a side, "
        f"{image_files.MAX_PIXELS / 1e6:.1f} million "
        f"pixels, one frame, {file_chunks.MAX_SMALL_PIECES} small chunks |",
        f"| ControlNets of a request | {settings.MAX_CONTROLS} |",
        f"| pictures of a set to be restyled | {pictures.MAX_SET}, in a form or JSON of "
        f"{forms.MAX_UPLOAD_BYTES // 2**20} MiB |",
        f"| LoRAs of a request | {settings.MAX_LORAS} |",
        f"| reference images of a request | {settings.MAX_REFERENCES} |",
        f"| a LoRA's file | {reader.LARGEST_BYTES // 2**30} GiB |",
    ],
)
def test_the_page_tells_the_limits_that_there_are(row: str) -> None:
    assert row in PAGE


def test_the_defaults_of_the_configuration_are_those_limits() -> None:
    ingress = AppConfig.model_validate({"deployments": [{"name": "a", "models": ["demo-sd"]}]}).ingress
    assert ingress.max_body_bytes == body.MAX_BODY_BYTES
    assert ingress.max_upload_bytes == forms.MAX_UPLOAD_BYTES
    assert ingress.max_uploads_in_flight_bytes == upload_budget.MAX_UPLOADS_IN_FLIGHT_BYTES
    demo = yaml.safe_load((ROOT / "serve_app" / "config" / "packaged" / "demo.yaml").read_text())
    assert f"| requests that wait in a replica | {demo['deployments'][0]['queue_limit']} (demo)" in PAGE


def test_the_server_listens_on_this_machine_only_unless_told_otherwise() -> None:
    assert inspect.signature(main.serve).parameters["host"].default == "127.0.0.1"
    assert "HOST ?= 127.0.0.1" in (ROOT / "Makefile").read_text()


def test_its_cluster_has_no_dashboard() -> None:
    """Ray's dashboard runs jobs for whoever reaches it."""
    calls = (node for node in ast.walk(ast.parse(inspect.getsource(local_cluster))) if isinstance(node, ast.Call))
    (init,) = [call for call in calls if ast.unparse(call.func) == "ray.init"]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in init.keywords}
    assert (given["include_dashboard"], given["address"]) == ("False", "'local'")


def test_who_starts_it_chooses_how_long_headers_may_take() -> None:
    code = (
        "from serve_app.launch.local_cluster import prepare_environment as prepare; prepare()\n"
        "import os; print(os.environ['DARKROOM_HEAD_TIMEOUT_S'])"
    )
    for given, told in (({}, "10"), ({"DARKROOM_HEAD_TIMEOUT_S": "2.5"}, "2.5")):
        environment = {name: value for name, value in os.environ.items() if "HEAD_TIMEOUT" not in name} | given
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert said.stdout.strip() == told


def test_its_cluster_lets_nobody_in_without_the_token_of_this_run() -> None:
    """Asked of Ray itself, in a process of its own: it reads the environment once."""
    code = (
        "from serve_app.launch.local_cluster import prepare_environment as prepare; prepare()\n"
        "import os\n"
        "from ray._private.authentication.authentication_utils import is_token_auth_enabled\n"
        "from ray._raylet import AuthenticationTokenLoader\n"
        "print(is_token_auth_enabled(), AuthenticationTokenLoader.instance().has_token(), os.environ['RAY_AUTH_TOKEN'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "elsewhere"}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
        ).stdout.split()
        for _ in range(2)
    ]
    assert [each[:2] for each in said] == [["True", "True"]] * 2
    assert len({each[2] for each in said}) == 2
    assert all(len(each[2]) == 64 for each in said)
