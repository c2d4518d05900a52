"""Decides everything about a request before the backend sees it: model, size, defaults, seed, style."""

import secrets
from collections.abc import Sequence
from difflib import get_close_matches

from deployments.engine.protocol.errors import InvalidParameter, UnknownModel
from deployments.engine.protocol.inputs import Task, Uploads
from deployments.engine.protocol.params import BUILT_IN_UPSCALERS, GenerationParams, effective_params
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ReferenceSettings
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.catalogue import NO_LORAS, LoraCatalogue
from serve_app.generation.ad_formats import apply_ad_format
from serve_app.generation.prepared import Prepared
from serve_app.generation.prompts import PromptRules
from serve_app.generation.uploads import check_uploads, fill_in_size

DRAWN_SEEDS = 2**32

_BUILT_IN = PromptRules()


def prepare(
    models: Sequence[ModelSpec],
    params: GenerationParams,
    uploads: Uploads | None,
    previews: int,
    name: str,
    tenant: str,
    prompts: PromptRules = _BUILT_IN,
    upscalers: Sequence[str] = (),
    loras: LoraCatalogue = NO_LORAS,
    seed_drawn: bool = False,
) -> Prepared:
    """Returns the request, with an id of its own, that one of `models` can run. Raises InvalidParameter.

    `seed_drawn` says that the seed in `params` was drawn for this request before, and is no wish of its caller.
    """
    header = check_uploads(uploads, params) if uploads else None
    task: Task = uploads.task if uploads else "text-to-image"
    references = len(uploads.references) if uploads else 0
    spec = served_model(models, params, uploads)
    asked = fill_in_reference(apply_ad_format(with_seed(params), spec), references, spec)
    asked = fill_in_size(asked, header, spec)
    asked = effective_params(asked, spec, task)
    seed_drawn = seed_drawn or asked.seed != params.seed
    if asked.cache == "similar" and not seed_drawn:
        raise InvalidParameter("seed", "cannot be given with `cache` similar: images may begin from others' noise")
    _check_controls(asked, uploads, spec)
    _check_upscaler(asked, upscalers)
    styled = prompts.write(asked)
    request_id = f"{name}.{secrets.token_hex(4)}"
    request = Request(
        request_id,
        styled,
        previews,
        uploads=uploads,
        tenant=tenant,
        name=name,
        seed_drawn=seed_drawn,
        loras=loras.resolve(asked.loras, spec) if asked.loras else (),
        embeddings=prompts.embeddings.find_in([styled.prompt, styled.negative_prompt]),
    )
    return Prepared(request, asked)


def default_model(models: Sequence[ModelSpec]) -> ModelSpec:
    """Returns the model that makes images where none is named: the first that is not made for inpainting alone."""
    return next((spec for spec in models if not spec.inpaints_only), models[0])


def find_model(models: Sequence[ModelSpec], name: str | None) -> ModelSpec:
    """Returns the model with that name or alias; the first one for None. Raises UnknownModel."""
    if name is None:
        return models[0]
    for spec in models:
        if spec.has_name(name):
            return spec
    raise UnknownModel("model_name", f"there is no such model; {_suggest_model(name, models)}")


def with_seed(params: GenerationParams) -> GenerationParams:
    """Returns `params` with a seed, drawn if none was given; once per request: caching and replays rely on it."""
    if params.seed is not None and params.seed >= 0:
        return params
    return params.model_copy(update={"seed": draw_seed()})


def draw_seed() -> int:
    """Draws a seed for whoever has given none."""
    return secrets.randbelow(DRAWN_SEEDS)


def _suggest_model(name: str, models: Sequence[ModelSpec]) -> str:
    known = [known for spec in models for known in (spec.name, *spec.aliases)]
    close_names = get_close_matches(name[:200], known, n=3)
    return f"did you mean {' or '.join(close_names)}?" if close_names else f"known models: {', '.join(known)}"


