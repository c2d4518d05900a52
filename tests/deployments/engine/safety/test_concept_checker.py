"""Stable Diffusion's own checker: it flags what diffusers' pipelines would black out, and nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.safety.concept_checker import ConceptChecker, load_concept_checker
from tests.deployments.engine.safety.checkers import save_tiny_checker, tiny_checker, tiny_processor

CPU = torch.device("cpu")


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Blotches of colour, which the tiny tower tells apart."""
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(each).resize((96, 64), Image.Resampling.NEAREST)) for each in drawn]


def load(folder: Path) -> ConceptChecker:
    return load_concept_checker("the checker", "there", folder, torch.float32, CPU, half=False)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.4, 0.9])
def test_it_flags_exactly_what_diffusers_blacks_out(tmp_path: Path, threshold: float) -> None:
    images = pictures(24)
    network = tiny_checker(threshold=threshold)
    seen = tiny_processor()([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    _, theirs = network(clip_input=seen, images=[np.ones((2, 2, 3))] * len(images))
    ours = load(save_tiny_checker(tmp_path, threshold=threshold)).check(images)
    assert [verdict.flagged for verdict in ours] == theirs
    assert all(verdict.flagged == (verdict.score > 0) for verdict in ours)
    assert {verdict.category for verdict in ours} == {"nsfw"}


def test_a_threshold_between_two_pictures_tells_them_apart(tmp_path: Path) -> None:
    scores = [verdict.score for verdict in load(save_tiny_checker(tmp_path / "0", threshold=0.0)).check(pictures(12))]
    between = float(np.median(scores))
    checker = load(save_tiny_checker(tmp_path / "1", threshold=between))
    flagged = [verdict.flagged for verdict in checker.check(pictures(12))]
    assert flagged == [score > between for score in scores]
    assert set(flagged) == {True, False}


def test_a_verdict_does_not_depend_on_the_other_images(tmp_path: Path) -> None:
    checker = load(save_tiny_checker(tmp_path))
    together = checker.check(pictures(5))
    alone = [checker.check([image])[0] for image in pictures(5)]
    assert [verdict.flagged for verdict in together] == [verdict.flagged for verdict in alone]
    assert [verdict.score for verdict in together] == pytest.approx([verdict.score for verdict in alone], abs=0.0011)


def test_the_file_of_the_published_checkpoint_is_understood(tmp_path: Path) -> None:
    """Its processor still has the class's former name, and a crop size that is one number."""
    folder = save_tiny_checker(tmp_path)
    before = load(folder).check(pictures(3))
    path = folder / "feature_extractor" / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config.pop("image_processor_type", None)
    path.write_text(json.dumps(config | {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 32}))
    assert load(folder).check(pictures(3)) == before


@pytest.mark.parametrize("part", ["safety_checker", "feature_extractor"])
def test_a_part_that_is_not_there_is_named(tmp_path: Path, part: str) -> None:
    folder = save_tiny_checker(tmp_path)
    shutil.rmtree(folder / part)
    with pytest.raises(ModelLoadError, match=rf"the checker: 'there' has no {part}/"):
        load(folder)


def test_broken_weights_and_a_broken_processor_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_checker(tmp_path)
    weights = folder / "safety_checker" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"the checker"):
        load(folder)
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("[")
    with pytest.raises(ModelLoadError, match=r"preprocessor_config\.json"):
        load(folder)
