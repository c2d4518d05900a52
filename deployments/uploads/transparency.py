"""Interprets transparency in masks and hints. In every other image it shows white.

Colours decide in a mask: white is repainted, black is kept, and what is transparent is kept as well, as if the
strokes were drawn on black. If the visible colours say neither, as in an image with holes, nothing is guessed: the
caller decides with `mask_alpha`.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import MaskAlpha
from deployments.uploads.image_files import composite_over

# Pixels along the edge of a stroke are neither white nor black.
_WHITE: Final = 224
_BLACK: Final = 31
_EDGES: Final = 0.1

_VISIBLE: Final = 128

# Below it a hint is as black as its background.
_LIGHT: Final = 32


def mask_of(layer: Image.Image, meaning: MaskAlpha | None) -> Image.Image:
    """Returns the mask ("L", 255 where it is repainted) in an image of `to_layer`. Raises InvalidParameter."""
    alpha = _alpha(layer)
    if alpha is None:
        if meaning is not None:
            raise InvalidParameter("mask_alpha", "is for a mask that has transparency, and this one has none")
        return layer.convert("L")
    if meaning is not None:
        return Image.fromarray(alpha if meaning == "strokes" else 255 - alpha)
    if not _is_drawn_in_white(layer, alpha):
        raise InvalidParameter(
            "mask",
            "has transparency, and what is visible of it is not drawn in white, for painted anew, and black, for kept; "
            "say mask_alpha=strokes where what is visible is painted anew, or holes where what is transparent is",
        )
    return composite_over(layer, "black").convert("L")


def hint_of(layer: Image.Image) -> Image.Image:
    """Returns the hint in an image of `to_layer`: hints are light on black. Raises InvalidParameter."""
    hint = composite_over(layer, "black")
    if _alpha(layer) is not None and np.asarray(hint).max() < _LIGHT:
        raise InvalidParameter(
            "control_image",
            "has transparency and is all black over black, on which hints are drawn; send it without transparency",
        )
    return hint


def _alpha(layer: Image.Image) -> NDArray[np.uint8] | None:
    """Returns the alpha channel; None if nothing is transparent."""
    if layer.mode != "RGBA":
        return None
    alpha = np.asarray(layer.getchannel("A"), dtype=np.uint8)
    return alpha if alpha.min() < 255 else None


def _is_drawn_in_white(layer: Image.Image, alpha: NDArray[np.uint8]) -> bool:
    """Returns True if the visible pixels include white and, apart from edges, nothing besides white and black."""
    visible = np.asarray(layer)[:, :, :3][alpha >= _VISIBLE]
    if not len(visible):
        return False
    white = (visible.min(axis=1) >= _WHITE).mean()
    black = (visible.max(axis=1) <= _BLACK).mean()
    return bool(white > 0 and white + black >= 1 - _EDGES)
