"""Says which of diffusers' pipelines a model is served as, and checks its default sampler for them."""

import logging
from collections.abc import Sequence

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import PipelineKind, Task
from deployments.engine.protocol.sampler_names import resolve_sampler
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.sampling.samplers import PipelineSamplers

log = logging.getLogger(__name__)


def pipeline_kinds(spec: ModelSpec, *, inpaints_only: bool) -> list[PipelineKind]:
    """Returns the kinds of pipeline that a model serves, the one in most demand first."""
    tasks: tuple[Task, ...] = ("inpaint",) if inpaints_only else ("text-to-image", "image-to-image", "inpaint")
    return [
        PipelineKind(task, controlled) for controlled in (False, True)[: 1 + bool(spec.controlnets)] for task in tasks
    ]


def check_default_sampler(spec: ModelSpec, samplers: PipelineSamplers, pipelines: Sequence[PipelineKind]) -> None:
    """Logs what is corrected. Raises ModelLoadError if the default sampler cannot be served exactly.

    The other samplers are checked when they are asked for, or in the background, whichever comes first.
    """
    title = f"model {spec.name!r}"
    error = samplers.of(pipelines[0]).refusal(resolve_sampler(spec.default_sampler))
    if error is not None:
        raise ModelLoadError(
            f"{title}: its default sampler: {error.message}; name another one as its `default_sampler`"
        )
    for factory, kinds in samplers.by_factory(pipelines):
        for key, value in factory.corrected.items():
            log.warning(
                "%s: %s is %s for %s, as in diffusers' pipelines; its files say otherwise", title, key, value, kinds
            )
