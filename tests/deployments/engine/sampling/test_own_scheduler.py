"""A checkpoint's own scheduler is served as diffusers' pipelines load it, whatever its settings, or refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.engine.pipelines import arguments, pipeline_class, restore_unmasked
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.events import Failed
from deployments.engine.protocol.inputs import Inputs, PipelineKind
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import INDEX, ModelSpec
from deployments.engine.sampling.checkpoint_scheduler import SavedScheduler, find_corrections
from deployments.engine.sampling.samplers import CHECKPOINT, SAMPLERS, PipelineSamplers
from tests.deployments.engine.harness import Pixels, difference, request_for, run, use_sampler
from tests.deployments.engine.sampling.schedulers import BETAS, REFUSED, SERVED

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

_PRINTED: Final = ("_class_name", "_diffusers_version")
PICTURE: Final = np.kron(np.random.default_rng(1).uniform(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
MASK: Final = np.repeat(np.array([[255, 0]], dtype=np.uint8), 64, axis=0).repeat(32, axis=1)

TASKS: Final[dict[str, tuple[Inputs, dict[str, Any]]]] = {
    "text": (Inputs(), {"num_inference_steps": 4}),
    "image": (Inputs(image=PICTURE), {"num_inference_steps": 5, "strength": 0.6}),
    "inpaint": (Inputs(image=PICTURE, mask=MASK), {"num_inference_steps": 4, "strength": 0.8}),
}


@pytest.fixture(scope="session")
def networks(tiny_checkpoint: Path) -> dict[str, Any]:
    """diffusers' own copies of the tiny checkpoint's networks, which every pipeline here is loaded with."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    pipeline.text_encoder.__dict__.setdefault("text_model", pipeline.text_encoder)
    return {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}


def checkpoint_with(folder: Path, source: Path, scheduler: str, settings: dict[str, Any]) -> Path:
    """`source` with another scheduler; its networks are links."""
    folder.mkdir()
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        (folder / part).symlink_to(source / part)
    (folder / "scheduler").mkdir()
    config = {"_class_name": scheduler, "_diffusers_version": "0.42.1", **settings}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((source / INDEX).read_text()) | {"scheduler": ["diffusers", scheduler]}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def load_with(model: LoadedModel, folder: Path) -> LoadedModel:
    """`model`, with the samplers of another checkpoint of the same networks."""
    samplers = Components(model.device, model.dtype).samplers("model 'tiny'", folder / "scheduler", folder / INDEX)
    alphas, prediction = samplers.alphas_cumprod, samplers.prediction_type
    return replace(model, samplers=samplers, alphas_cumprod=alphas, prediction_type=prediction)


def theirs(folder: Path, networks: dict[str, Any], request: Request) -> Pixels:
    """The picture of diffusers' pipeline, loaded from `folder`."""
    pipeline = pipeline_class(request).from_pretrained(
        folder, **networks, safety_checker=None, requires_safety_checker=False
    )
    use_sampler(pipeline, request.params.sampler)
    pipeline.set_progress_bar_config(disable=True)
    return restore_unmasked(pipeline(**arguments([request])).images[0], request).astype(np.int16)


def worst(model: LoadedModel, folder: Path, networks: dict[str, Any], tasks: list[str], **asked: Any) -> dict[str, int]:
    """How far our pictures are from theirs, by task."""
    requests = [request_for(model, task, TASKS[task][0], **TASKS[task][1], **asked) for task in tasks]
    tape, _ = run(model, requests)
    return {one.id: difference(tape.images(one.id)[0], theirs(folder, networks, one)) for one in requests}


@pytest.mark.parametrize(("scheduler", "settings"), SERVED, ids=lambda value: str(value)[:60])
def test_a_checkpoint_s_own_scheduler_makes_the_pictures_of_its_pipelines(
    scheduler: str,
    settings: dict[str, Any],
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_model: LoadedModel,
    networks: dict[str, Any],
) -> None:
    folder = checkpoint_with(tmp_path / "own", tiny_checkpoint, scheduler, BETAS | settings)
    model = load_with(tiny_model, folder)
    tasks = list(TASKS) if model.samplers.of(PipelineKind()).can_start_from_image(CHECKPOINT) else ["text"]
    differences = worst(model, folder, networks, tasks)
    assert max(differences.values()) <= 1, differences


@pytest.mark.parametrize(("scheduler", "settings", "named"), REFUSED)
def test_a_scheduler_that_no_table_reproduces_is_refused_at_load_by_name(
    scheduler: str, settings: dict[str, Any], named: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    folder = checkpoint_with(tmp_path / "own", tiny_checkpoint, scheduler, BETAS | settings)
    with pytest.raises(ModelLoadError, match=f"model 'm': its default sampler: .*{named}.*`default_sampler`") as raised:
        load_model(ModelSpec("m", str(folder)), torch.device("cpu"), torch.float32)
    assert str(tmp_path) not in str(raised.value)


def test_an_operator_may_name_another_default_for_a_scheduler_that_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, networks: dict[str, Any]
) -> None:
    folder = checkpoint_with(tmp_path / "own", tiny_checkpoint, "PNDMScheduler", BETAS | {"steps_offset": 1})
    spec = ModelSpec("m", str(folder), default_sampler="Euler a")
    model = load_model(spec, torch.device("cpu"), torch.float32)
    assert worst(model, folder, networks, ["text"]) == worst(model, folder, networks, ["text"], sampler="euler_a")
    tape, _ = run(model, [request_for(model, "own", sampler=CHECKPOINT)])
    assert "`skip_prk_steps`" in tape.of("own", Failed)[0].error.message


