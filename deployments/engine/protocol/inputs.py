"""The pictures that a request brings along, as plain arrays of the request's own size. Without torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ImageArray = NDArray[np.uint8]
"""[H, W, 3], RGB."""

Mask = NDArray[np.uint8]
"""[H, W]; from 128 on a pixel is painted anew, below it is kept."""

Task = Literal["text-to-image", "image-to-image", "inpaint"]

Fit = Literal["cover", "pad", "stretch"]

MaskAlpha = Literal["strokes", "holes"]
"""What a mask's transparency says: what is visible is painted anew, or what is transparent."""


@dataclass(frozen=True, slots=True)
class PipelineKind:
    """Which of diffusers' pipelines stands for a request; `controlled` means the one with ControlNets.

    They do not treat a checkpoint alike: each corrects other settings of its scheduler.
    """

    task: Task = "text-to-image"
    controlled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """`image` is what an image-to-image or inpaint request starts from, `mask` says where it is painted anew.

    `hints` are ready for the ControlNets that the request's `controls` name, in the same order.
    """

    image: ImageArray | None = None
    mask: Mask | None = None
    hints: tuple[ImageArray, ...] = ()

    @property
    def task(self) -> Task:
        if self.mask is not None:
            return "inpaint"
        return "text-to-image" if self.image is None else "image-to-image"


@dataclass(slots=True)
class Uploads:
    """The same as the caller sent it: files, not looked into yet. `deployments.uploads.intake` makes `Inputs` of it.

    Where there is an image and no mask file, `mask_type` may name a mask. `mask_alpha` says what a mask file's
    transparency means; None is to go by its colours, where they leave no doubt. With `preprocess` a hint file is a
    photo that its ControlNet's annotator still has to turn into a hint. `fit` is how pictures of other sizes become the
    request's. `image_field` is what the caller calls the image, for errors.
    """

    image: bytes | None = None
    mask: bytes | None = None
    mask_type: str | None = None
    mask_alpha: MaskAlpha | None = None
    hints: tuple[bytes, ...] = ()
    preprocess: bool = False
    fit: Fit = "cover"
    image_field: str = "image"

    def drop(self) -> None:
        """Lets go of the files: for an owner that has decoded them, while others still hold on to the request."""
        self.image, self.mask, self.hints = None, None, ()

    @property
    def task(self) -> Task:
        if self.mask is not None or self.mask_type is not None:
            return "inpaint"
        return "text-to-image" if self.image is None else "image-to-image"
