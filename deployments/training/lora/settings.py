"""What a training is asked to do, and what it may take. No torch: the HTTP side and the command line read it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from deployments.engine.protocol.fields import StrictFields, check_lines, check_name
from deployments.engine.protocol.settings import check_lora_name

TRIGGER: Final = "{trigger}"
"""Stands for the trigger in templates and prompts."""

Prompt = Annotated[str, Field(max_length=1000)]
Prompts = Annotated[tuple[Prompt, ...], Field(max_length=64, strict=False)]
LayerChoice = Literal["attention", "usual", "all"]


@dataclass(frozen=True, slots=True)
class TrainingLimits:
    """The most that one training may take: `pictures`, their `bytes` and `pixels` together, `steps`, and `minutes`."""

    pictures: int = 500
    bytes: int = 2**30
    pixels: int = 500 * 2048 * 2048
    steps: int = 20_000
    minutes: float = 24 * 60.0


class TrainingSettings(StrictFields):
    """A LoRA of `model_name`, to be served as `name`. `trigger` is the word that calls what it learns.

    Pictures: `captions` says where captions come from: a text file beside each picture, the pictures' file names, or
    `template`, in which `{trigger}` stands for the trigger; left out, it is the files if there are any, else the
    template if there is one, else the names. `resolution` is the side in pixels; left out, the model's native size. The
    first `half_size_share` of the steps learn at half of it, with twice the rows for half the work.

    Learning: `rank` of the changes, in which `layers` (the attention's; kohya's usual ones; all that are linear or
    convolutions), `steps` of `batch_size` pictures, AdamW at `learning_rate`, warmed up for `warmup_steps`, then
    constant or falling as a cosine. `min_snr_gamma` weighs steps of little noise down (Hang et al. 2023); 0 weighs all
    alike. `noise_offset` adds noise of that strength to a picture's mean (Guttenberg 2023), as the model's own training
    did; `high_noise_share` is the share of the rows whose timestep is of the noisier 60 %, 0 draws all alike.

    What is to stay: in each step `prior_batch_size` rows are pictures that the model itself has made before, of
    `prior_prompts`, `prior_pictures` of them; the loss holds its answers there to what they were without the LoRA, with
    the weight `prior_weight`. Without prompts they are the captions without the trigger.

    Telling: a picture of each of `sample_prompts`, with `guidance`, every `sample_every` steps. The loss on pictures
    that are kept out of the training (`validation_share` of them) is measured every `validate_every` steps; after
    `patience` measurements without a new best the training ends early, 0 never ends it. A checkpoint is written every
    `checkpoint_every` steps; `max_minutes` after its beginning, which is before the first step, it ends with what it
    has, and is judged.

    Judging: pictures of `evaluation_prompts` (with the trigger) before and after, and of `unrelated_prompts`, which are
    to stay as they are.
    """

    name: Annotated[str, Field(max_length=100)]
    trigger: Annotated[str, Field(min_length=1, max_length=60)]
    model_name: Annotated[str, Field(min_length=1, max_length=200)]
    captions: Literal["files", "names", "template"] | None = None
    template: Prompt = ""
    half_size_share: float = Field(default=0.0, ge=0, le=1)
    resolution: int | None = Field(default=None, ge=64, le=1024, multiple_of=8)
    rank: int = Field(default=16, ge=1, le=128)
    layers: LayerChoice = "usual"
    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=4, ge=1, le=64)
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=20, ge=0)
    min_snr_gamma: float = Field(default=5.0, ge=0, le=100)
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    high_noise_share: float = Field(default=0.0, ge=0, le=1)
    prior_prompts: Prompts = ()
    prior_pictures: int = Field(default=16, ge=0, le=500)
    prior_batch_size: int = Field(default=2, ge=0, le=64)
    prior_weight: float = Field(default=1.0, ge=0, le=100)
    guidance: float = Field(default=7.5, ge=0, le=50)
    sample_prompts: Prompts = ()
    sample_every: int = Field(default=200, ge=1)
    validation_share: float = Field(default=0.1, ge=0, le=0.5)
    validate_every: int = Field(default=50, ge=1)
    patience: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=100, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    evaluation_prompts: Prompts = ()
    unrelated_prompts: Prompts = ()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_lora_name(name)

    @field_validator("trigger")
    @classmethod
    def _check_trigger(cls, trigger: str) -> str:
        if trigger != trigger.strip() or not trigger.strip():
            raise ValueError("must not begin or end with a blank")
        return check_name(trigger)

    @field_validator("prior_prompts", "sample_prompts", "evaluation_prompts", "unrelated_prompts")
    @classmethod
    def _check_prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_lines(prompt) for prompt in prompts)

    @model_validator(mode="after")
    def _check_template(self) -> TrainingSettings:
        if self.template and TRIGGER not in self.template:
            raise ValueError("template: must have {trigger}, where the trigger is to stand")
        if self.captions == "template" and not self.template:
            raise ValueError("template: captions are to come from it, and there is none")
        return self

    def fill(self, prompt: str) -> str:
        """Returns a template or prompt with the trigger in its place."""
        return prompt.replace(TRIGGER, self.trigger)
