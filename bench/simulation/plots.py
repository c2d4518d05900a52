"""Draws the plots, one per question. Takes only reports, so they can be drawn again from saved ones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.simulation.devices import GPUS
from serve_app.config.deployments import AutoscalingConfig

Report = Mapping[str, Any]
Way = tuple[str, str]

LABELS: Final[Mapping[Way, str]] = MappingProxyType(
    {
        ("steps", "ours"): "Darkroom",
        ("whole", "ours"): "whole requests batched, our policy",
        ("steps", "ray"): "Ray's policy, its defaults",
        ("steps", "ray, tuned"): "Ray's policy, our delays",
    }
)
COLOURS: Final[Mapping[Way, str]] = MappingProxyType(
    {
        ("steps", "ours"): "#0b6e4f",
        ("whole", "ours"): "#c8553d",
        ("steps", "ray"): "#8d99ae",
        ("steps", "ray, tuned"): "#3d5a80",
    }
)
OURS: Final[Way] = ("steps", "ours")
DAY_OF: Final = "A100"
FILL: Final = "target_fill"
SETTINGS: Final = (FILL, "band", "upscale_delay_s", "downscale_delay_s", "look_back_period_s", "catch_up_s")


def plot(reports: Mapping[str, Any], folder: Path) -> None:
    """Draws every plot for which there are reports."""
    matplotlib.use("agg")
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    for name, (study, draw) in _DRAWN.items():
        if study in reports:
            figure = draw(reports[study])
            # Without the date and the library's version a picture only changes with its figures.
            figure.savefig(folder / f"scaling-{name}.png", dpi=110, metadata={"Software": None})


def _validation(report: Report) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for side, colour in (("real", "black"), ("simulated", COLOURS[OURS])):
        samples = np.array(report["replicas"][side])
        left.step(samples[:, 0], samples[:, 1], where="post", color=colour, label=side)
        latencies = report["latencies"][side]
        right.plot(latencies, np.linspace(0, 1, len(latencies)), color=colour, label=side)
    left.set(xlabel="seconds", ylabel="replicas", yticks=(0, 1, 2), title="replicas that run")
    right.set(xlabel="latency, s", ylabel="share of requests", title="latency", xlim=(0, None))
    right.legend(frameon=False)
    return figure


def _classes(reports: Sequence[Report]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    _bars(axes[0], reports, lambda one: 100 * one["attainment"], "served in time, %")
    _bars(axes[1], reports, lambda one: one["p95"], "p95 latency, s")
    _bars(axes[2], reports, lambda one: one["gpus"], "GPUs paid for, mean")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _day(reports: Sequence[Report]) -> Figure:
    """On the class of GPU in the middle."""
    return _over_time([one for one in reports if one["case"]["gpu"] == DAY_OF and one["case"]["engine"] == "steps"])


def _over_time(reports: Sequence[Report]) -> Figure:
    """Replicas that run against the work that there is."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    for one in reports:
        samples = np.array(one["samples"])
        way = _way(one)
        (line,) = axes.step(samples[:, 0] / 3600, samples[:, 1], where="post", color=COLOURS[way], label=LABELS[way])
        line.set_zorder(3 if way == OURS else 2)
    load = np.array(reports[0]["load"])
    axes.fill_between(load[:, 0] / 3600, load[:, 1], color="#dddddd", label="work, in GPUs that are always full")
    axes.set(xlabel="hours", ylabel="GPUs", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _bars(axes: Axes, reports: Sequence[Report], value: Callable[[Report], float], title: str) -> None:
    for place, (way, label) in enumerate(LABELS.items()):
        by_gpu = {one["case"]["gpu"]: value(one) for one in reports if _way(one) == way}
        found = [by_gpu.get(gpu, np.nan) for gpu in GPUS]
        axes.bar(np.arange(len(GPUS)) + 0.2 * (place - 1.5), found, width=0.2, color=COLOURS[way], label=label)
    axes.set(xticks=range(len(GPUS)), title=title)
    axes.set_xticklabels(GPUS)


def _constants(reports: Sequence[Report]) -> Figure:
    """Cost against service, a line a setting; all meet at the defaults. Of the first as much as the others reach."""
    default = next(one for one in reports if not one["case"]["settings"])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    lowest = 100.0
    for name in SETTINGS:
        turned = [(one["case"]["settings"][name], one) for one in reports if name in one["case"]["settings"]]
        line = sorted([*turned, (_default(name), default)], key=lambda pair: pair[0])
        points = [(one["cost_per_1000"], 100 * one["attainment"]) for _, one in line]
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name, zorder=2 + (name == FILL))
        if name == FILL:
            _annotate(axes, [(*point, value) for point, (value, _) in zip(points, line, strict=True)], (-4, 7))
        else:
            lowest = min(lowest, *(in_time for _, in_time in points))
    axes.plot(default["cost_per_1000"], 100 * default["attainment"], "o", color="black", label="defaults", zorder=4)
    axes.set(xlabel="$ per 1,000 images", ylabel="served in time, %", ylim=(lowest - 2, 100))
    axes.legend(frameon=False, loc="lower right")
    return figure


