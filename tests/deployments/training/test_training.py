"""The run: every stage resumes where it stopped, and what comes out is a pipeline that diffusers reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from deployments.training import checkpoint
from deployments.training.demo.__main__ import main
from deployments.training.demo.export import SCALING, standardise
from deployments.training.demo.learning.latents import Encoders
from deployments.training.demo.learning.pupils import Denoiser
from deployments.training.demo.models import make_text_encoder, make_unet, make_vae
from deployments.training.demo.stages import stages, train_text, train_vae
from deployments.training.demo.stages.stages import FRESH, Minutes, measured_latents, train
from deployments.training.demo.stages.train_denoiser import DenoiserTraining, Diet

DIETS = {128: Diet(batch=2, first=4, added=1, limit=6)}
MINUTES = Minutes(vae=60, text=60, unet=60)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few drawings instead of hundreds, and few captions per iteration."""
    monkeypatch.setattr(train_vae, "_POOL", {128: 4})
    monkeypatch.setattr(stages, "MEASURED", {128: 4})
    monkeypatch.setattr(train_text.train_text, "__defaults__", (8, None))
    monkeypatch.setattr(train_vae.train_vae, "__defaults__", (2, None))


def begin(folder: Path, minutes: float = 60) -> DenoiserTraining:
    tokenizer = stages.prepare_tokenizer(folder)
    encoders = Encoders(make_vae(), make_text_encoder(len(tokenizer)), tokenizer)
    return DenoiserTraining(folder / "unet.pt", encoders, Denoiser(make_unet()), FRESH, minutes, DIETS)


def iteration(path: Path) -> int:
    state = checkpoint.load(path)
    assert state is not None
    return int(state["iteration"])


@pytest.mark.usefixtures("small")
def test_a_run_goes_on_at_the_right_step(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "model"
    train(run, MINUTES, out, diets=DIETS, iterations=2)
    assert [iteration(run / name) for name in ("vae.pt", "text.pt", "unet.pt")] == [2, 2, 2]
    frozen = (run / "vae_std.pt").read_bytes()

    train(run, MINUTES, out, diets=DIETS, iterations=3)
    # The UNet has learnt from the standardised VAE's latents: neither training nor standardising may happen twice.
    assert [iteration(run / name) for name in ("vae.pt", "text.pt", "unet.pt")] == [2, 5, 5]
    assert (run / "vae_std.pt").read_bytes() == frozen

    pipeline = StableDiffusionPipeline.from_pretrained(out, dtype=torch.float32, safety_checker=None)
    state = checkpoint.load(run / "unet.pt")
    assert state is not None
    for name, weight in pipeline.unet.state_dict().items():
        torch.testing.assert_close(weight, state["average"][name].half().float())
    assert json.loads((out / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert not any(str(tmp_path) in path.read_text() for path in out.rglob("*.json"))
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (out / "tokenizer").iterdir()}


@pytest.mark.usefixtures("small")
def test_a_killed_run_keeps_its_state(tmp_path: Path) -> None:
    first = begin(tmp_path)
    first.train(iterations=2)
    # A kill during a write leaves the neighbour behind, never a broken checkpoint.
    (tmp_path / "unet.partial").write_bytes(b"half")
    second = begin(tmp_path)
    assert second.run.iteration == 2
    assert second.run.budget.spent >= 0.9 * first.run.budget.spent - 1
    assert first.run.average is not None
    assert second.run.average is not None
    for name, weight in first.pupil.network.state_dict().items():
        torch.testing.assert_close(second.pupil.network.state_dict()[name], weight, rtol=0, atol=0)
        torch.testing.assert_close(second.run.average.weights[name], first.run.average.weights[name], rtol=0, atol=0)
    for before, after in zip(first.run.optimizers, second.run.optimizers, strict=True):
        torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)
    second.train(iterations=1)
    assert iteration(tmp_path / "unet.pt") == 3


def test_a_used_budget_trains_no_more(tmp_path: Path) -> None:
    begin(tmp_path).train(iterations=1)
    over = begin(tmp_path, minutes=1e-6)
    over.train()
    assert over.run.iteration == 1


def test_standardising_changes_latents_and_not_pictures() -> None:
    torch.manual_seed(0)
    vae = make_vae().eval()
    before = measured_latents(vae)
    with torch.no_grad():
        picture = vae.decode(before[..., :256].reshape(1, 4, 16, 16)).sample
    standardise(vae, before)
    after = measured_latents(vae)
    with torch.no_grad():
        same = vae.decode(after[..., :256].reshape(1, 4, 16, 16)).sample
    torch.testing.assert_close(same, picture, rtol=1e-3, atol=1e-3)
    scaled = after * SCALING
    np.testing.assert_allclose(scaled.mean(dim=(0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(dim=(0, 2, 3)), 1, atol=1e-3)


def test_minutes_keep_their_shares() -> None:
    minutes = Minutes().scaled(16)
    assert sum(vars(minutes).values()) == pytest.approx(16)
    assert minutes.vae / minutes.unet == pytest.approx(Minutes().vae / Minutes().unet)


def test_the_command_line_reads_minutes_of_each_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("deployments.training.demo.__main__.train", lambda *given: asked.append(given))
    main(["--folder", str(tmp_path), "--minutes", "160", "--text-minutes", "1", "--model", str(tmp_path / "m")])
    assert asked == [(tmp_path, Minutes(vae=14, text=1, unet=140), tmp_path / "m", False)]
    with pytest.raises(SystemExit):
        main(["--minutes", "0"])
