"""The images that a request brings: as plain arrays of the request's own size, and as uploads. No torch."""

from dataclasses import dataclass
from typing import Literal, Protocol

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


class PictureMark(Protocol):
    """What is done to a picture once it is made, and before anything is put back around it or it is compressed."""

    def apply(self, picture: ImageArray) -> ImageArray:
        """Returns `picture`, marked."""


@dataclass(frozen=True, slots=True)
class PipelineKind:
    """The diffusers pipeline that a request corresponds to; `controlled` means the one with ControlNets.

    Pipelines do not treat a checkpoint alike: each corrects other settings of its scheduler.
    """

    task: Task = "text-to-image"
    controlled: bool = False


PixelBox = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are outside."""


@dataclass(frozen=True, slots=True, eq=False)
class WholeImage:
    """The picture that what is made is pasted into: `image` [H, W, 3] and its `mask` [H, W] at their own size, and the
    `box` that is made.
    """

    image: ImageArray
    mask: Mask
    box: PixelBox


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A request's images. `image` is what image-to-image or inpaint starts from, `mask` says where it is repainted.

    `hints` are ready for the ControlNets that the request's `controls` name, in the same order. `whole` is there if
    `image` and `mask` are a part of it, or `image` is not what is kept outside the mask. `references` are those of the
    request's `reference`, of sizes of their own.
    """

    image: ImageArray | None = None
    mask: Mask | None = None
    hints: tuple[ImageArray, ...] = ()
    whole: WholeImage | None = None
    references: tuple[ImageArray, ...] = ()

    @property
    def task(self) -> Task:
        if self.mask is not None:
            return "inpaint"
        return "text-to-image" if self.image is None else "image-to-image"


@dataclass(frozen=True, slots=True)
class Enlargement:
    """A picture's file, to be enlarged by the upscaler of that name to `size`, width and height in pixels.

    `field` is the caller's name of the file, for errors. `mark` is made in the enlarged picture.
    """

    file: bytes
    upscaler: str
    size: tuple[int, int]
    field: str = "image"
    mark: PictureMark | None = None


@dataclass(slots=True)
class Uploads:
    """A request's images as the caller sent them: files that have not been decoded. `deployments.uploads.intake` makes
    `Inputs` of them.

    With an image and no mask file, `mask_type` may name a mask. `mask_alpha` says what a mask file's transparency
    means; None decides by its colours, where they leave no doubt. With `preprocess` every hint file is a photo
    that its ControlNet's annotator still has to turn into a hint; otherwise those are whose `controls` say so. `fit` is
    how images of other sizes become the request's.
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
    references: tuple[bytes, ...] = ()

    def drop(self) -> None:
        """Drops the files: for an owner that has decoded them, while others still hold the request."""
        self.image, self.mask, self.hints, self.references = None, None, (), ()

    @property
    def task(self) -> Task:
        if self.mask is not None or self.mask_type is not None:
            return "inpaint"
        return "text-to-image" if self.image is None else "image-to-image"
