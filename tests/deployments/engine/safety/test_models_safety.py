"""A model's safety policy in the engine: nothing of an image that is kept back gets out; the others are untouched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.models.part_location import fetch_model
from deployments.engine.protocol.errors import Filtered, ModelLoadError, SafetyCheckFailed
from deployments.engine.protocol.events import Finished, ImageDone, ImageFailed, Preview
from deployments.engine.protocol.safety import CheckerSpec, SafetySpec
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.safety.checkers import Checkers
from deployments.engine.worker.engine_worker import EngineWorker
from tests.deployments.engine.harness import difference, request_for, run
from tests.deployments.engine.safety.checkers import Bright, Broken, save_tiny_checker, spec_of
from tests.deployments.engine.steps.test_second_pass import asked

CPU = torch.device("cpu")


def checked(model: LoadedModel, safety: SafetySpec, checker: object) -> LoadedModel:
    return replace(model, checkers=Checkers(safety, {"ours": checker}))  # type: ignore[dict-item]


def brightness_of(model: LoadedModel) -> list[float]:
    tape, _ = run(model, [request_for(model, "x", num_images=4)])
    return [float(image.mean()) for image in tape.images("x")]


def test_what_is_flagged_is_kept_back_and_the_rest_is_what_it_was(tiny_model: LoadedModel) -> None:
    means = sorted(brightness_of(tiny_model))
    limit = (means[1] + means[2]) / 2
    model = checked(tiny_model, spec_of("required", "Bright"), Bright(limit))
    plain, _ = run(tiny_model, [request_for(tiny_model, "x", num_images=4)])
    tape, engine = run(model, [request_for(model, "x", num_images=4, previews=3)])
    failed = {event.index: event.error for event in tape.of("x", ImageFailed)}
    done = {event.index: event for event in tape.of("x", ImageDone)}
    assert len(failed) == len(done) == 2
    assert all(isinstance(error, Filtered) and error.category == "bright" for error in failed.values())
    for index, event in done.items():
        assert event.data == plain.of("x", ImageDone)[index].data
        assert event.safety is not None
        assert event.safety.status == "passed"
    assert not tape.of("x", Preview)
    assert len(tape.of("x", Finished)) == 1
    counters = engine.tracker.total
    assert (counters.images, counters.filtered, counters.failures) == (2, 2, 0)


def test_a_report_delivers_everything_and_tells_what_was_found(tiny_model: LoadedModel) -> None:
    model = checked(tiny_model, spec_of("report", "Bright"), Bright(0.0))
    tape, engine = run(model, [request_for(model, "x", num_images=2, previews=2)])
    assert [event.safety and event.safety.status for event in tape.of("x", ImageDone)] == ["flagged"] * 2
    assert tape.of("x", Preview)
    assert (engine.tracker.total.images, engine.tracker.total.flagged) == (2, 2)


def test_a_failed_check_fails_closed_only_where_the_policy_requires_it(tiny_model: LoadedModel) -> None:
    closed = checked(tiny_model, spec_of("required", "Broken"), Broken())
    tape, engine = run(closed, [request_for(closed, "x")])
    assert [type(event.error) for event in tape.of("x", ImageFailed)] == [SafetyCheckFailed]
    assert not tape.of("x", ImageDone)
    assert (engine.tracker.total.failures, engine.tracker.total.unchecked) == (1, 1)
    told = checked(tiny_model, spec_of("report", "Broken"), Broken())
    tape, engine = run(told, [request_for(told, "x")])
    assert [event.safety and event.safety.status for event in tape.of("x", ImageDone)] == ["unchecked"]
    assert (engine.tracker.total.images, engine.tracker.total.unchecked) == (1, 1)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_of_two_passes_only_the_last_one_is_checked(tiny_model: LoadedModel, upscaler: str) -> None:
    sizes: list[tuple[int, ...]] = []

    class Watching(Bright):
        def check(self, images):  # type: ignore[no-untyped-def]
            sizes.extend(image.shape[:2] for image in images)
            return super().check(images)

    model = checked(tiny_model, spec_of("required", "Bright"), Watching(0.0))
    tape, _ = run(model, [asked(model, "x", upscaler)])
    assert [type(event.error) for event in tape.of("x", ImageFailed)] == [Filtered]
    assert sizes == [(96, 96)]


def test_the_models_own_checker_comes_from_its_own_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(tiny_checkpoint)
    own = SafetySpec("required", (CheckerSpec("nsfw"),))
    with pytest.raises(ModelLoadError, match=r"model 'm': its safety checker 'nsfw': .* has no safety_checker/"):
        load_model(ModelSpec("m", str(folder), safety=own), CPU, torch.float32)
    save_tiny_checker(tmp_path / "elsewhere", threshold=-2.0)
    other = replace(own, checkers=(CheckerSpec("nsfw", source=str(tmp_path / "elsewhere")),))
    model = load_model(ModelSpec("m", str(folder), safety=other), CPU, torch.float32)
    plain = load_model(ModelSpec("m", str(folder)), CPU, torch.float32)
    assert model.bytes > plain.bytes
    tape, _ = run(model, [request_for(model, "x")])
    assert [type(event.error) for event in tape.of("x", ImageFailed)] == [Filtered]
    fetch_model(model.spec, torch.float32)


def test_the_checker_of_a_whole_repository_is_found_beside_its_other_parts(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for part in tiny_checkpoint.iterdir():
        (tmp_path / part.name).symlink_to(part)
    save_tiny_checker(tmp_path, threshold=2.0)
    spec = ModelSpec("m", str(tmp_path), safety=SafetySpec("required", (CheckerSpec("nsfw"),)))
    model = load_model(spec, CPU, torch.float32)
    tape, _ = run(model, [request_for(model, "x")])
    plain = load_model(ModelSpec("m", str(tmp_path)), CPU, torch.float32)
    unchecked, _ = run(plain, [request_for(plain, "x")])
    assert difference(tape.images("x")[0], unchecked.images("x")[0]) == 0


def test_a_start_refuses_what_cannot_be_loaded_and_what_cannot_check(tiny_checkpoint: Path) -> None:
    for class_name, says in (("NoSuchClass", "names no class"), ("Broken", "could not be checked")):
        spec = ModelSpec("m", str(tiny_checkpoint), safety=spec_of("required", class_name))
        with pytest.raises(Exception, match=says):
            EngineWorker.load([spec])


def test_a_start_does_not_mind_that_its_warm_up_is_flagged(tiny_checkpoint: Path) -> None:
    spec = ModelSpec("m", str(tiny_checkpoint), safety=spec_of("required", "Bright", limit=-1.0))
    worker = EngineWorker.load([spec])
    assert worker.is_alive
    worker.stop()
