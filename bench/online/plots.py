"""Draws goodput and the times over the rate at which requests come. Takes only saved runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

from bench.online.contenders import CONTENDERS, DARKROOM

COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {
        DARKROOM: "#0b6e4f",
        "like_steps": "#3d5a80",
        "genai": "#c8553d",
        "litserve": "#e0a030",
        "serve_batch": "#8d99ae",
        "ray_sample": "#555555",
    }
)
FILE: Final = "performance-online.png"


def plot(runs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draws the picture of `runs`, one of each contender and rate."""
    matplotlib.use("agg")
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = sorted({run["rate"] for run in runs})
    left.plot([0, rates[-1]], [0, rates[-1]], ":", color="black", linewidth=0.8, label="every request")
    for contender in CONTENDERS:
        own = sorted((run for run in runs if run["contender"] == contender.name), key=lambda run: float(run["rate"]))
        style: dict[str, Any] = {
            "color": COLOURS[contender.name],
            "label": contender.label,
            "linewidth": 2.2 if contender.name == DARKROOM else 1.3,
            "markersize": 4,
        }
        left.plot([run["rate"] for run in own], [run["goodput_per_s"] for run in own], "o-", **style)
        answered = [run for run in own if run["p95_s"] is not None]
        right.plot([run["rate"] for run in answered], [run["p95_s"] for run in answered], "o-", **style)
    left.set(xlabel="requests a second", ylabel="pictures in time, a second", ylim=(0, None))
    right.set(xlabel="requests a second", ylabel="p95, seconds", ylim=(0, None), xlim=left.get_xlim())
    right.set_title("a line ends where more than one in twenty got no picture", fontsize=8)
    left.legend(frameon=False, fontsize=8)
    # Without the library's version a picture only changes with its figures.
    figure.savefig(folder / FILE, dpi=110, metadata={"Software": None})
