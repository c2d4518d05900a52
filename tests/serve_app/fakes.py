"""A backend that follows a script, a service over it, and a client without a socket."""

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Callable, Sequence

import httpx
from PIL import Image
from starlette.types import ASGIApp

from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.events import (
    Accepted,
    Event,
    Failed,
    Finished,
    ImageDone,
    ImageFailed,
    Progress,
    Timings,
)
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.report import EngineReport, ModelReport, TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec
from serve_app.backends.protocol import BackendReport

TINY = ModelSpec(
    "tiny",
    "nowhere",
    aliases=("maker/tiny",),
    native_size=64,
    max_pixels=1024 * 1024,
    default_sampler="ddim",
    controlnets={"canny": "nowhere", "depth": "nowhere"},
)
OTHER = ModelSpec("other", "nowhere", native_size=128, default_sampler="euler_a", licence="MIT")
ADAPTER = IpAdapterSpec("nowhere", "nowhere")
STYLED = ModelSpec(
    "styled", "weights", native_size=64, max_pixels=1024 * 1024, default_sampler="ddim", ip_adapters={"style": ADAPTER}
)
TWO_STYLES = ModelSpec("two-styles", "others", native_size=64, ip_adapters={"style": ADAPTER, "face": ADAPTER})
TIMINGS = Timings(queued_ms=1, encode_ms=2, denoise_ms=30, decode_ms=4, total_ms=37)
PATH = "/ads/v2/diffusion/text-to-image"
EVENTS = {"Accept": "text/event-stream"}

# What a script may hold besides events: an error to raise, a pause in seconds, or something to wait for.
Step = Event | Exception | float | threading.Event
Script = Callable[[Request], Sequence[Step]]
FOREVER = 1e6


class FakeBackend:
    """Plays `script` for every request, and remembers what it was asked and what was cancelled."""

    def __init__(self, script: Script | None = None, models: Sequence[ModelSpec] = (TINY, OTHER)) -> None:
        self.script: Script = script or success
        self.models = tuple(models)
        self.asked: list[Request] = []
        self.enlarged: list[Enlargement] = []
        self.cancelled: list[str] = []
        self.asked_to_cancel: list[tuple[str, str]] = []
        self.forgotten = 0
        self.running = 0
        self.most_running = 0
        done = ModelReport(Counters(unet_calls=4, unet_rows=10))
        self.now = BackendReport((EngineReport(True, "cpu", ("tiny", "other"), {"tiny": done}),))
        self.counts = {"replays": 1}
        self.closed = False

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        ended = False
        try:
            for step in self.script(request):
                match step:
                    case float():
                        await asyncio.sleep(step)
                    case threading.Event():
                        while not step.is_set():
                            await asyncio.sleep(0.01)
                    case Exception():
                        raise step
                    case _:
                        ended = isinstance(step, Finished | Failed)
                        yield step
        except (asyncio.CancelledError, GeneratorExit):
            if not ended:
                self.cancelled.append(request.name)
            raise
        finally:
            self.running -= 1

    async def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        """A word is a token."""
        texts = (request.params.prompt, request.params.negative_prompt)
        prompt, negative = (TokenCount(n := len(text.split()), max(1, -(-n // 75)), 75, 4) for text in texts)
        return prompt, negative

    async def make_hints(self, request: Request) -> tuple[bytes, ...]:
        return tuple(image(request, 0).data for _ in request.params.controls)

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """A picture of one colour, of the size asked for."""
        self.enlarged.append(enlargement)
        buffer = io.BytesIO()
        Image.new("RGB", enlargement.size, (0, 200, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    async def cancel(self, name: str, tenant: str) -> bool:
        self.asked_to_cancel.append((name, tenant))
        return False

    async def forget_states(self) -> None:
        self.forgotten += 1

    async def report(self) -> BackendReport:
        return self.now

    async def close(self) -> None:
        self.closed = True


def success(request: Request) -> list[Step]:
    """Every image, after two steps."""
    count = request.params.num_images
    images = [image(request, index) for index in range(count)]
    progress = [Progress(request.id, step, 2) for step in (1, 2)]
    return [Accepted(request.id, 0, steps=2), *progress, *images, Finished(request.id, TIMINGS)]


def slow(request: Request) -> list[Step]:
    """Taken, begun, and never done."""
    return [Accepted(request.id, 0, steps=50), Progress(request.id, 1, 50), FOREVER]


def refusing(error: Exception) -> Script:
    """Refuses everything with `error`."""
    return lambda request: [Failed(request.id, error)]  # type: ignore[arg-type]


def failing(error: Exception, *indices: int) -> Script:
    """Images `indices` fail with `error`, the others succeed."""

    def script(request: Request) -> list[Step]:
        return [
            ImageFailed(event.request_id, event.index, error)  # type: ignore[arg-type]
            if isinstance(event, ImageDone) and event.index in indices
            else event
            for event in success(request)
        ]

    return script


def image(request: Request, index: int) -> ImageDone:
    """A real file of one colour, in the format and size asked for."""
    params = request.params
    assert params.width
    assert params.height
    buffer = io.BytesIO()
    Image.new("RGB", (params.width, params.height), (200, index, 0)).save(buffer, params.output_format.upper())
    return ImageDone(
        request.id, index, request.seed_of(index), params.output_format, params.width, params.height, buffer.getvalue()
    )


def http(app: ASGIApp) -> httpx.AsyncClient:
    """A client of `app`, without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for `condition`. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
