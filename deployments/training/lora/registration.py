"""Puts a finished LoRA, with a card that says where it comes from, among those that are served. No torch."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deployments.engine.checkpoints.safetensors_header import read_header
from deployments.engine.protocol.errors import InvalidParameter
from deployments.loras.versions import LoraVersion, LoraVersions
from deployments.training.lora.run_folder import RunFolder

_OF_THE_CARD: Final = ("rank", "layers", "steps", "batch_size", "learning_rate", "lr_schedule", "prior_weight", "seed")


def register(run: RunFolder, versions: LoraVersions, name: str | None = None, owner: str | None = None) -> LoraVersion:
    """Adds what a training has made as the newest version of its LoRA, or of `name`, and serves it.

    If it is a version of that name already, returns that, and changes nothing. `owner` is the tenant that it is for.
    Raises InvalidParameter if the training has not ended well, and with scores, and for the name of another tenant's
    LoRA.
    """
    settings = run.read_settings()
    if settings is None or run.read_progress().state != "succeeded" or run.read_evaluation() is None:
        raise InvalidParameter("training", "has not ended well: only what was judged can be served")
    name = name or settings.name
    if owner is not None:
        versions.check_owner(name, owner)
    if (known := versions.find_file(name, run.lora)) is not None:
        return known
    header = read_header(f"the LoRA {name!r}", run.lora)
    card = "\n".join(write_card(name, header.metadata))
    return versions.add(name, run.lora, card, run.sheet if run.sheet.is_file() else None, owner)


def write_card(name: str, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yields the lines of a model card, in Markdown, from the metadata in a LoRA's header."""
    settings, training = json.loads(metadata["darkroom.settings"]), json.loads(metadata["darkroom.training"])
    scores = json.loads(metadata["darkroom.evaluation"])
    # Older LoRAs tell of the last step alone.
    weights = json.loads(metadata.get("darkroom.weights", metadata["darkroom.training"]))
    yield from (f"# {name}", "", f"A LoRA. Its trigger is `{settings['trigger']}`.", "")
    yield from _table(
        {
            "base model": f"{metadata['darkroom.base_model']}, UNet {metadata['darkroom.base_fingerprint']}",
            "pictures": f"{metadata['ss_num_train_images']}, SHA-256 {metadata['darkroom.dataset_sha256']}",
            "made": f"{metadata['modelspec.date']} by Darkroom {metadata['darkroom.version']}",
            "training": f"{training['step']} steps in {training['seconds']:g} s; {training['ended']}",
            "weights": f"those after step {weights['step']}",
            "loss": f"{_number(weights['loss'])}, of pictures kept out {_number(weights['validation_loss'])}",
        }
        | {key.replace("_", " "): str(settings[key]) for key in _OF_THE_CARD}
    )
    yield from ("", "## Scores", "")
    yield from _table(dict(_scores(scores)))
    yield from ("", "`sheet.png` shows pairs of pictures, without it and with it.", "")


def _scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "drift: change of unrelated pictures", _percent(scores["drift"])
    yield "to compare: how much another seed changes them", _percent(scores["other_seed"])
    yield "change of pictures with the trigger", _percent(scores["learnt"])
    if scores["lost_points"] is not None:
        yield "unrelated pictures right, before and after", f"{scores['right_before']:.1%}, {scores['right_after']:.1%}"
    if scores["trigger_right"] is not None:
        yield "pictures with the trigger right", f"{scores['trigger_right']:.1%}"
    left_out = scores.get("left_out", 0)
    yield (
        "prompts",
        f"{scores['pictures']}, and {left_out} left out for lack of time" if left_out else str(scores["pictures"]),
    )


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in rows.items())
