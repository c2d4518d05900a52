"""What a way to watermark pictures is, ours or another one that a configuration names; and a mark, ready to be made."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Final, Protocol

from deployments.engine.protocol.inputs import ImageArray

OUR_METHOD: Final = "deployments.watermark.spread_spectrum:SpreadSpectrum"


@dataclass(frozen=True, slots=True)
class FoundMark:
    """What a picture is marked with, and how sure that is: above `FEWEST_SCORE` for our own method."""

    payload: bytes
    score: float


class WatermarkMethod(Protocol):
    """A class without constructor arguments whose objects mark pictures, on replicas, and find marks, in the ingress.

    Several threads use one object.
    """

    def mark(self, picture: ImageArray, payload: bytes) -> ImageArray:
        """Returns a marked copy of `picture` [H, W, 3], of its size."""

    def find(self, picture: ImageArray) -> FoundMark | None:
        """Returns what `picture` is marked with, if it is marked."""


@cache
def load_method(name: str) -> WatermarkMethod:
    """Returns the method that `name`, as `package.module:Class`, stands for.

    Raises ValueError if there is no such class, or it cannot do both.
    """
    module, _, class_name = name.partition(":")
    try:
        method: WatermarkMethod = getattr(import_module(module), class_name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} names no class, as package.module:Class, that can be made") from error
    if not callable(getattr(method, "mark", None)) or not callable(getattr(method, "find", None)):
        raise ValueError(f"{name!r} does not have both `mark` and `find`")
    return method


@dataclass(frozen=True, slots=True)
class Watermark:
    """The mark that a request's pictures get: it travels with the request, and is made where they are compressed."""

    payload: bytes
    method: str = OUR_METHOD

    def apply(self, picture: ImageArray) -> ImageArray:
        """Returns `picture`, marked."""
        return load_method(self.method).mark(picture, self.payload)
