"""Models share what is equal, stay within their budget, and are never taken from under a request."""

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.engine.models.components import size_of
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.protocol.errors import ModelLoadError, UnknownModel
from deployments.engine.protocol.spec import ModelSpec, PartSpec
from tests.deployments.engine.tiny import save_tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory, tiny_controlnets: dict[str, str]) -> list[ModelSpec]:
    """`a` and `b` have the same VAE and text encoder in two folders, and one ControlNet; `c` is a stranger."""
    root = tmp_path_factory.mktemp("models")
    nets = {"canny": tiny_controlnets["canny"]}
    a = save_tiny_checkpoint(root / "a")
    b = save_tiny_checkpoint(root / "b", in_channels=9)
    c = save_tiny_checkpoint(root / "c", seed=100)
    return [
        ModelSpec("a", str(a), controlnets=nets),
        ModelSpec("b", str(b), controlnets=nets),
        ModelSpec("c", str(c)),
    ]


def manager_of(
    specs: list[ModelSpec], budget: int | None = None, told: list[str] | None = None
) -> DiffusionModelManager:
    gone: list[str] = [] if told is None else told
    return DiffusionModelManager(specs, CPU, torch.float32, budget_bytes=budget, on_evict=gone.append)


def test_equal_parts_are_in_memory_once(specs: list[ModelSpec]) -> None:
    manager = manager_of(specs)
    a, b, c = (manager.acquire(name) for name in "abc")
    assert a.vae is b.vae
    assert a.controlnets["canny"] is b.controlnets["canny"]
    assert c.vae is not a.vae
    assert a.unet is not b.unet
    assert manager.bytes == a.bytes + size_of(b.unet) + c.bytes
    assert all(report.load_seconds > 0 and report.bytes > 0 and report.users == 1 for report in manager.report())


def test_a_model_asked_for_twice_is_loaded_once(specs: list[ModelSpec]) -> None:
    manager = manager_of(specs)
    assert manager.acquire("a") is manager.acquire("a")
    assert [report.users for report in manager.report()] == [2]


def test_the_least_recently_used_idle_model_goes_first(specs: list[ModelSpec]) -> None:
    told: list[str] = []
    whole = manager_of(specs)
    for name in "abc":
        whole.acquire(name)
    manager = manager_of(specs, whole.bytes - 1, told)
    for name in ("a", "b"):
        manager.acquire(name)
        manager.release(name)
    manager.acquire("a")
    manager.release("a")
    manager.acquire("c")
    assert told == ["b"]
    assert set(manager.loaded_models()) == {"a", "c"}


def test_a_model_in_use_never_goes_and_leaves_when_it_is_released(specs: list[ModelSpec]) -> None:
    told: list[str] = []
    manager = manager_of(specs, 1, told)
    gone = weakref.ref(manager.acquire("a").unet)
    manager.acquire("c")
    assert told == []
    assert set(manager.loaded_models()) == {"a", "c"}
    manager.release("a")
    assert told == ["a"]
    gc.collect()
    assert gone() is None
    manager.release("c")
    assert told == ["a", "c"]
    assert manager.bytes == 0
    manager.acquire("a")
    assert set(manager.loaded_models()) == {"a"}


def test_what_is_not_there_is_said(specs: list[ModelSpec], tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        manager_of(specs).acquire("d")
    with pytest.raises(ModelLoadError, match="no pinned revision"):
        manager_of([ModelSpec("gone", str(tmp_path / "gone"), native_size=64)]).acquire("gone")


def test_a_model_may_take_parts_from_elsewhere(specs: list[ModelSpec], tmp_path: Path) -> None:
    a, _, c = specs
    bare = tmp_path / "bare"
    for part in ("unet", "scheduler"):
        shutil.copytree(Path(c.source) / part, bare / part)
    borrowed = {part: str(Path(a.source) / part) for part in ("vae", "text_encoder")}
    tokenizer = PartSpec(str(Path(a.source) / "tokenizer"))
    manager = manager_of([a, ModelSpec("bare", str(bare), parts={**borrowed, "tokenizer": tokenizer})])
    whole, made_up = manager.acquire("a"), manager.acquire("bare")
    assert made_up.vae is whole.vae
    assert made_up.unet is not whole.unet
    assert made_up.spec.native_size == whole.spec.native_size


def test_a_part_that_no_model_has_is_refused(specs: list[ModelSpec]) -> None:
    with pytest.raises(ValueError, match="no part 'vea'; parts are unet, vae"):
        replace(specs[0], parts={"vea": "anywhere"})


def test_a_model_said_to_inpaint_only_must_be_able_to(specs: list[ModelSpec]) -> None:
    a, b, _ = (replace(spec, inpaints_only=True) for spec in specs)
    assert manager_of([b]).acquire("b").inpaints_only
    with pytest.raises(ModelLoadError, match="no channels for a mask"):
        manager_of([a]).acquire("a")


def test_models_of_one_scheduler_config_share_their_schedules(specs: list[ModelSpec]) -> None:
    manager = manager_of(specs)
    assert manager.acquire("a").samplers is manager.acquire("c").samplers
