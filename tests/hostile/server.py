"""The server that the corpus is sent to, in a process of its own: `python -m tests.hostile.server PORT`.

uvicorn, as Ray's proxy has it, the layers that we put around that proxy, and the whole HTTP side over a backend that
does what a replica does before its engine: it decodes pictures and reads prompts. Between the layers stands what looks
whether a header that steers Ray comes through, and an audit hook tells of every file and connection that is opened.
"""

import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.annotators.catalogue import NO_NETWORKS, Annotators
from deployments.engine.conditioning.prompt_syntax import parse_weighted
from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.events import Event, Failed
from deployments.engine.protocol.request import Request
from deployments.uploads.intake import Intake
from serve_app.api.application import create_api
from serve_app.api.parsing import body
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.sections import LoggingConfig
from serve_app.observability.logs import log_to
from serve_app.service import DiffusionService
from serve_app.serving.proxy_headers import RAYS_OWN, middlewares
from tests.serve_app.fakes import FakeBackend

READ_SECONDS: Final = 0.4
OPENED: Final = "OPENED"
STEERED: Final = "STEERED"
CRASH: Final = "/crash"

_OURS: Final = tuple(
    str(Path(folder).resolve())
    for folder in (sys.prefix, sys.base_prefix, Path(__file__).parents[2], tempfile.gettempdir(), "/dev", "/proc/self")
)


class Worker:
    """The engine's place: reads a prompt as the engine would, then plays the script."""

    def __init__(self, script: FakeBackend) -> None:
        self._script = script

    def check_room(self, request: Request) -> None:
        pass

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        try:
            for field in ("prompt", "negative_prompt"):
                parse_weighted(getattr(request.params, field), field)
        except EngineError as error:
            yield Failed(request.id, error)
            return
        # It remembers whatever it was asked, and memory is being looked at.
        self._script.asked.clear()
        async for event in self._script.generate(request):
            yield event


class Replica(FakeBackend):
    """Takes pictures in as a replica does, with its own `Intake`."""

    def __init__(self) -> None:
        super().__init__()
        self._intake = Intake(Annotators(NO_NETWORKS, "cpu"))
        self._worker = Worker(FakeBackend())

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        try:
            ready = await self._intake.decode(request, self._worker)
            async for event in self._worker.generate(ready):
                yield event
        except EngineError as error:
            yield Failed(request.id, error)


class RaysPlace:
    """Where Ray's proxy stands: answers what only Ray would, in Ray's way, and says so when it can be steered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            names = {name.decode().lower().replace("-", "_") for name, _ in scope["headers"]}
            values = [value for name, value in scope["headers"] if name in (b"traceparent", b"tracestate")]
            if names & RAYS_OWN or not all(value.isascii() for value in values):
                print(STEERED, file=sys.stderr, flush=True)
            if scope["path"] == CRASH:
                await PlainTextResponse("Traceback: ray.exceptions SECRET", 500)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def tell_of_what_is_opened() -> None:
    """From now on: every file outside of the installation and the temporary folder, every connection, every process."""

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes):
            path = os.path.abspath(os.fsdecode(args[0]))
            if not path.startswith(_OURS):
                os.write(2, f"{OPENED} a file\n".encode())
        elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec"):
            os.write(2, f"{OPENED} {event}\n".encode())

    sys.addaudithook(look)


def main(port: int) -> None:
    # A client that is too slow shall be found out while the test waits.
    body.READ_SECONDS, body.SLOWEST_BYTES_PER_SECOND = READ_SECONDS, 8 * 1024 * 1024
    log_to(sys.stderr, LoggingConfig())
    app: ASGIApp = RaysPlace(create_api(DiffusionService(Replica()), callbacks=CallbacksConfig(uploads=True)))
    for layer in middlewares():
        app = layer.cls(app, *layer.args, **layer.kwargs)
    tell_of_what_is_opened()
    uvicorn.run(app, port=port, log_level="error", access_log=False, lifespan="on")


if __name__ == "__main__":
    main(int(sys.argv[1]))
