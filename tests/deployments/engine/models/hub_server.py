"""A hub of our own on loopback, which the real client fetches from."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.deployments.engine.tiny import save_tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "maker/tiny"


def client_environment(home: Path, url: str, *, offline: bool = False) -> dict[str, str]:
    """Of a process that fetches there into `home`: the client reads its settings when it is imported."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
    settings |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    return os.environ | settings | {"PYTHONPATH": str(Path(__file__).parents[4])}


def use_hub(monkeypatch: pytest.MonkeyPatch, home: Path, url: str, *, offline: bool = False) -> None:
    """Has the client in this process fetch there into `home`, as `client_environment` has one in another process.

    A process that loads networks takes seconds to begin; what the client makes of its environment is not ours.
    """
    settings = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        assert hasattr(constants, name)
        monkeypatch.setattr(constants, name, value)


class Hub(ThreadingHTTPServer):
    """Serves `folder` as the one repository, and remembers which files were asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder = folder
        self.asked: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        files = sorted(
            p.relative_to(self.server.folder).as_posix() for p in self.server.folder.rglob("*") if p.is_file()
        )
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if path.startswith(f"/api/models/{REPOSITORY}/revision/{COMMIT}"):
            sizes = {file: (self.server.folder / file).stat().st_size for file in files}
            siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
            self.send(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode(), with_body=with_body)
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/{COMMIT}"):
            tree = [self.entry(file) for file in files]
            self.send(json.dumps(tree).encode(), with_body=with_body)
        elif name in files:
            self.server.asked.add(name)
            self.send((self.server.folder / name).read_bytes(), with_body=with_body, etag=self.entry(name)["oid"])
        else:
            code = "RevisionNotFound" if path.startswith(f"/api/models/{REPOSITORY}/") else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def entry(self, file: str) -> dict[str, str]:
        content = (self.server.folder / file).read_bytes()
        return {"type": "file", "path": file, "oid": sha1(content).hexdigest(), "size": str(len(content))}

    def send(self, body: bytes, *, with_body: bool, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_hub(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def save_repository(folder: Path) -> Path:
    """As the real ones: two precisions, a pickle, a single-file checkpoint, and parts that nobody asked for."""
    save_tiny_checkpoint(folder)
    for path in list(folder.rglob("*.safetensors")):
        path.with_suffix(f".fp16{path.suffix}").write_bytes(path.read_bytes())
        path.with_suffix(".bin").write_bytes(b"a pickle")
        path.with_suffix(f".non_ema{path.suffix}").write_bytes(b"not these")
    (folder / "v1-5-pruned.safetensors").write_bytes(b"seven gigabytes")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"another one")
    return folder
