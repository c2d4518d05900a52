"""Checks what a training has a model read, which is what it learns to answer to, against the server's blocklist."""

from collections.abc import Iterable, Iterator
from itertools import chain

from deployments.training.lora.dataset import FIELD
from deployments.training.lora.settings import TrainingSettings
from serve_app.generation.blocklist import Blocklist


def check_prompts(blocklist: Blocklist, settings: TrainingSettings, captions: Iterable[str] = ()) -> None:
    """Raises BlockedPrompt, which names the field, if a prompt, the trigger or one of the pictures' `captions` breaks a
    rule, as it was written or with the trigger in its place.
    """
    blocklist.check_texts(chain(_texts_of(settings), ((FIELD, caption) for caption in captions)))


def _texts_of(settings: TrainingSettings) -> Iterator[tuple[str, str]]:
    yield "trigger", settings.trigger
    for field, prompts in (
        ("template", (settings.template,)),
        ("prior_prompts", settings.prior_prompts),
        ("sample_prompts", settings.sample_prompts),
        ("evaluation_prompts", settings.evaluation_prompts),
        ("unrelated_prompts", settings.unrelated_prompts),
    ):
        for prompt in prompts:
            yield from ((field, text) for text in dict.fromkeys((prompt, settings.fill(prompt))))