def fill_in_reference(params: GenerationParams, images: int, spec: ModelSpec) -> GenerationParams:
    """Returns `params` with what its reference `images` do filled in, and the adapter where the model has just one.

    Raises InvalidParameter, which names what there is.
    """
    if not images:
        if params.reference is not None:
            raise InvalidParameter("reference_images", "is required with `reference`: at least one picture")
        return params
    known = ", ".join(spec.ip_adapters)
    if not known:
        raise InvalidParameter("reference_images", f"need a model with an IP-Adapter, and {spec.name} has none")
    asked = params.reference or ReferenceSettings()
    if asked.adapter is None and len(spec.ip_adapters) > 1:
        raise InvalidParameter("reference", f"must name an adapter, of which model {spec.name} has several: {known}")
    adapter = asked.adapter or known
    if adapter not in spec.ip_adapters:
        raise InvalidParameter("reference", f"model {spec.name} has no such IP-Adapter; it has: {known}")
    if asked.weights and len(asked.weights) != images:
        raise InvalidParameter("reference", f"must have as many weights as reference images, {images}, or none")
    return params.model_copy(update={"reference": asked.model_copy(update={"adapter": adapter})})


def served_model(models: Sequence[ModelSpec], params: GenerationParams, uploads: Uploads | None) -> ModelSpec:
    """Returns the model that makes the images. If the named one lacks the ControlNets or the IP-Adapter, it is one of
    the same source and revision that has them; if none is named, the first that is made for the task and has them.

    Raises UnknownModel.
    """
    task: Task = uploads.task if uploads else "text-to-image"
    types = {control.type for control in params.controls}
    candidates = [spec for spec in models if types <= set(spec.controlnets)]
    if uploads and uploads.references:
        adapter = None if params.reference is None else params.reference.adapter
        candidates = [spec for spec in candidates if (adapter in spec.ip_adapters if adapter else spec.ip_adapters)]
    if params.model_name is None:
        made_for_task = [spec for spec in candidates if spec.inpaints_only == (task == "inpaint")]
        return next(iter((*made_for_task, *candidates)), models[0])
    named = find_model(models, params.model_name)
    same_weights = [spec for spec in candidates if _weights(spec) == _weights(named)]
    return named if named in candidates else next(iter(same_weights), named)


def controlnets_of(models: Sequence[ModelSpec], spec: ModelSpec) -> tuple[str, ...]:
    """Returns the ControlNets that images of `spec`'s weights can follow, whichever model of these weights has them."""
    same = [each for each in models if _weights(each) == _weights(spec)]
    return tuple(dict.fromkeys(kind for each in (spec, *same) for kind in each.controlnets))


def adapters_of(models: Sequence[ModelSpec], spec: ModelSpec) -> tuple[str, ...]:
    """Returns the IP-Adapters that images of `spec`'s weights can have, whichever model of these weights has them."""
    same = [each for each in models if _weights(each) == _weights(spec)]
    return tuple(dict.fromkeys(name for each in (spec, *same) for name in each.ip_adapters))


def _weights(spec: ModelSpec) -> tuple[str | None, ...]:
    return spec.source, spec.revision, spec.file, spec.config, spec.prediction_type


def _check_upscaler(params: GenerationParams, upscalers: Sequence[str]) -> None:
    known = (*BUILT_IN_UPSCALERS, *upscalers)
    if params.hires is not None and params.hires.upscaler not in known:
        raise InvalidParameter("hires", f"there is no such upscaler; there is: {', '.join(known)}")


def _check_controls(params: GenerationParams, uploads: Uploads | None, spec: ModelSpec) -> None:
    for control in params.controls:
        if control.type not in spec.controlnets:
            known = ", ".join(spec.controlnets) or "none"
            raise InvalidParameter("controlnet_type", f"model {spec.name} has no such ControlNet; it has: {known}")
    if len(params.controls) != len(uploads.hints if uploads else ()):
        raise InvalidParameter("control_image", "must be there once for each ControlNet that is asked for")