def _annotate(axes: Axes, points: Sequence[tuple[float, float, float]], offset: tuple[int, int]) -> None:
    """Writes the third of each beside it."""
    for x, y, value in points:
        text = axes.annotate(f"{value:g}", (x, y), textcoords="offset points", xytext=offset, fontsize=7)
        text.set_clip_on(True)


def _fills(reports: Sequence[Report]) -> Figure:
    """Cost against service as fleets are filled more, a line a way to batch."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for way, label in LABELS.items():
        points = [
            (one["cost_per_1000"], 100 * one["attainment"], one["case"]["settings"]["target_fill"])
            for one in reports
            if _way(one) == way
        ]
        if points:
            cost, in_time, _ = zip(*points, strict=True)
            axes.plot(cost, in_time, "o-", color=COLOURS[way], label=label)
            _annotate(axes, points, (-6, 7) if way == OURS else (5, -9))
    axes.set(xlabel="$ per 1,000 images", ylabel="served in time, %")
    axes.legend(frameon=False, loc="lower right")
    return figure


def _default(name: str) -> float:
    return float(AutoscalingConfig.model_fields[name].default)


def _sizes(reports: Sequence[Report]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for way, label in LABELS.items():
        by_size: dict[float, list[Report]] = {}
        for one in reports:
            if _way(one) == way:
                by_size.setdefault(one["case"]["gpus"], []).append(one)
        if by_size:
            gpus = sorted(by_size)
            for axes, value in ((left, "attainment"), (right, "cost_per_1000")):
                means = [_mean(by_size[size], value) for size in gpus]
                scaled = [100 * mean for mean in means] if value == "attainment" else means
                axes.plot(gpus, scaled, "o-", color=COLOURS[way], label=label)
    for axes, title in ((left, "served in time, %"), (right, "$ per 1,000 images")):
        axes.set(xscale="log", xlabel="load, in GPUs' worth of work", title=title)
    right.set_ylim(bottom=0)
    left.legend(frameon=False)
    return figure


def _mean(reports: Sequence[Report], name: str) -> float:
    """Over all requests, or images, of several runs."""
    weights = [one["requests" if name == "attainment" else "images"] for one in reports]
    return float(np.average([one[name] for one in reports], weights=weights))


def _way(report: Report) -> Way:
    return report["case"]["engine"], report["case"]["policy"]


_DRAWN: Final[Mapping[str, tuple[str, Callable[[Any], Figure]]]] = MappingProxyType(
    {
        "validation": ("validation", _validation),
        "steady": ("steady", _over_time),
        "classes": ("classes", _classes),
        "day": ("classes", _day),
        "fills": ("fills", _fills),
        "constants": ("constants", _constants),
        "sizes": ("sizes", _sizes),
    }
)
"""Pictures, each with the study that it shows."""
