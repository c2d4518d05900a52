"""Secrets for webhooks are drawn and told, and a receiver can be tried."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from standardwebhooks import Webhook
from typer.testing import CliRunner, Result

from serve_app.cli.main import app
from tests.serve_app.callbacks.receivers import Receiver, receiver


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["webhooks", *arguments])


@pytest.fixture
def heard() -> Iterator[Receiver]:
    """On a thread of its own: the command has an event loop of its own."""
    ready, over, found = threading.Event(), asyncio.Event(), list[Receiver]()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with receiver() as running:
            found.append(running)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loops[0].call_soon_threadsafe(over.set)
    thread.join()


def config(folder: Path, secret: str, heard: Receiver, keys: dict[str, str] | None = None) -> str:
    (folder / "secret").write_text(secret)
    section = {
        "webhook_secrets": [{"file": str(folder / "secret")}],
        "allow_http": True,
        "ports": [heard.port],
        "allow_networks": ["127.0.0.1/32"],
    }
    settings = {"extends": "demo", "callbacks": section} | ({} if keys is None else {"keys": keys})
    (folder / "darkroom.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "darkroom.yaml")


def test_a_receiver_is_tried_with_a_secret_that_was_drawn(heard: Receiver, tmp_path: Path) -> None:
    secret = run("new-secret").stdout.strip()
    assert secret != run("new-secret").stdout.strip()
    file = config(tmp_path, secret, heard)
    result = run("test", heard.url(), "--config", file, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"delivered": True, "status": 204})
    (told,) = run("secret", "--config", file).stdout.split()
    assert told == secret
    (received,) = heard.received
    assert Webhook(told).verify(received.body, received.headers)["type"] == "test"
    unknown = run("secret", "--config", file, "--tenant", "acme")
    assert (unknown.exit_code, unknown.stdout) == (2, "")


def test_with_keys_no_output_is_a_configured_secret(heard: Receiver, tmp_path: Path) -> None:
    """Whoever has that one can make every tenant's."""
    secret = run("new-secret").stdout.strip()
    key = CliRunner().invoke(app, ["keys", "new", "--tenant", "acme"]).stdout.splitlines()[1]
    (tmp_path / "keys.yaml").write_text(f"{key}\n")
    file = config(tmp_path, secret, heard, {"file": str(tmp_path / "keys.yaml")})
    for command in (("secret",), ("test", heard.url())):
        for tenant in ((), ("--tenant", ""), ("--tenant", "acmee")):
            result = run(*command, "--config", file, *tenant)
            assert (result.exit_code, result.stdout) == (2, "")
            assert result.stderr.startswith("darkroom: tenant: ")
    assert heard.received == []
    (acme,) = run("secret", "--config", file, "--tenant", "acme").stdout.split()
    assert acme != secret
    assert run("test", heard.url(), "--config", file, "--tenant", "acme").exit_code == 0
    Webhook(acme).verify(heard.received[0].body, heard.received[0].headers)
    (tmp_path / "keys.yaml").unlink()
    elsewhere = run("secret", "--config", file, "--tenant", "acme")
    assert (elsewhere.exit_code, elsewhere.stdout) == (0, f"{acme}\n")
    assert "not checked" in elsewhere.stderr


def test_a_receiver_that_does_not_answer_well_is_told_with_an_exit_code(heard: Receiver, tmp_path: Path) -> None:
    file = config(tmp_path, run("new-secret").stdout.strip(), heard)
    heard.behaves("/hook", 500, "close")
    assert run("test", heard.url(), "--config", file).exit_code == 1
    lost = run("test", heard.url(), "--config", file, "--json")
    assert (lost.exit_code, json.loads(lost.stdout)["reason"]) == (6, "connection_lost")
    refused = run("test", "https://10.0.0.1/", "--config", file, "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["reason"]) == (2, "address_refused")
    assert run("test", heard.url(host="127.1"), "--config", file).exit_code == 0
    assert run("test", heard.url(host="127.2"), "--config", file).exit_code == 3


def test_a_configuration_without_secrets_is_refused(heard: Receiver, tmp_path: Path) -> None:
    result = run("test", heard.url(), "--config", "demo")
    assert result.exit_code == 2
    assert "webhook_secrets" in result.stderr
    file = config(tmp_path, "whsec_short", heard)
    assert run("secret", "--config", file).exit_code == 2
    served = CliRunner().invoke(app, ["serve", "--config", file])
    assert served.exit_code == 2
    assert "24 to 64 bytes" in served.stderr
