"""Reads the options that say what becomes of a form's pictures: how they are fitted, and where they are repainted."""

from typing import Final, cast, get_args

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Fit, MaskAlpha
from serve_app.api.parsing.forms import Form

FIT: Final = "fit"
MASK_TYPE: Final = "mask_type"
MASK_ALPHA: Final = "mask_alpha"


def read_mask(form: Form) -> tuple[bytes | None, str | None]:
    """Returns the mask's file or type. Raises InvalidParameter if both are given."""
    mask, mask_type = form.get_file("mask"), form.get_option(MASK_TYPE)
    if mask is not None and mask_type is not None:
        raise InvalidParameter(MASK_TYPE, "cannot be there beside a mask")
    return mask, mask_type


def read_mask_alpha(form: Form) -> MaskAlpha | None:
    """Returns what a mask's transparency means. Raises InvalidParameter, also if there is no mask file for it."""
    value = form.get_option(MASK_ALPHA)
    if value is None:
        return None
    if value not in get_args(MaskAlpha):
        raise InvalidParameter(MASK_ALPHA, f"must be one of {', '.join(get_args(MaskAlpha))}")
    if form.get_file("mask") is None:
        raise InvalidParameter(MASK_ALPHA, "is for a mask that comes as a file")
    return cast(MaskAlpha, value)


def read_fit(form: Form) -> Fit:
    """Returns how pictures of another shape are fitted. Raises InvalidParameter."""
    return check_fit(form.get_option(FIT) or "cover")


def check_fit(value: object) -> Fit:
    """Returns `value`, which says how pictures are fitted. Raises InvalidParameter."""
    if value not in get_args(Fit):
        raise InvalidParameter(FIT, f"must be one of {', '.join(get_args(Fit))}")
    return cast(Fit, value)
