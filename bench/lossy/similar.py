"""Measures what `cache: similar` saves, and how often its pictures are wrong, at each threshold.

An engine makes earlier pictures, and keeps their early states: for half of the cases the same scene in other words, and
as many scenes again as there are cases, of any kind. Then every case is made twice, from noise and from the nearest
state however far it is; the demo family's detector judges both. What a threshold would have done follows from the
distances. Prints a card and a line per threshold; the last line is one JSON document.

    python -m bench.lossy.similar
    python -m bench.lossy.similar --cases 40 --share 0.3
"""

import argparse
import io
import json
import random
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from bench.card import card, print_card, silence_libraries
from deployments.engine.engine import Engine
from deployments.engine.models.backend_choice import start_openvino
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.events import Event, Failed, ImageDone, ImageFailed
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.request import Request
from deployments.engine.similar import state_reuse
from deployments.registry import known_models
from deployments.training.demo.judging.evaluate import COUNTED, GUIDANCE, STEPS, held_out
from deployments.training.demo.judging.judge import agrees, judge
from deployments.training.demo.world.captions import Caption, describe, sample
from deployments.training.demo.world.world import Scene

THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 2.0)

FORECAST: Final = (
    "the same scene in other words is right as often as from noise; another product or colour is wrong more often the "
    "later its state was saved; so a threshold between the two saves its share of the steps of half the cases"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="pictures that are judged")
    parser.add_argument("--share", type=float, default=state_reuse.SAVED_SHARE, help="of the steps that are saved")
    options = parser.parse_args()
    state_reuse.SAVED_SHARE = options.share  # type: ignore[misc]
    silence_libraries()
    device = torch.device("cpu")
    facts = card(device)
    print_card(facts)
    parts = Components(device, torch.float32, openvino=start_openvino(EngineConfig(), device, torch.float32))
    model = load_model(known_models()["demo-sd"], device, torch.float32, parts)
    cases = held_out(options.cases)
    # Nobody continues anything yet: no two prompts are nearer than they are to themselves.
    first = Run(model, similar_distance=0.0)
    first.make(earlier(cases), cache="similar")
    prompts = [caption.text for _, caption in cases]
    plain = Run(model)
    plain.make(prompts)
    second = Run(model, similar_distance=2.0)
    second.engine.reuse.states = first.engine.reuse.states
    second.make(prompts, cache="similar")
    for run in (first, plain, second):
        run.engine.close()
    right = [is_right(image, case) for image, case in zip(plain.pictures(), cases, strict=True)]
    reused = [is_right(image, case) for image, case in zip(second.pictures(), cases, strict=True)]
    continued = [image.continued for image in second.images]
    print(f"seconds: {plain.seconds:.1f} from noise, {second.seconds:.1f} from states")
    results = {}
    for threshold in THRESHOLDS:
        near = [i for i, each in enumerate(continued) if each is not None and each.distance <= threshold]
        results[threshold] = figures = summarize(near, right, reused)
        print(f"up to {threshold:<6} {figures}", flush=True)
    print(json.dumps(facts | {"cases": len(cases), "share": options.share, "forecast": FORECAST, "results": results}))
    return 0


class Run:
    """An engine of its own, and the pictures that it makes."""

    def __init__(self, model: LoadedModel, **options: Any) -> None:
        self._model = model
        self._events: list[Event] = []
        self.seconds = 0.0
        self.engine = Engine([model], self._events.append, EngineConfig(queue_limit=4096, **options))

    def make(self, prompts: Sequence[str], **settings: Any) -> None:
        """Makes a picture of each prompt, all of them at once."""
        started = time.perf_counter()
        for seed, prompt in enumerate(prompts):
            self.engine.submit(request_for(self._model, prompt, seed, settings))
        self.engine.drain()
        self.seconds = time.perf_counter() - started

    @property
    def images(self) -> list[ImageDone]:
        """The images in the order of the prompts. Raises what failed."""
        for event in self._events:
            if isinstance(event, Failed | ImageFailed):
                raise event.error
        images = [event for event in self._events if isinstance(event, ImageDone)]
        return sorted(images, key=lambda image: int(image.request_id))

    def pictures(self) -> list[Image.Image]:
        """The same, decoded."""
        return [Image.open(io.BytesIO(image.data)) for image in self.images]


def request_for(model: LoadedModel, prompt: str, seed: int, settings: dict[str, Any]) -> Request:
    """Returns the request that the model is evaluated with, and `settings`."""
    asked = {"prompt": prompt, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "sampler": "dpmpp_2m"}
    params = effective_params(GenerationParams.model_validate({**asked, **settings}), model.spec)
    return Request(str(seed), params.model_copy(update={"seed": seed}), seed_drawn=True)


def earlier(cases: Sequence[tuple[Scene, Caption]]) -> list[str]:
    """Returns the prompts that came before: every other case in other words, and other scenes."""
    rng = random.Random("earlier")
    # A flat style is the one that goes without saying.
    silent = {"flat": {"style"}}
    again = [describe(rng, scene, set(caption.promises) - silent.get(scene.style, set())) for scene, caption in cases]
    others = [sample(rng, held_out=rng.random() < 0.5)[1].text for _ in cases]
    return [prompt for prompt in again[::2] + others if prompt]


def is_right(picture: Image.Image, case: tuple[Scene, Caption]) -> bool:
    """Returns True if the picture shows all that counts of what its caption promises."""
    scene, caption = case
    answers = agrees(judge(np.asarray(picture.convert("RGB"))), scene, caption.promises)
    return all(answer for name, answer in answers.items() if name in COUNTED)


def summarize(near: Sequence[int], right: Sequence[bool], reused: Sequence[bool]) -> dict[str, float]:
    """Returns what continuing the cases `near`, and making the others from noise, comes to."""
    as_served = [reused[i] if i in set(near) else right[i] for i in range(len(right))]
    false = [i for i in near if right[i] and not reused[i]]
    return {
        "continued": round(len(near) / len(right), 3),
        "right": round(mean(as_served), 3),
        "right_from_noise": round(mean(right), 3),
        "false_of_continued": round(len(false) / len(near), 3) if near else 0.0,
        "steps_saved": round(len(near) / len(right) * state_reuse.saved_step(STEPS) / STEPS, 3),
    }


if __name__ == "__main__":
    raise SystemExit(main())
