"""A worker reads LoRAs from their files when they are asked for, and applies them on the backend that it has chosen."""

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed, ImageDone
from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.worker.engine_worker import EngineWorker
from tests.deployments.engine.embedding_files import vectors_of
from tests.deployments.engine.harness import difference, pixels_of
from tests.deployments.engine.lora.rows.loras import LINEAR, TEXT, TinyLora, save_merged
from tests.deployments.engine.worker.test_engine_worker import events_of, request_for

LORA = TinyLora("coffee", 1, 4, LINEAR, TEXT)
TOKENS = {"my-cup": 3, "worn": 1}


@pytest.fixture
def file(tmp_path: Path) -> LoraFile:
    path = tmp_path / "coffee.safetensors"
    save_file(LORA.state(), path)
    return LoraFile("coffee", str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("backend", ["torch", "openvino"])
async def test_a_file_is_read_once_and_changes_its_requests_alone(
    backend: str, file: LoraFile, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    merged = save_merged(tiny_checkpoint, tmp_path / "merged", {"coffee": LORA}, LORA.use(0.8))
    plain = request_for(tiny_checkpoint, "a cup")
    changed = [replace(plain, id=f"{i}", loras=(LoraUse(file, 0.8),)) for i in range(2)]
    config = EngineConfig(device="cpu", max_rows=4, threads=1, backend=backend)
    specs = [ModelSpec("tiny", str(tiny_checkpoint)), ModelSpec("merged", str(merged))]
    worker = await asyncio.to_thread(EngineWorker.load, specs, config)
    try:
        wanted = replace(plain, id="wanted", params=plain.params.model_copy(update={"model_name": "merged"}))
        answers = await asyncio.gather(*(events_of(worker, each) for each in (plain, *changed, wanted)))
        report = worker.report().adapters
    finally:
        await asyncio.to_thread(worker.stop)
    without, *rest = (
        pixels_of(next(event.data for event in events if isinstance(event, ImageDone))) for events in answers
    )
    assert (report.loaded, report.reads, report.hits) == (1, 1, 1)
    assert report.held_bytes > 0
    *made, reference = rest
    for picture in made:
        assert difference(picture, reference) <= 1
        assert difference(picture, without) > 4


async def test_a_file_that_is_gone_refuses_its_request(file: LoraFile, tiny_checkpoint: Path) -> None:
    Path(file.source).unlink()
    config = EngineConfig(device="cpu", max_rows=4, threads=1, backend="torch")
    worker = await asyncio.to_thread(EngineWorker.load, [ModelSpec("tiny", str(tiny_checkpoint))], config)
    try:
        request = replace(request_for(tiny_checkpoint, "a cup"), loras=(LoraUse(file, 1.0),))
        (failed,) = await events_of(worker, request)
    finally:
        await asyncio.to_thread(worker.stop)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, InvalidParameter)
    assert failed.error.field == "loras"


async def test_tokens_are_counted_with_what_a_lora_brings_along_and_nothing_is_kept_for_that(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "coffee.safetensors"
    bundled = {f"bundle_emb.{token}.string_to_param.*": vectors_of(token, count) for token, count in TOKENS.items()}
    save_file(LORA.state() | bundled, path)
    file = LoraFile("coffee", str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())
    config = EngineConfig(device="cpu", max_rows=4, threads=1, backend="torch")
    worker = await asyncio.to_thread(EngineWorker.load, [ModelSpec("tiny", str(tiny_checkpoint))], config)
    try:
        asked = request_for(tiny_checkpoint, "my-cup worn", negative_prompt="worn")
        for number in range(4):
            prompt, negative = worker.count_tokens(replace(asked, loras=(LoraUse(file, 0.5 + number),)))
            assert (prompt.tokens, negative.tokens) == (4, 1)
        report = worker.report().adapters
        assert (report.loaded, report.held_bytes, report.reads) == (0, 0, 0)
        path.write_bytes(b"nothing")
        with pytest.raises(InvalidParameter, match="'coffee'"):
            worker.count_tokens(replace(asked, loras=(LoraUse(file, 1.0),)))
    finally:
        await asyncio.to_thread(worker.stop)
