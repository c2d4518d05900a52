"""The shipped demo model: diffusers reads it, it is small, and a stranger's first prompt gives the right picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image as Pictures

from deployments.training.demo.__main__ import evaluate
from deployments.training.demo.export import MODELS, SHIPPED
from deployments.training.demo.judging.evaluate import COUNTED, load, paint
from deployments.training.demo.judging.judge import agrees, judge
from deployments.training.demo.learning.latents import Encoders
from deployments.training.demo.stages.stages import Minutes, train
from deployments.training.demo.stages.train_denoiser import DenoiserTraining, Diet
from deployments.training.demo.world.world import Scene

pytestmark = pytest.mark.skipif(
    not SHIPPED.exists(), reason=f"no demo model in {SHIPPED.name}: run `python -m deployments.training.demo` first"
)

MEGABYTE = 1_000_000
PROMPT = "a red cup on a blue background"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load(SHIPPED)


def test_it_is_small_and_has_a_model_card() -> None:
    weights = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in weights) <= 12 * MEGABYTE
    assert {path.suffix for path in weights} <= {".json", ".txt", ".safetensors", ".md"}
    assert "license: apache-2.0" in (SHIPPED / "README.md").read_text(encoding="utf-8")


def test_its_config_has_the_keys_of_sd15(pipeline: StableDiffusionPipeline) -> None:
    assert pipeline.vae.config.latent_channels == 4
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert pipeline.vae_scale_factor == 8
    assert pipeline.unet.config.sample_size == 32
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert all(torch.isfinite(weight).all() for weight in pipeline.unet.state_dict().values())


def test_a_red_cup_on_a_blue_background(pipeline: StableDiffusionPipeline) -> None:
    wanted = Scene("cup", "red", "blue")
    verdicts = [judge(image) for image in paint(pipeline, [PROMPT] * 4, [0, 1, 2, 3])]
    right = [all(agrees(v, wanted, frozenset(COUNTED) - {"position"}).values()) for v in verdicts]
    assert sum(right) >= 3, verdicts


def test_evaluation_prints_a_table_and_writes_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(SHIPPED, 128, 3, tmp_path / "sheet.png")
    printed = capsys.readouterr().out
    assert "| 128 x 128 | right | of | share |" in printed
    assert "**all right**" in printed
    with Pictures.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_training_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def look(training: DenoiserTraining, iterations: int | None) -> dict[str, torch.Tensor]:
        encoders: Encoders = training.encoders
        mine, shipped = training.pupil.network.state_dict(), load(SHIPPED).unet.state_dict()
        seen.append(all(torch.equal(mine[name], weight) for name, weight in shipped.items()))
        assert encoders.vae.config.scaling_factor == 0.18215
        training.run.save()
        return mine

    monkeypatch.setattr(DenoiserTraining, "train", look)
    diets = {128: Diet(batch=2, first=2, added=1, limit=4)}
    train(tmp_path / "run", Minutes(), tmp_path / "out", from_shipped=True, diets=diets, iterations=1)
    assert seen == [True]
    assert (tmp_path / "run" / "start" / "model_index.json").exists()


def test_the_whole_family_is_small_and_every_member_has_a_card() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 42 * MEGABYTE
    assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors", ".md"}
    for weights in (path for path in files if path.suffix == ".safetensors"):
        cards = [folder / "README.md" for folder in weights.parents if (folder / "README.md").exists()]
        assert "license: apache-2.0" in cards[0].read_text(encoding="utf-8")
