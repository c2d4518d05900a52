"""The GPU bench runs unattended: it needs no GPU to be polite, and a part that breaks takes nothing with it."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from bench.checkpoints import SD15
from bench.gpu import __main__
from bench.gpu.__main__ import main, run_parts
from bench.gpu.meters import Subject
from bench.gpu.parts import MIXED, PARTS, Part


@dataclass
class Nothing:
    def tidy(self) -> None:
        pass


def no_subject() -> Subject:
    return cast(Subject, Nothing())


def last_json(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return document


def test_without_cuda_it_says_so_and_exits_with_zero(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("no CUDA device")
    assert last_json(text)["reasons"] == {"all": __main__.NO_CUDA}


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rehearse", "--parts", "gem", "--threads", "1"]) == 2
    assert "no such part: gem" in capsys.readouterr().out


def test_the_mixed_workload_is_one_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rehearse", "--workload", "mixed", "--threads", "1"]) == 0
    assert list(last_json(capsys.readouterr().out)["parts"]) == [MIXED]


@pytest.mark.parametrize("name", list(PARTS))
def test_every_part_runs_on_tiny_shapes(name: str, rehearsed: dict[str, Any]) -> None:
    assert rehearsed["reasons"] == {}
    assert rehearsed["parts"][name]


@pytest.fixture(scope="module")
def rehearsed() -> dict[str, Any]:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda network, **_: network)  # tracing takes minutes and is torch's own affair
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        assert main(["--rehearse", "--threads", "1"]) == 0
    return last_json("\n".join(lines))


@pytest.mark.slow
def test_a_bare_machine_needs_no_more_than_the_wheels_that_are_named() -> None:
    """With all else hidden that torch and transformers do not bring, the engine's part runs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu.bare_machine", "--rehearse", "--threads", "1", "--parts", "engine"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["reasons"] == {}


def test_a_result_is_there_as_soon_as_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever becomes of the parts behind it."""
    told: list[str] = []

    def second(_subject: Subject) -> dict[str, Any]:
        told.append(capsys.readouterr().out)
        return {}

    run_parts(no_subject, {"first": Part(lambda _: {"ms": 1.0}, 5), "second": Part(second, 5)}, 60)
    assert last_json(told[0]) == {"part": "first", "result": {"ms": 1.0}, "reason": None, "seconds": 0.0}


def test_a_part_that_fails_is_null_with_its_reason_and_the_others_go_on() -> None:
    def broken(_subject: Subject) -> dict[str, Any]:
        raise RuntimeError("out of memory\nand a long trace")

    parts = {"broken": Part(broken, 5), "sound": Part(lambda _: {"ms": 1.0}, 5)}
    document = run_parts(no_subject, parts, 60)
    assert document["parts"] == {"broken": None, "sound": {"ms": 1.0}}
    assert document["reasons"] == {"broken": "RuntimeError: out of memory"}


def test_a_part_that_takes_too_long_is_cut_off() -> None:
    def slow(_subject: Subject) -> dict[str, Any]:
        time.sleep(30)
        return {}

    started = time.monotonic()
    document = run_parts(no_subject, {"slow": Part(slow, 1.1)}, 60)
    assert time.monotonic() - started < 10
    assert document["reasons"]["slow"].startswith("TimeoutError")


def test_a_spent_budget_starts_nothing() -> None:
    document = run_parts(no_subject, {"late": Part(lambda _: {"ms": 1.0}, 5)}, 0.0)
    assert document["parts"] == {"late": None}
    assert "no time left" in document["reasons"]["all"]


def test_a_model_that_cannot_be_built_leaves_every_part_null() -> None:
    def broken() -> Subject:
        raise OSError("no space left")

    document = run_parts(broken, {"any": Part(lambda _: {"ms": 1.0}, 5)}, 60)
    assert document["parts"] == {"any": None}
    assert document["reasons"] == {"all": "OSError: no space left"}


def test_the_architecture_is_that_of_stable_diffusion_1_5() -> None:
    """The published parameter counts, and the floating-point operations that the shares are computed from."""
    with torch.device("meta"), torch.no_grad():
        unet, vae = UNet2DConditionModel(**SD15.unet), AutoencoderKL(**SD15.vae)
        with FlopCounterMode(display=False) as unet_count:
            unet(torch.zeros(1, 4, 64, 64), torch.zeros(1), encoder_hidden_states=torch.zeros(1, 77, 768))
        with FlopCounterMode(display=False) as vae_count:
            vae.decode(torch.zeros(1, 4, 64, 64))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert unet_count.get_total_flops() / 1e9 == pytest.approx(SD15.unet_gflop, rel=1e-3)
    assert vae_count.get_total_flops() / 1e9 == pytest.approx(SD15.vae_gflop, rel=1e-3)
