"""Memory that large uploads and answers took is returned to the machine when they are done."""

import asyncio
import gc
from pathlib import Path
from typing import Final

import pytest

from deployments.process_memory.freed_memory import FreedMemory, trim_memory
from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.api.parsing.test_hostile_forms import END, FORM, field, file, picture
from tests.serve_app.fakes import FakeBackend, http, until

DOOR: Final = "/ads/v2/diffusion/image-to-image"
MIB: Final = 1024 * 1024
PAGE: Final = 4096

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@linux
async def test_memory_is_as_before_after_large_uploads(service: DiffusionService, backend: FakeBackend) -> None:
    body = field(b"prompt") + file(b"init_image", picture() + bytes(24 * MIB)) + END
    async with http(create_api(service)) as client:

        async def ask() -> None:
            assert (await client.post(DOOR, content=body, headers=FORM)).status_code == 200

        await ask()
        backend.asked.clear()
        gc.collect()
        trim_memory()
        before = resident()
        await asyncio.gather(*(ask() for _ in range(8)))
        backend.asked.clear()
        gc.collect()
        await until(lambda: resident() < before + 32 * MIB, 10)


@linux
async def test_small_pieces_of_a_large_thing_are_given_back_as_well() -> None:
    trim_memory()
    before = resident()
    pieces = [bytes(1000) for _ in range(200_000)]
    kept = bytes(1000)
    assert resident() > before + 150 * MIB
    del pieces
    freed = FreedMemory(0.01)
    freed.schedule()
    freed.schedule()
    await until(lambda: resident() < before + 32 * MIB, 10)
    assert kept == bytes(1000)