def test_every_scheduler_of_diffusers_is_served_exactly_or_refused() -> None:
    """Nothing but a refusal ever comes of a class, however little it has to do with Stable Diffusion."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    assert len(names) > 40
    samplers = {name: PipelineSamplers(SavedScheduler(name, BETAS)).of(PipelineKind()) for name in names}
    refusals = {name: factory.refusal(CHECKPOINT) for name, factory in samplers.items()}
    served = {name for name, refusal in refusals.items() if refusal is None}
    assert served >= {row.scheduler for row in SAMPLERS.values()} - {"PNDMScheduler"}
    assert all(refusal.field == "sampler" for refusal in refusals.values() if refusal is not None)


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 0}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("DDIMScheduler", {"clip_sample": True, "steps_offset": 1}),
        ("DDIMScheduler", {}),
        ("DDIMScheduler", {"clip_sample": True, "steps_offset": 5}),
    ],
)
@pytest.mark.parametrize("sampler", [None, "ddim", "dpmpp_2m"])
def test_old_settings_are_corrected_as_the_pipelines_constructors_do(
    scheduler: str,
    settings: dict[str, Any],
    sampler: str | None,
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_model: LoadedModel,
    networks: dict[str, Any],
) -> None:
    folder = checkpoint_with(tmp_path / "old", tiny_checkpoint, scheduler, BETAS | settings)
    model = load_with(tiny_model, folder)
    # The constructor for inpainting does not correct `clip_sample`: diffusers clips there, and so it is refused.
    for task in TASKS:
        kind = PipelineKind(TASKS[task][0].task)
        refusal = model.samplers.of(kind).refusal(sampler or CHECKPOINT)
        if refusal is not None:
            assert "`clip_sample`" in refusal.message
            assert (sampler, "clip_sample" in settings) == ("ddim", False) or task == "inpaint"
            continue
        if scheduler == "DDIMScheduler" and sampler == "ddim":
            # The pipeline has a DDIMScheduler already; nobody swaps it for another.
            request = request_for(model, task, TASKS[task][0], **TASKS[task][1], sampler="ddim")
            own = replace(request, params=request.params.model_copy(update={"sampler": CHECKPOINT}))
            tape, _ = run(model, [request])
            assert difference(tape.images(task)[0], theirs(folder, networks, own)) <= 1
        else:
            assert max(worst(model, folder, networks, [task], **{"sampler": sampler} if sampler else {}).values()) <= 1


@pytest.mark.parametrize("settings", [{}, {"steps_offset": 1}, {"steps_offset": None}, {"clip_sample": True}])
@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "TCDScheduler"])
def test_what_is_corrected_is_what_the_constructors_of_diffusers_correct(
    scheduler: str, settings: dict[str, Any], tiny_model: LoadedModel, tiny_controlled: LoadedModel
) -> None:
    kinds = [("text", {}), ("image", {}), ("inpaint", {}), ("text", {"canny": 1}), ("image", {"canny": 1})]
    for task, controlled in kinds:
        inputs = replace(TASKS[task][0], hints=(PICTURE,) if controlled else ())
        controls = {"controls": ({"type": "canny"},)} if controlled else {}
        request = request_for(tiny_controlled, "x", inputs, **controls)
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
        net = {"controlnet": None} if controlled else {}
        own = SavedScheduler(scheduler, settings).load()
        before = dict(own.config)
        made = pipeline_class(request)(**parts, **net, scheduler=own, requires_safety_checker=False)
        # Printing a scheduler, as diffusers' warnings do, adds these two to its config.
        after = {key: value for key, value in made.scheduler.config.items() if key not in _PRINTED}
        assert after == before | find_corrections(before, request.pipeline), (task, controlled)


def test_the_index_names_the_class_whatever_the_scheduler_s_own_file_says(
    tmp_path: Path, tiny_checkpoint: Path, tiny_model: LoadedModel, networks: dict[str, Any]
) -> None:
    folder = checkpoint_with(tmp_path / "x", tiny_checkpoint, "EulerDiscreteScheduler", BETAS)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("EulerDiscreteScheduler", "DDIMScheduler"))
    model = load_with(tiny_model, folder)
    assert model.samplers.of(PipelineKind()).own.scheduler == "EulerDiscreteScheduler"
    assert max(worst(model, folder, networks, ["text"]).values()) <= 1


@pytest.mark.parametrize("entry", [["my_schedulers", "MyScheduler"], [None, None], None, "DDIMScheduler"])
def test_an_index_that_names_no_scheduler_of_diffusers_is_refused(
    entry: Any, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    folder = checkpoint_with(tmp_path / "x", tiny_checkpoint, "DDIMScheduler", BETAS)
    index = json.loads((folder / INDEX).read_text()) | {"scheduler": entry}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"model 'm': its model_index\.json must name a scheduler of diffusers"):
        load_model(ModelSpec("m", str(folder)), torch.device("cpu"), torch.float32)


def test_a_scheduler_that_cannot_add_noise_refuses_pictures_and_nothing_else(
    tmp_path: Path, tiny_checkpoint: Path, tiny_model: LoadedModel
) -> None:
    folder = checkpoint_with(tmp_path / "x", tiny_checkpoint, "IPNDMScheduler", BETAS)
    model = load_with(tiny_model, folder)
    tape, _ = run(model, [request_for(model, "image", TASKS["image"][0]), request_for(model, "text", previews=2)])
    assert "pictures" in tape.of("image", Failed)[0].error.message
    assert len(tape.images("text")) == 1
    shutil.rmtree(folder)
