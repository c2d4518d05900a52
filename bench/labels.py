"""Measures what labels cost a picture, and what becomes of the watermark when pictures are changed.

Why: labels are on every picture, so they must cost nothing that anybody notices; and a watermark is worth as much as
what it survives. Marked pictures are changed as people and platforms change them, and the mark is looked for without
the original. Pictures that were never marked are searched as well, whole and in pieces, for marks that are not there.
Pictures are drawings of the demo family's world, and those in a folder. Prints a card and a line per set of pictures;
the last line is one JSON document.

    python -m bench.labels
    python -m bench.labels --pictures path/to/photographs
"""

import argparse
import io
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageOps

from bench.card import card, print_card
from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.inputs import ImageArray, Uploads
from deployments.engine.protocol.params import GenerationParams, OutputFormat
from deployments.engine.protocol.request import Request
from deployments.engine.steps.compression import encode_image
from deployments.training.demo.world.world import draw, random_scene
from deployments.watermark.spread_spectrum import SpreadSpectrum
from serve_app.config.labels import LabelsConfig
from serve_app.labels.labeller import Labeller

SIZES: Final = (256, 512, 768)
DRAWINGS: Final = 16
ROUNDS: Final = 15
PAYLOAD: Final = b"\x44\x52\x4b\x4d"
COST_MS: Final = 10.0
"""What labels may cost at the door for a picture of 512 x 512."""

METHOD: Final = SpreadSpectrum()

Change = Callable[[ImageArray], ImageArray]


def _recoded(picture: ImageArray, output_format: OutputFormat, quality: int) -> ImageArray:
    return np.asarray(Image.open(io.BytesIO(encode_image(picture, output_format, quality))).convert("RGB"))


def _scaled(picture: ImageArray, factor: float) -> ImageArray:
    height, width, _ = picture.shape
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _cropped(picture: ImageArray, share: float) -> ImageArray:
    """Takes `share` off both sides, two thirds of it at the right and the bottom."""
    side = len(picture)
    first = round(side * share / 3) + 1
    return np.ascontiguousarray(
        picture[first : first + side - round(side * share), first:][:, : side - round(side * share)]
    )


CHANGES: Final[Mapping[str, Change]] = {
    "nothing": lambda picture: picture,
    "JPEG 75": lambda picture: _recoded(picture, "jpeg", 75),
    "JPEG 50": lambda picture: _recoded(picture, "jpeg", 50),
    "WebP 92": lambda picture: _recoded(picture, "webp", 92),
    "WebP 75": lambda picture: _recoded(picture, "webp", 75),
    "half size": lambda picture: _scaled(picture, 0.5),
    "half size, JPEG 75": lambda picture: _recoded(_scaled(picture, 0.5), "jpeg", 75),
    "10 % crop": lambda picture: _cropped(picture, 0.1),
    "10 % crop, JPEG 75": lambda picture: _recoded(_cropped(picture, 0.1), "jpeg", 75),
    "to 1080 pixels, JPEG 75": lambda picture: _recoded(_scaled(picture, 1080 / len(picture)), "jpeg", 75),
    "crop to a half": lambda picture: _cropped(picture, 0.5),
    "by 0.9, cropped": lambda picture: _cropped(_scaled(picture, 0.9), 0.1),
    "turned by 2 degrees": lambda picture: np.asarray(Image.fromarray(picture).rotate(2, Image.Resampling.BICUBIC)),
    "mirrored": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="a folder of photographs")
    options = parser.parse_args()
    facts = card(torch.device("cpu"))
    print_card(facts)
    results: dict[str, Any] = {}
    for kind, make in sets_of(options.pictures).items():
        for size in SIZES:
            results[f"{kind}, {size}"] = found = survival(make(size))
            print(f"{kind}, {size}: {found}", flush=True)
    cost = costs()
    print(f"milliseconds: {cost}", flush=True)
    print(json.dumps(facts | {"results": results, "milliseconds": cost}))
    return int(max(cost[f"at the door, {each}"] for each in ("png", "jpeg", "webp")) > COST_MS)


def sets_of(folder: Path | None) -> dict[str, Callable[[int], list[ImageArray]]]:
    """Returns what makes each set of pictures of a size."""
    sets: dict[str, Callable[[int], list[ImageArray]]] = {"drawings": drawings}
    if folder is not None:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".jpeg", ".webp"))
        sets["photographs"] = lambda size: [_load(path, size) for path in files]
    return sets


def drawings(size: int) -> list[ImageArray]:
    chance = random.Random(1)
    return [np.asarray(draw(random_scene(chance), size), dtype=np.uint8) for _ in range(DRAWINGS)]


def _load(path: Path, size: int) -> ImageArray:
    with Image.open(path) as picture:
        return np.asarray(ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def survival(pictures: Sequence[ImageArray]) -> dict[str, Any]:
    """Returns how many marks are found after each change, and how many where there are none."""
    marked = [METHOD.mark(picture, PAYLOAD) for picture in pictures]
    noise = [_psnr(*pair) for pair in zip(pictures, marked, strict=True)]
    found = {name: sum(_is_found(change(each)) for each in marked) for name, change in CHANGES.items()}
    unmarked = [_cropped(picture, share) for picture in pictures for share in (0.0, 0.05, 0.1, 0.2)]
    false = sum(METHOD.find(picture) is not None for picture in unmarked)
    quality = {"psnr_db": round(mean(noise), 1), "least_psnr_db": round(min(noise), 1)}
    return {"of": len(pictures), **found, **quality, "found in unmarked": f"{false} of {len(unmarked)}"}


def costs() -> dict[str, float]:
    """Returns the milliseconds of each part of labelling a picture of 512 x 512, medians."""
    picture = drawings(512)[0]
    grain = np.random.default_rng(1).normal(0, 6, picture.shape)
    picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
    found = {"the mark, on a replica": _timed(lambda: METHOD.mark(picture, PAYLOAD))}
    found["looking for a mark that is not there"] = _timed(lambda: METHOD.find(picture))
    labeller = Labeller(LabelsConfig())
    params = GenerationParams(prompt="a red cup", width=512, height=512, seed=1, sampler="ddim", model_name="demo-sd")
    formats: tuple[OutputFormat, ...] = ("png", "jpeg", "webp")
    for output_format in formats:
        image = ImageDone("r", 0, 1, output_format, 512, 512, encode_image(picture, output_format))
        request = Request("r", params)
        found[f"at the door, {output_format}"] = _timed(partial(labeller.label, image, request))
        changed = Request("r", params, uploads=Uploads(labeller.label(image, request).data))
        found[f"at the door, {output_format}, from a labelled picture"] = _timed(
            partial(labeller.label, image, changed)
        )
    return found


def _is_found(picture: ImageArray) -> bool:
    found = METHOD.find(picture)
    return found is not None and found.payload == PAYLOAD


def _psnr(one: ImageArray, other: ImageArray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def _timed(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return round(median(times), 2)


if __name__ == "__main__":
    raise SystemExit(main())
