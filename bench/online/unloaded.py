"""Measures what a picture takes with diffusers alone, and makes the pictures that all contenders must make.

A process of its own, so that nothing of it is left when the load begins. Writes one JSON file.

    python -m bench.online.unloaded FILE
"""

import base64
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.engine.workload import kind_of
from bench.online.messages import png_of
from bench.online.traffic import GUIDANCE, KINDS, SIDES, checked_requests, shaped_request
from deployments.engine.protocol.request import Request

FACTOR: Final = 4.0
FLOOR_S: Final = 2.0
"""A picture is wanted within four times what it takes on an idle machine: a server that queues at random at 70 % of its
capacity makes its requests wait two to three times their own time. And never sooner than in two seconds: no person
gives up earlier, and a small picture may have to wait for a large one.
"""

FEW, MANY = 2, 10


@dataclass(frozen=True)
class Unloaded:
    """What diffusers takes: for each shape of request the seconds of everything but steps, and of one step."""

    fixed: Mapping[str, float]
    step: Mapping[str, float]

    def seconds(self, request: Request) -> float:
        """Returns the seconds that diffusers takes for `request` alone."""
        shape = _shape(request)
        return self.fixed[shape] + self.step[shape] * request.evaluations

    def deadline_s(self, request: Request) -> float:
        """Returns within how many seconds the picture of `request` is wanted."""
        return max(FLOOR_S, FACTOR * self.seconds(request))


def read_unloaded(facts: Mapping[str, Any]) -> Unloaded:
    """Reads what `main` has measured."""
    return Unloaded(facts["fixed"], facts["step"])


def main() -> None:
    from bench.online.peers.pipelines import LikePipelines

    pipelines = LikePipelines()
    fixed: dict[str, float] = {}
    step: dict[str, float] = {}
    for kind in dict.fromkeys(KINDS):
        for side in dict.fromkeys(SIDES):
            for guidance in (max(GUIDANCE), min(GUIDANCE)):
                few, many = (shaped_request(kind, side, guidance, steps) for steps in (FEW, MANY))
                # The first call of a shape sets up what later ones find.
                _seconds(pipelines, few)
                short, long = _seconds(pipelines, few), _seconds(pipelines, many)
                slope = (long - short) / (many.evaluations - few.evaluations)
                step[_shape(few)], fixed[_shape(few)] = round(slope, 5), round(short - slope * few.evaluations, 5)
    pictures = {
        kind: base64.b64encode(png_of(pipelines.images([request])[0])).decode()
        for kind, request in checked_requests().items()
    }
    Path(sys.argv[1]).write_text(json.dumps({"fixed": fixed, "step": step, "pictures": pictures}))


def _seconds(pipelines: Any, request: Request) -> float:
    """Returns the seconds that one call takes, from a request to a file."""
    started = time.perf_counter()
    png_of(pipelines.images([request])[0])
    return time.perf_counter() - started


def _shape(request: Request) -> str:
    guided = "guided" if request.unet_rows > 1 else "unguided"
    return f"{kind_of(request)} {request.params.width} {guided}"


if __name__ == "__main__":
    main()
