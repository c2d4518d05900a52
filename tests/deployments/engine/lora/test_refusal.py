"""A LoRA that would have no effect is refused, since its picture would be another one."""

from dataclasses import replace

from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed
from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from tests.deployments.engine.harness import request_for, run


def test_an_engine_that_applies_no_loras_refuses_them(tiny_model: LoadedModel) -> None:
    use = LoraUse(LoraFile("coffee", "coffee.safetensors", digest="0" * 64), 1.0)
    tape, _ = run(tiny_model, [replace(request_for(tiny_model, "x"), loras=(use,))])
    (refused,) = tape.of("x", Failed)
    assert isinstance(refused.error, InvalidParameter)
    assert refused.error.field == "loras"
