"""Defines what is kept of a model's measurements between two starts. No torch.

What is read from a file goes through these classes: bounds keep a damaged file from planning impossible calls.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_ENTRIES: Final = 512
MOST_SECONDS: Final = 15
"""The measurements that are kept of each kind of call, the latest ones."""

Side = Annotated[int, Field(ge=8, le=2**16)]
Rows = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Measurements = Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=MOST_SECONDS)]
# What something adds to a call can be lost in the jitter of the call itself.
Additions = Annotated[
    tuple[Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)], ...],
    Field(min_length=1, max_length=MOST_SECONDS),
]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KneeFigure(_Kept):
    """The knee at one image size, in UNet rows."""

    width: Side
    height: Side
    rows: Rows


class CallFigure(_Kept):
    """The seconds of UNet calls of `rows` padded rows."""

    width: Side
    height: Side
    rows: Rows
    seconds: Measurements


class ShapeFigure(_Kept):
    """The seconds of something that is measured by image size alone."""

    width: Side
    height: Side
    seconds: Additions


class PeakFigure(_Kept):
    """The bytes that a call of `rows` took at once."""

    kind: Literal["denoise", "control", "decode", "encode", "check"]
    width: Side
    height: Side
    rows: Rows
    bytes: int = Field(ge=0, le=2**50)


class CostFigures(_Kept):
    """What a `CostModel` knows of one model: `controls`, and `changes` by LoRAs, are seconds per row, `decodes` per
    image.
    """

    knees: tuple[KneeFigure, ...] = Field(max_length=MOST_ENTRIES)
    calls: tuple[CallFigure, ...] = Field(max_length=MOST_ENTRIES)
    controls: tuple[ShapeFigure, ...] = Field(max_length=MOST_ENTRIES)
    changes: tuple[ShapeFigure, ...] = Field((), max_length=MOST_ENTRIES)
    decodes: tuple[ShapeFigure, ...] = Field(max_length=MOST_ENTRIES)


class ModelFigures(_Kept):
    """What the starts of an engine need not measure again for one model."""

    costs: CostFigures
    peaks: tuple[PeakFigure, ...] = Field(max_length=MOST_ENTRIES)
