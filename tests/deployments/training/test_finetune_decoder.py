"""Fine-tuning of the VAE's decoder: latents stay what they were, and a run goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from deployments.training import checkpoint
from deployments.training.demo.__main__ import main
from deployments.training.demo.export import SHIPPED
from deployments.training.demo.stages import finetune_decoder as module
from deployments.training.demo.stages.finetune_decoder import finetune_decoder, load_vae, reconstruction_psnr


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped VAE; a few small drawings instead of hundreds."""
    monkeypatch.setattr(module, "_POOL", 2)
    monkeypatch.setattr(module, "_BATCH_PIXELS", 2 * 128**2)
    monkeypatch.setattr(module, "_SIZES", {128: 1.0})
    return Path(shutil.copytree(SHIPPED / "vae", tmp_path / "model" / "vae")).parent


def test_only_the_decoder_changes(tmp_path: Path, model: Path) -> None:
    finetune_decoder(tmp_path, 60, model, iterations=2)
    before, after = load_vae(SHIPPED).state_dict(), load_vae(model).state_dict()
    changed = {name.split(".")[0] for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    sizes = [(folder / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size for folder in (SHIPPED, model)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.001)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, model: Path) -> None:
    for iterations in (2, 1):
        finetune_decoder(tmp_path, 60, model, iterations=iterations)
    state = checkpoint.load(tmp_path / "decoder.pt")
    assert state is not None
    assert state["iteration"] == 3


def test_what_is_shipped_has_crisp_edges() -> None:
    # The first decoder, which was trained with its encoder, reached 27.3 dB at 256 pixels and 30.1 dB at 512.
    vae = load_vae(SHIPPED)
    for size, least in ((256, 31.0), (512, 34.0)):
        ratios = reconstruction_psnr(vae, size, 3)
        assert sum(ratios) / len(ratios) > least


def test_its_figures_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--member", "vae-decoder", "--evaluate", "--count", "1"])
    assert [line.split()[0] for line in capsys.readouterr().out.strip().splitlines()] == ["size", "128", "256", "512"]
