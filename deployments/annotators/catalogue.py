"""Which annotator makes the hints of which ControlNet type."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from deployments.annotators.edges import detect_edges
from deployments.engine.errors import InvalidParameter
from deployments.engine.inputs import Picture

Annotator = Callable[[Picture], Picture]

ANNOTATORS: Mapping[str, Annotator] = MappingProxyType({"canny": detect_edges})


def annotate(picture: Picture, controlnet_type: str) -> Picture:
    """The hint for a ControlNet of that type. Raises InvalidParameter where no annotator makes one."""
    annotator = ANNOTATORS.get(controlnet_type)
    if annotator is None:
        known = ", ".join(ANNOTATORS)
        raise InvalidParameter(
            "preprocess", f"there is no annotator for this type, send a finished hint; known: {known}"
        )
    return annotator(picture)
