"""Measures what the lossy settings save, and what they change: seconds, pixels, and what the pictures show.

The engine makes the same pictures with every setting: all of them at once, and one alone. Pictures are compared with
those without the setting, and judged by the demo family's detector, which knows no caption. Prints a card and a line
per setting; the last line is one JSON document.

    python -m bench.lossy
    python -m bench.lossy --cases 24
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from bench.card import card, print_card, silence_libraries
from bench.engine.contenders import Outcome, Pixels, serve_with_engine
from deployments.engine.models.backend_choice import start_openvino
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.request import Request
from deployments.registry import known_models
from deployments.training.demo.judging.evaluate import COUNTED, GUIDANCE, STEPS, held_out
from deployments.training.demo.judging.judge import agrees, judge
from deployments.training.demo.world.captions import Caption
from deployments.training.demo.world.world import Scene

SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "none": {},
    "guidance_interval 0-0.6": {"guidance_interval": [0.0, 0.6]},
    "guidance_interval 0.2-0.8": {"guidance_interval": [0.2, 0.8]},
    "deep_cache 2": {"deep_cache": 2},
    "deep_cache 3": {"deep_cache": 3},
    "deep_cache 5": {"deep_cache": 5},
    "deep_cache 3, guidance_interval 0-0.6": {"deep_cache": 3, "guidance_interval": [0.0, 0.6]},
}

FORECAST: Final = {
    "guidance_interval": "1.2 times at 60 %: the UNet is most of the time, and a picture's 40 rows become 32",
    "deep_cache": "1.4, 1.7 and 2.0 times at 2, 3 and 5: shallow calls have a quarter of the operations",
}

ALONE: Final = 3
"""Pictures that are made one by one to time one alone."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="pictures per setting")
    parser.add_argument("--backend", choices=("auto", "openvino", "torch"), default="auto")
    options = parser.parse_args()
    silence_libraries()
    device = torch.device("cpu")
    facts = card(device)
    print_card(facts)
    parts = Components(
        device, torch.float32, openvino=start_openvino(EngineConfig(backend=options.backend), device, torch.float32)
    )
    model = load_model(known_models()["demo-sd"], device, torch.float32, parts)
    cases = held_out(options.cases)
    results: dict[str, dict[str, Any]] = {}
    exact: Sequence[Pixels] = ()
    plain: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        serve(model, cases[:2], settings)  # kernels are chosen, networks converted
        outcome = serve(model, cases, settings)
        exact = exact or outcome.pictures
        alone = median(timed(model, case, settings) for case in cases[:ALONE])
        figures: dict[str, Any] = {
            "seconds": round(outcome.seconds, 2),
            "alone_s": round(alone, 3),
            "right": share_right(outcome.pictures, cases),
            "difference": round(mean_difference(outcome.pictures, exact), 2),
            "psnr_db": psnr(outcome.pictures, exact),
        }
        plain = plain or figures
        figures["faster"] = round(plain["seconds"] / figures["seconds"], 2)
        figures["faster_alone"] = round(plain["alone_s"] / figures["alone_s"], 2)
        results[name] = figures
        print(f"{name:38} {figures}", flush=True)
    settings_used = {"cases": options.cases, "steps": STEPS, "guidance": GUIDANCE, "backend": model.backend}
    print(json.dumps(facts | settings_used | {"forecast": FORECAST, "results": results}))
    return 0


def serve(model: LoadedModel, cases: Sequence[tuple[Scene, Caption]], settings: Mapping[str, Any]) -> Outcome:
    """Has a fresh engine make the picture of every case, all of them at once."""
    requests = [request_for(model, caption, seed, settings) for seed, (_, caption) in enumerate(cases)]
    return serve_with_engine([model], requests, queue_limit=2 * len(requests))


def request_for(model: LoadedModel, caption: Caption, seed: int, settings: Mapping[str, Any]) -> Request:
    """Returns the request that the model is evaluated with, and `settings`."""
    asked = {"prompt": caption.text, "seed": seed, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    params = GenerationParams.model_validate({**asked, "sampler": "dpmpp_2m", **settings})
    return Request(f"{seed}", effective_params(params, model.spec))


def timed(model: LoadedModel, case: tuple[Scene, Caption], settings: Mapping[str, Any]) -> float:
    """Returns the seconds that one picture alone takes."""
    started = time.perf_counter()
    serve(model, [case], settings)
    return time.perf_counter() - started


def share_right(pictures: Sequence[Pixels], cases: Sequence[tuple[Scene, Caption]]) -> float:
    """Returns the share of pictures that show all that counts of what their captions promise."""
    right = 0
    for picture, (scene, caption) in zip(pictures, cases, strict=True):
        answers = agrees(judge(picture.astype(np.uint8)), scene, caption.promises)
        right += all(answer for name, answer in answers.items() if name in COUNTED)
    return round(right / len(cases), 3)


def mean_difference(pictures: Sequence[Pixels], exact: Sequence[Pixels]) -> float:
    """Returns the mean difference of all colour values, in steps of 1/255."""
    return float(np.mean([np.abs(one - other).mean() for one, other in zip(pictures, exact, strict=True)]))


def psnr(pictures: Sequence[Pixels], exact: Sequence[Pixels]) -> float | None:
    """Returns the median peak signal-to-noise ratio in decibels; None where pictures are equal."""
    errors = [float(((one - other).astype(float) ** 2).mean()) for one, other in zip(pictures, exact, strict=True)]
    middle = median(errors)
    return None if middle == 0 else round(10 * math.log10(255**2 / middle), 1)


if __name__ == "__main__":
    raise SystemExit(main())
