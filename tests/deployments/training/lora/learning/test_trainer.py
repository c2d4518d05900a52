"""A killed training ends where it would have; it keeps its best, stops when asked, and leaves the base as it was."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open

from deployments.engine.lora.reader import read_adapter
from deployments.engine.protocol.errors import Cancelled, InvalidParameter, NumericalFailure
from deployments.engine.protocol.files.loras import LoraFile
from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.base_networks import BaseNetworks, load_base
from deployments.training.lora.clock import TrainingClock
from deployments.training.lora.dataset import Example, read_examples
from deployments.training.lora.learning import trainer as training
from deployments.training.lora.learning.adapter_layers import add_lora, lora_weights, without_lora
from deployments.training.lora.learning.objective import TrainingNoise
from deployments.training.lora.learning.processes import join_processes
from deployments.training.lora.lessons import prepare_lessons
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from deployments.training.lora.training_run import train_lora
from tests.deployments.engine.tiny import PredictionType, save_tiny_checkpoint
from tests.deployments.training.lora.pictures import write_pictures

CPU = torch.device("cpu")
LIMITS = TrainingLimits()
ASKED = {
    "name": "cup",
    "trigger": "cup",
    "model_name": "tiny",
    "rank": 2,
    "steps": 12,
    "half_size_share": 0.25,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "prior_pictures": 2,
    "prior_batch_size": 1,
    "checkpoint_every": 4,
    "validate_every": 4,
    "validation_share": 0.34,
    "sample_prompts": ("a {trigger}",),
    "sample_every": 6,
    "evaluation_prompts": ("a red {trigger}",),
    "unrelated_prompts": ("a cat",),
}


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(ASKED | changes)


def examples(source: Path, asked: TrainingSettings) -> list[Example]:
    return read_examples(source, asked, LIMITS)


def make_trainer(
    spec: ModelSpec, source: Path, folder: Path, asked: TrainingSettings, minutes: float = 10.0
) -> tuple[training.LoraTrainer, BaseNetworks, RunFolder]:
    run, base = RunFolder(folder), load_base(spec, CPU, torch.float32)
    run.begin(asked)
    clock = TrainingClock(run, minutes)
    lessons = prepare_lessons(base, examples(source, asked), asked, (64, 64), run, clock.check_preparation)
    weights = add_lora(base.unet, asked.rank, asked.layers, asked.seed)
    noising = TrainingNoise(base.signal, base.predicts_v, asked.min_snr_gamma)
    made = training.LoraTrainer(
        base.unet, weights, lessons, noising, asked, join_processes("cpu"), run, clock, lambda step: None
    )
    return made, base, run


def trained(spec: ModelSpec, source: Path, folder: Path, asked: TrainingSettings) -> dict[str, torch.Tensor]:
    trainer, base, _ = make_trainer(spec, source, folder, asked)
    trainer.train()
    return lora_weights(base.unet)


def assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_killed_training_goes_on_to_the_same_weights(
    spec: ModelSpec, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(spec, source, tmp_path / "whole", settings())
    trainer, _, run = make_trainer(spec, source, tmp_path / "killed", settings())
    once = training.LoraTrainer._do_step

    def die(self: training.LoraTrainer) -> None:
        if self._course.step == 6:
            raise Killed
        once(self)

    monkeypatch.setattr(training.LoraTrainer, "_do_step", die)
    with pytest.raises(Killed):
        trainer.train()
    monkeypatch.undo()
    assert run.read_losses()[-1].step == 6
    assert_equal(trained(spec, source, tmp_path / "killed", settings()), whole)
    curve = [point.step for point in run.read_losses()]
    assert curve == list(range(1, 13))
    assert run.read_losses() == RunFolder(tmp_path / "whole").read_losses()


def test_other_seeds_give_other_weights(spec: ModelSpec, source: Path, tmp_path: Path) -> None:
    one = trained(spec, source, tmp_path / "one", settings(steps=2))
    other = trained(spec, source, tmp_path / "other", settings(steps=2, seed=1))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_without_the_lora_the_base_answers_as_before(spec: ModelSpec, source: Path, tmp_path: Path) -> None:
    fresh = load_base(spec, CPU, torch.float32)
    trainer, base, _ = make_trainer(spec, source, tmp_path, settings(steps=3))
    trainer.train()
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32))
    with torch.no_grad():
        before = fresh.unet(*inputs).sample
        assert not torch.equal(base.unet(*inputs).sample, before)
        with without_lora(base.unet):
            assert torch.equal(base.unet(*inputs).sample, before)


def test_it_ends_early_with_its_best_weights(
    spec: ModelSpec, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5, 0.0])
    kept: list[dict[str, torch.Tensor]] = []

    def find_loss(self: training.LoraTrainer) -> float:
        kept.append(lora_weights(self._unet))
        return next(losses)

    monkeypatch.setattr(training.LoraTrainer, "_find_validation_loss", find_loss)
    asked = settings(steps=100, validate_every=2, patience=2)
    trainer, base, run = make_trainer(spec, source, tmp_path, asked)
    end = trainer.train()
    assert (end.why, end.step, end.validation_loss) == ("nothing has improved since step 4", 4, 1.0)
    assert_equal(lora_weights(base.unet), kept[1])
    curve = run.read_losses()
    assert curve[-1].step == 8
    # It was killed before it was judged: there is nothing to do again, and nothing more.
    again, base, _ = make_trainer(spec, source, tmp_path, asked)
    assert again.train() == end
    assert run.read_losses() == curve
    assert_equal(lora_weights(base.unet), kept[1])


def test_the_loss_on_pictures_kept_out_is_measured_with_the_same_noise(
    spec: ModelSpec, source: Path, tmp_path: Path
) -> None:
    trainer, _, _ = make_trainer(spec, source, tmp_path, settings())
    assert trainer._measure() == trainer._measure() is not None


def test_no_forward_has_more_rows_than_a_batch(
    spec: ModelSpec, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, base, _ = make_trainer(spec, source, tmp_path, settings(validation_share=0.5))
    assert len(trainer._lessons.kept_out) == 3
    rows: list[int] = []
    base.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    trainer._measure()
    assert rows == [2, 1] * 4


def test_cancelling_ends_it_with_a_checkpoint(spec: ModelSpec, source: Path, tmp_path: Path) -> None:
    trainer, base, run = make_trainer(spec, source, tmp_path, settings())
    base.unet.register_forward_pre_hook(lambda *_: run.ask_to_cancel())
    with pytest.raises(Cancelled):
        trainer.train()
    run.forget_cancel()
    assert make_trainer(spec, source, tmp_path, settings())[0]._course.step == 1


@pytest.mark.parametrize("where", ["_descend", "_find_validation_loss"])
def test_a_loss_that_is_no_number_is_written_nowhere(
    where: str, spec: ModelSpec, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UNet's answers break after the checkpoint at step 4: in a step, or where pictures kept out are measured."""
    trainer, base, run = make_trainer(spec, source, tmp_path, settings(validate_every=6))
    once = getattr(training.LoraTrainer, where)

    def break_and_do(self: training.LoraTrainer) -> object:
        if self._course.step >= 5:
            base.unet.conv_out.bias.data.fill_(math.nan)
        return once(self)

    monkeypatch.setattr(training.LoraTrainer, where, break_and_do)
    with pytest.raises(NumericalFailure, match=r"after [56] steps"):
        trainer.train()
    losses = run.read_losses()
    assert [point.step for point in losses] == [1, 2, 3, 4, 5]
    assert "NaN" not in "".join(path.read_text() for path in run.path.glob("*.json*"))
    monkeypatch.undo()
    healed, _, _ = make_trainer(spec, source, tmp_path, settings(validate_every=6))
    assert healed._course.step == 4
    assert healed.train().step == 12


