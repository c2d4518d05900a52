"""Reads the form of an edit: its fields, and which of its pictures is changed, which are followed or taken after."""

from collections.abc import Sequence
from typing import Any, Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from serve_app.api.openai.fields import OWN_FIELDS, ImagesFields, ImagesRequest
from serve_app.api.parsing.forms import Form, convert_text, json_types_of
from serve_app.api.parsing.picture_options import FIT, MASK_TYPE, read_fit, read_mask

IMAGES: Final = ("image", "image[]")
"""The names of the pictures: the second where a client sends a list."""

FILES: Final = (*IMAGES, "mask", "markup")

PREPROCESS: Final = "preprocess"

_INTERVAL: Final = "guidance_interval"

# Clients flatten lists: each number, or each field of each object in a list, becomes a field of the form.
_CONTROLS: Final = {f"controls[][{name}]": name for name in ("type", "scale", "start", "end")}

_REFERENCE: Final = {f"reference[{name}]": name for name in ("adapter", "scale", "start", "end")}
_WEIGHTS: Final = "reference[weights][]"

OPTIONS: Final = (
    *OWN_FIELDS,
    FIT,
    MASK_TYPE,
    PREPROCESS,
    f"{_INTERVAL}[]",
    *_CONTROLS,
    *_REFERENCE,
    _WEIGHTS,
)

_JSON_TYPES: Final = json_types_of(ImagesFields)


def read_edit_fields(form: Form) -> dict[str, Any]:
    """Returns the fields as a JSON body would have them. Raises InvalidParameter."""
    body = dict(form.parameters)
    for name in OWN_FIELDS:
        text = form.get_option(name)
        if text is not None:
            body[name] = convert_text(text, _JSON_TYPES[name])
    if numbers := form.get_numbers(f"{_INTERVAL}[]", 0.0):
        _add(body, _INTERVAL, numbers)
    if controls := _read_controls(form):
        _add(body, "controls", controls)
    if reference := _read_reference(form):
        _add(body, "reference", reference)
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


def _read_reference(form: Form) -> dict[str, Any]:
    """Returns what the images to take after do. Raises InvalidParameter."""
    kinds = {"adapter": ("string",)}
    texts = {field: form.get_option(name) for name, field in _REFERENCE.items()}
    sent = {field: text for field, text in texts.items() if text is not None}
    reference: dict[str, Any] = {field: convert_text(sent[field], kinds.get(field, ("number",))) for field in sent}
    if weights := form.get_numbers(_WEIGHTS, 1.0):
        reference["weights"] = weights
    return reference


def _read_controls(form: Form) -> list[dict[str, Any]]:
    """Returns the ControlNets. Raises InvalidParameter where it is not clear which of them a value is for."""
    sent = {field: form.options[name] for name, field in _CONTROLS.items() if name in form.options}
    if not sent:
        return []
    count = len(sent.get("type", ()))
    for field, texts in sent.items():
        if len(texts) != count:
            raise InvalidParameter("controls", f"must all have the same fields in a form: {field} is there for some")
    kinds = {"type": ("string",)}
    return [
        {field: convert_text(texts[index], kinds.get(field, ("number",))) for field, texts in sent.items()}
        for index in range(count)
    ]


def _add(body: dict[str, Any], name: str, value: Any) -> None:
    if name in body:
        raise InvalidParameter(name, f"is there twice, once as {name}[]")
    body[name] = value
