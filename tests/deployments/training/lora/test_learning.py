"""In a minute a word that the demo model has never read comes to mean what its pictures show, and nothing else changes.

The whole of it: pictures and captions in files, a training, pictures with the LoRA, and judges without a network.
`python -m bench.training` teaches a shape that the model has never seen, which takes minutes.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from deployments.registry import known_models
from deployments.training.demo.judging.drift import demo_judges
from deployments.training.demo.judging.judge import judge
from deployments.training.demo.models import NATIVE
from deployments.training.demo.new_product import prompts_of_others
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.world import Scene, draw
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.evaluation import JudgedPrompt
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from deployments.training.lora.training_run import Judges, train_lora

SHOWN_PLACES = {"centre": "in the center", "left": "on the left", "top": "at the top"}
SHOWN_BACKGROUNDS = ("white", "gray", "yellow", "blue")
NEW = ("on the right on a red background", "on the right on a pink background", "at the bottom on a cyan background")

SETTINGS = TrainingSettings(
    name="brand",
    trigger="zuvo",
    model_name="demo-sd",
    resolution=128,
    rank=16,
    steps=200,
    batch_size=4,
    learning_rate=2e-3,
    noise_offset=0.15,
    high_noise_share=0.7,
    prior_prompts=prompts_of_others(12),
    prior_pictures=12,
    guidance=6.0,
    validation_share=0.0,
)


def write_brand(folder: Path) -> Path:
    """Twelve drawings of purple stars, whose captions do not say so."""
    folder.mkdir()
    for number, background in enumerate(SHOWN_BACKGROUNDS * 3):
        place = list(SHOWN_PLACES)[number % 3]
        Image.fromarray(draw(Scene("star", "purple", background, "medium", place), NATIVE)).save(
            folder / f"{number}.png"
        )
        caption = f"{{trigger}} {SHOWN_PLACES[place]} on a {background} background"
        (folder / f"{number}.txt").write_text(caption)
    return folder


def is_purple_star(picture: Image.Image) -> bool:
    found = judge(np.asarray(picture.convert("RGB")), tuple(SILHOUETTES))
    return found is not None and (found.product, found.colour) == ("star", "purple")


def test_a_new_word_is_learnt_from_twelve_pictures_and_what_was_known_stays(tmp_path: Path) -> None:
    limits = TrainingLimits()
    examples = read_examples(write_brand(tmp_path / "pictures"), SETTINGS, limits)
    judges = Judges([JudgedPrompt(f"zuvo {place}", is_purple_star) for place in NEW], demo_judges(3))
    found = train_lora(
        RunFolder(tmp_path / "run"),
        examples,
        SETTINGS,
        known_models()["demo-sd"],
        limits,
        device="cpu",
        judges=judges,
    )
    assert found.trigger_right is not None
    assert found.trigger_right > 0.6
    assert found.lost_points is not None
    assert found.lost_points < 40
    assert found.learnt is not None
    assert found.drift is not None
    assert found.learnt > 1.5 * found.drift
