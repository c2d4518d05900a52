"""Maps ControlNet types to the annotators that make their hints. Without torch until one of them needs it."""

import logging
from collections.abc import Callable
from threading import Lock
from types import MappingProxyType
from typing import Final

from deployments.annotators.content_shuffle import shuffle_content
from deployments.annotators.edges import detect_edges
from deployments.annotators.line_art import detect_soft_edges, detect_straight_lines, draw_lineart, draw_scribble
from deployments.annotators.spec import AnnotatorSpec, AnnotatorSpecs, DepthSpec, PoseSpec, SegmentationSpec
from deployments.engine.protocol.errors import (
    EngineError,
    EngineLost,
    GenerationFailed,
    InvalidParameter,
    ModelLoadError,
    Overloaded,
)
from deployments.engine.protocol.inputs import ImageArray

log = logging.getLogger(__name__)

Annotator = Callable[[ImageArray], ImageArray]
"""Turns an image [H, W, 3] into a hint of the same size."""

NO_NETWORKS: Final[AnnotatorSpecs] = MappingProxyType({})


def _keep(image: ImageArray) -> ImageArray:
    """Returns the image as it is: what ControlNets follow that change a picture, or add details to it."""
    return image


BUILT_IN: Final = MappingProxyType(
    {
        "canny": detect_edges,
        "lineart": draw_lineart,
        "scribble": draw_scribble,
        "softedge": detect_soft_edges,
        "lines": detect_straight_lines,
        "shuffle": shuffle_content,
        "instruct": _keep,
        "tile": _keep,
    }
)
"""The annotators without a network, by ControlNet type."""


class Annotators:
    """The annotators of one process: those without a network, and one per entry of `specs`.

    Networks are loaded onto `device` (auto, cpu, cuda, ...) at their first use, once. Safe on any thread.
    `on_device_lost` is called when this process cannot use the device any more.
    """

    def __init__(
        self,
        specs: AnnotatorSpecs = NO_NETWORKS,
        device: str = "auto",
        on_device_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._by_type: dict[str, Annotator] = dict(BUILT_IN)
        self._by_type |= {kind: _LazyAnnotator(spec, device, on_device_lost) for kind, spec in specs.items()}

    def of(self, controlnet_type: str) -> Annotator:
        """Returns the annotator for that type. Raises InvalidParameter if there is none.

        Calling it raises ModelLoadError if its network cannot be loaded.
        """
        annotator = self._by_type.get(controlnet_type)
        if annotator is None:
            raise InvalidParameter(
                "preprocess",
                f"this server has no annotator for this type, send a finished hint; it has: {', '.join(self._by_type)}",
            )
        return annotator


class _LazyAnnotator:
    """An annotator that loads at its first use. One image at a time: two at once would not be faster."""

    def __init__(self, spec: AnnotatorSpec, device: str, on_device_lost: Callable[[], object]) -> None:
        self._spec = spec
        self._device = device
        self._on_device_lost = on_device_lost
        self._annotator: Annotator | None = None
        self._lock = Lock()

    def __call__(self, image: ImageArray) -> ImageArray:
        """Makes the hint. Raises EngineError: a device's error concerns this request, or the whole process."""
        # Imported here, as below.
        from deployments.engine.device.errors import DeviceLost, convert_device_errors, is_out_of_memory

        try:
            with self._lock, convert_device_errors():
                if self._annotator is None:
                    self._annotator = self._load()
                return self._annotator(image)
        except EngineError:
            raise
        except DeviceLost as error:
            log.critical("the device is lost to this process", exc_info=True)
            self._on_device_lost()
            raise EngineLost("the device was lost while the hint was made") from error
        except Exception as error:
            log.exception("a hint could not be made")
            if is_out_of_memory(error):
                raise Overloaded("the hint could not be made: there is no memory for it now") from error
            raise GenerationFailed("the hint could not be made") from error

    def _load(self) -> Annotator:
        try:
            return load_annotator(self._spec, self._device)
        except ModelLoadError as error:
            # Callers over HTTP only learn that it failed.
            log.error("%s", error.message)
            raise


def load_annotator(spec: AnnotatorSpec, device: str) -> Annotator:
    """Loads the annotator that `spec` describes. Raises ModelLoadError."""
    # Imported here: these need torch, which the HTTP side does without.
    from deployments.annotators.depth import DepthAnnotator
    from deployments.annotators.pose import PoseAnnotator
    from deployments.annotators.segmentation import SegmentationAnnotator
    from deployments.engine.models.components import pick_device

    where = pick_device(device)
    match spec:
        case DepthSpec():
            return DepthAnnotator.load(spec, where)
        case PoseSpec():
            return PoseAnnotator.load(spec, where)
        case SegmentationSpec():
            return SegmentationAnnotator.load(spec, where)
