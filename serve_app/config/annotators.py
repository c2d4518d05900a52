"""The `annotators` section: the networks that make hints from photos, by ControlNet type. Canny needs no entry."""

from dataclasses import replace
from typing import Any, TypeVar

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from deployments.annotators.models import ANNOTATORS
from deployments.annotators.spec import AnnotatorSpec, DepthSpec, PoseSpec, SegmentationSpec
from deployments.engine.protocol.spec import PartSpec
from serve_app.config.errors import suggest
from serve_app.config.strict import Strict

Row = TypeVar("Row", DepthSpec, PoseSpec, SegmentationSpec)


class WeightsConfig(Strict):
    """A network: a folder in transformers' layout, or a hub repository at a pinned revision."""

    source: str | None = None
    revision: str | None = None
    licence: str | None = None

    def weights(self, row: PartSpec | None) -> PartSpec:
        """Returns a row's weights with this entry's settings over them, or a network of its own."""
        settings = {"source": self.source, "revision": self.revision, "licence": self.licence}
        given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
        if row is not None:
            # A commit belongs to one repository: the row's means nothing to another source.
            row = row if self.source is None else replace(row, revision=None)
            return replace(row, **given)
        if self.source is None:
            raise PydanticCustomError("no_source", "it needs a `source`, or a `model` that is known")
        return PartSpec(**given)


class _AnnotatorConfig(WeightsConfig):
    """`model` is a row of `deployments.annotators.models`."""

    model: str | None = None

    def row(self, kind: type[Row]) -> Row | None:
        """The row that `model` names; None if it names none."""
        if self.model is None:
            return None
        rows = {name: spec for name, spec in ANNOTATORS.items() if isinstance(spec, kind)}
        if self.model not in rows:
            text = f"there is no such annotator as {self.model!r}{suggest(self.model, rows)}"
            raise PydanticCustomError("unknown_model", "{text}", {"text": text})
        return rows[self.model]


class DepthConfig(_AnnotatorConfig):
    """`near_is_large`: whether near points get large values; true for inverse depth, which most networks give."""

    near_is_large: bool | None = None

    def spec(self) -> DepthSpec:
        """The specification that annotators take."""
        row = self.row(DepthSpec)
        weights = self.weights(row.weights if row else None)
        whole = replace(row, weights=weights) if row else DepthSpec(weights)
        return whole if self.near_is_large is None else replace(whole, near_is_large=self.near_is_large)


class PoseConfig(_AnnotatorConfig):
    """`detector` finds the people; without one, here or in the row, an image is one person from edge to edge."""

    detector: WeightsConfig | None = None
    threshold: float | None = Field(default=None, gt=0, le=1)

    def spec(self) -> PoseSpec:
        """The specification that annotators take."""
        row = self.row(PoseSpec)
        weights = self.weights(row.weights if row else None)
        whole = replace(row, weights=weights) if row else PoseSpec(weights)
        if self.detector is not None:
            whole = replace(whole, detector=self.detector.weights(whole.detector))
        return whole if self.threshold is None else replace(whole, threshold=self.threshold)


class SegmentationConfig(_AnnotatorConfig):
    """A network with ADE20K's 150 labels."""

    def spec(self) -> SegmentationSpec:
        """The specification that annotators take."""
        row = self.row(SegmentationSpec)
        return SegmentationSpec(self.weights(row.weights if row else None))


class AnnotatorsConfig(Strict):
    """One annotator for each type that has an entry. Every replica loads those it needs, at the first request."""

    depth: DepthConfig | None = None
    pose: PoseConfig | None = None
    segmentation: SegmentationConfig | None = None

    @field_validator("depth", "pose", "segmentation")
    @classmethod
    def _is_complete(
        cls, entry: DepthConfig | PoseConfig | SegmentationConfig | None
    ) -> DepthConfig | PoseConfig | SegmentationConfig | None:
        if entry is not None:
            entry.spec()
        return entry

    def specs(self) -> dict[str, AnnotatorSpec]:
        """The specifications that replicas take."""
        entries = {"depth": self.depth, "pose": self.pose, "segmentation": self.segmentation}
        return {kind: entry.spec() for kind, entry in entries.items() if entry is not None}
