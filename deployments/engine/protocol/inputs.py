"""The images that a request brings: as plain arrays of the request's own size, and as uploads. No torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ImageArray = NDArray[np.uint8]
"""[H, W, 3], RGB."""

Mask = NDArray[np.uint8]
"""[H, W]; pixels from 128 on are repainted, those below are kept."""

Task = Literal["text-to-image", "image-to-image", "inpaint"]

Fit = Literal["cover", "pad", "stretch"]

MaskAlpha = Literal["strokes", "holes"]
"""What a mask's transparency means: `strokes`, visible pixels are repainted; `holes`, transparent ones are."""


@dataclass(frozen=True, slots=True)
class PipelineKind:
    """The diffusers pipeline that a request corresponds to; `controlled` means the one with ControlNets.

    Pipelines do not treat a checkpoint alike: each corrects other settings of its scheduler.
    """

    task: Task = "text-to-image"
    controlled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A request's images. `image` is what image-to-image or inpaint starts from, `mask` says where it is repainted.

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
    """A request's images as the caller sent them: files that have not been decoded. `deployments.uploads.intake` makes
    `Inputs` of them.

    With an image and no mask file, `mask_type` may name a mask. `mask_alpha` says what a mask file's transparency
    means; None decides by its colours, where they leave no doubt. With `preprocess` a hint file is a photo that its
    ControlNet's annotator still has to turn into a hint. `fit` is how images of other sizes become the request's.
    `image_field` is the caller's name of the image field, for errors.
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
        """Drops the files: for an owner that has decoded them, while others still hold the request."""
        self.image, self.mask, self.hints = None, None, ()

    @property
    def task(self) -> Task:
        if self.mask is not None or self.mask_type is not None:
            return "inpaint"
        return "text-to-image" if self.image is None else "image-to-image"
