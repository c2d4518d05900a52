"""Reads the form of an edit: its fields, and which of its pictures is changed, which are followed or taken after."""

from collections.abc import Sequence
from typing import Any, Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from serve_app.api.openai.fields import OWN_FIELDS, ImagesFields, ImagesRequest, our_fields
from serve_app.api.openai.flattened import join_fields
from serve_app.api.parsing.forms import Form, convert_text, json_types_of
from serve_app.api.parsing.picture_options import FIT, MASK_TYPE, read_fit, read_mask

IMAGES: Final = ("image", "image[]")
"""The names of the pictures: the second where a client sends a list."""

FILES: Final = (*IMAGES, "mask", "markup")

PREPROCESS: Final = "preprocess"

OPTIONS: Final = (*OWN_FIELDS, FIT, MASK_TYPE, PREPROCESS)

_JSON_TYPES: Final = json_types_of(ImagesFields)


def read_edit_fields(form: Form) -> dict[str, Any]:
    """Returns the fields as a JSON body would have them. Raises InvalidParameter."""
    body = join_fields(form.parameters, our_fields(edits=True))
    for name in OWN_FIELDS:
        text = form.get_option(name)
        if text is not None:
            body[name] = convert_text(text, _JSON_TYPES[name])
    return body


def read_pictures(form: Form, request: ImagesRequest) -> Uploads:
    """Returns the pictures: the one to change, one for each of `controls` to follow, and those to take after.

    Without one to change, a picture that follows the others is made from nothing. Raises InvalidParameter.
    """
    if form.files.get("markup"):
        raise InvalidParameter("markup", "is not supported by this server; draw a mask")
    mask, mask_type = read_mask(form)
    sent = [file for name in IMAGES for file in form.files.get(name, ())]
    image, hints, references = _tell_apart(sent, len(request.params.controls))
    if image is None and (mask is not None or mask_type is not None):
        raise InvalidParameter("mask", "belongs to an image that is changed, which comes before those for `controls`")
    return Uploads(
        image=image,
        mask=mask,
        mask_type=mask_type,
        mask_alpha=None if mask is None else "holes",
        hints=hints,
        preprocess=form.get_flag(PREPROCESS),
        fit=read_fit(form),
        references=references,
    )


def _tell_apart(images: Sequence[bytes], controls: int) -> tuple[bytes | None, tuple[bytes, ...], tuple[bytes, ...]]:
    """Returns the image to change, if there is one, those for the ControlNets, and further ones, to take after."""
    if not images:
        raise InvalidParameter("image", "is required, as a file")
    if len(images) < controls:
        rule = f"must be there {controls} times, once for each of `controls`, or once more, the one to change first"
        raise InvalidParameter("image", rule)
    if len(images) == controls:
        return None, tuple(images), ()
    return images[0], tuple(images[1 : controls + 1]), tuple(images[controls + 1 :])