def test_a_training_goes_on_with_its_own_model_and_pictures_only(spec: ModelSpec, source: Path, tmp_path: Path) -> None:
    asked = settings(steps=2)
    trained(spec, source, tmp_path / "run", asked)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    model = save_tiny_checkpoint(tmp_path / "model")
    other = AutoencoderKL.from_pretrained(model / "vae")
    other.decoder.conv_out.bias.data.add_(0.1)
    other.save_pretrained(model / "vae")
    for changed, pictures, field in (
        (ModelSpec("tiny", str(model)), source, "model_name"),
        (spec, write_pictures(tmp_path / "pictures", 5), "pictures"),
    ):
        with pytest.raises(InvalidParameter) as refused:
            train_lora(RunFolder(tmp_path / "run"), examples(pictures, asked), asked, changed, LIMITS, device="cpu")
        assert refused.value.field == field
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_training_ends_in_a_file_that_engines_read(prediction: PredictionType, source: Path, tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model", prediction_type=prediction)
    run, asked = RunFolder(tmp_path / "run"), settings(layers="all")
    found = train_lora(run, examples(source, asked), asked, ModelSpec("tiny", str(model)), LIMITS, device="cpu")
    assert run.read_progress().state == "succeeded"
    assert found.drift is not None
    assert found.drift > 0
    assert run.sheet.is_file()
    assert [path.name for path in run.list_samples()] == ["000006-00.png", "000012-00.png"]
    adapter = read_adapter(LoraFile("cup", str(run.lora)), run.lora)
    assert adapter.text_width == 32
    assert any("conv1" in layer for layer in adapter.layers["unet"])
    with safe_open(run.lora, "pt") as file:
        header = file.metadata()
    assert json.loads(header["darkroom.evaluation"])["drift"] == found.drift
    assert json.loads(header["darkroom.settings"])["steps"] == 12
    assert len(header["darkroom.base_fingerprint"]) == len(header["darkroom.dataset_sha256"]) == 64


def test_what_cannot_be_is_refused_by_its_field(spec: ModelSpec, source: Path, tmp_path: Path) -> None:
    def field_of(asked: TrainingSettings, limits: TrainingLimits = LIMITS) -> str:
        with pytest.raises(InvalidParameter) as refused:
            train_lora(RunFolder(tmp_path), examples(source, asked), asked, spec, limits, device="cpu")
        return refused.value.field

    assert field_of(settings(), TrainingLimits(steps=5)) == "steps"
    assert field_of(settings(max_minutes=9.0), TrainingLimits(minutes=5)) == "max_minutes"
    assert field_of(settings(patience=1, validation_share=0.0)) == "patience"
    assert RunFolder(tmp_path).read_progress().state == "failed"
    assert field_of(settings(patience=1, validation_share=0.0, rank=4)) == "rank"


def test_one_process_at_a_time_trains_in_a_folder(spec: ModelSpec, source: Path, tmp_path: Path) -> None:
    run, asked = RunFolder(tmp_path), settings(steps=1)
    run.begin(asked)
    with run.recorded():
        with pytest.raises(InvalidParameter, match="another process"):
            train_lora(RunFolder(tmp_path), examples(source, asked), asked, spec, LIMITS, device="cpu")
        assert run.read_progress().state == "running"
