"""What the figures must reach: shares of the ceiling that was measured in the same run, and the best rival's speed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Parts = Mapping[str, Any]

FULL_ROWS: Final = 16
ONE_IMAGE_ROWS: Final = 2
GATED_ROWS: Final = (FULL_ROWS, ONE_IMAGE_ROWS)
STEPS: Final = "50 steps"


@dataclass(frozen=True, slots=True)
class Gate:
    """A figure of some `parts`, and what it must be at least."""

    name: str
    least: float
    parts: tuple[str, ...]
    figure: Callable[[Parts], float]


GATES: Final = (
    Gate("share at 16 rows", 0.50, ("unet_compiled",), lambda parts: _share(parts, FULL_ROWS)),
    Gate("share at one image", 0.35, ("unet_compiled",), lambda parts: _share(parts, ONE_IMAGE_ROWS)),
    Gate(
        "engine to diffusers compiled at batch 8",
        1.5,
        ("engine", "diffusers_compiled_8"),
        lambda parts: _speed(parts, "engine") / _speed(parts, "diffusers_compiled_8"),
    ),
    Gate(
        "16 rows with LoRAs to 16 rows without",
        0.90,
        ("loras",),
        lambda parts: float(parts["loras"][str(FULL_ROWS)]["share"]),
    ),
)


def judge(parts: Parts) -> dict[str, dict[str, Any]]:
    """Returns, of each gate whose parts were to be run, the figure, the least it must be, and whether it is.

    A figure that could not be measured is None, and its gate is not passed.
    """
    return {gate.name: _verdict(gate, parts) for gate in GATES if all(name in parts for name in gate.parts)}


def _verdict(gate: Gate, parts: Parts) -> dict[str, Any]:
    try:
        figure = gate.figure(parts)
    except (KeyError, TypeError):
        return {"figure": None, "least": gate.least, "passed": False}
    return {"figure": round(figure, 3), "least": gate.least, "passed": figure >= gate.least}


def _share(parts: Parts, rows: int) -> float:
    return float(parts["unet_compiled"][str(rows)]["share"])


def _speed(parts: Parts, part: str) -> float:
    return float(parts[part][STEPS]["images_per_second"])
