"""The builder: what is configured is what is deployed. Serve's local testing mode stands in for a cluster."""

import inspect
import io
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ray import serve

from deployments.annotators.spec import AnnotatorSpecs, DepthSpec
from deployments.engine.protocol.errors import EngineError, InvalidParameter, ModelLoadError, Overloaded
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, Timings
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.report import EngineReport
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.protocol.spec import ModelSpec, PartSpec
from deployments.engine.worker.engine_worker import EngineWorker
from deployments.watermark.methods import OUR_METHOD
from serve_app.app import bind_deployment, build_app
from serve_app.backends.ray_serve import RayBackend
from serve_app.config.labels import LabelsConfig
from serve_app.config.server import AppConfig, load_config, packaged_configs
from tests.serve_app.redis_servers import redis_at

SPEC = ModelSpec("demo-sd", "nowhere", native_size=64)


class EchoWorker:
    """Answers every request with one image that holds the prompt."""

    alive = True
    upscalers = None

    def check_room(self, request: Request) -> None:
        pass

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        if request.params.prompt == "too much":
            yield Failed(request.id, Overloaded("the queue is full"))
            return
        yield Accepted(request.id, 0)
        yield ImageDone(request.id, 0, request.seed_of(0), "png", 64, 64, request.params.prompt.encode())
        yield Finished(request.id, Timings())

    def abort(self, request_id: str) -> None: ...

    def report(self) -> EngineReport:
        return EngineReport(True)

    def stop(self) -> None: ...


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> RayBackend:
    monkeypatch.setattr(EngineWorker, "load", lambda *_args, **_options: EchoWorker())
    return over_handle({})


def over_handle(annotators: AnnotatorSpecs, version: str = "new", known: str = "new") -> RayBackend:
    app = bind_deployment(load_config("demo").deployments[0], (SPEC,), annotators, version=version)
    handle = serve.run(app, _local_testing_mode=True)
    return RayBackend(handle, (SPEC,), known)


def request(prompt: str) -> Request:
    params = GenerationParams(prompt=prompt, seed=5, model_name="demo-sd", width=64, height=64)
    return Request(f"id of {prompt}", params)


def test_replicas_are_told_the_watermark_s_method_and_none_where_there_is_no_mark() -> None:
    def told(**watermark: Any) -> list[Any]:
        labels = {"watermark": watermark}
        config = load_config("demo").model_copy(update={"labels": LabelsConfig.model_validate(labels)})
        _, replicas, *_ = build_app(config)._bound_deployment.init_args
        return [each._bound_deployment.init_args[-1] for each in replicas]

    assert set(told(method="a.b:C")) == {"a.b:C"}
    assert set(told()) == {OUR_METHOD}
    assert set(told(enabled=False)) == {None}


def test_replicas_share_states_where_there_is_a_redis() -> None:
    def told(redis: Any) -> list[Any]:
        _, replicas, *_ = build_app(load_config("demo").model_copy(update={"redis": redis}))._bound_deployment.init_args
        return [each._bound_deployment.init_kwargs["sharing"] for each in replicas]

    shared = told(redis_at("redis://127.0.0.1:1/0"))
    assert {spec.url for spec in shared} == {"redis://127.0.0.1:1/0"}
    assert len({spec.family for spec in shared}) == len(shared)
    assert set(told(None)) == {None}


async def test_events_cross_a_handle_unchanged(backend: RayBackend) -> None:
    events = [event async for event in backend.generate(request("a cup"))]
    name = "id of a cup"
    assert events == [Accepted(name, 0), ImageDone(name, 0, 5, "png", 64, 64, b"a cup"), Finished(name, Timings())]


@pytest.mark.usefixtures("backend")
async def test_what_a_replica_of_an_earlier_configuration_has_made_is_told_to_be_so() -> None:
    behind = over_handle({}, "old")
    _, made, _ = [event async for event in behind.generate(request("a cup"))]
    assert made == ImageDone("id of a cup", 0, 5, "png", 64, 64, b"a cup", is_current=False)


def test_the_ingress_and_its_replicas_are_told_the_same_version_another_for_other_weights() -> None:
    def told(**model: Any) -> list[str]:
        config = load_config("demo").model_dump(mode="json") | {"models": [{"name": "demo-sd", **model}]}
        _, replicas, _, versions = build_app(AppConfig.model_validate(config))._bound_deployment.init_args
        assert [each._bound_deployment.init_kwargs["version"] for each in replicas] == versions
        return list(versions)

    assert told() == told()
    assert told() != told(parts={"vae": {"source": "elsewhere"}})


async def test_refusals_cross_a_handle_as_they_are(backend: RayBackend) -> None:
    (event,) = [event async for event in backend.generate(request("too much"))]
    assert isinstance(event, Failed)
    assert isinstance(event.error, Overloaded)
    assert event.error.message == "the queue is full"


@pytest.mark.parametrize(("kind", "expected"), [("depth", ModelLoadError), ("pose", InvalidParameter)])
async def test_replicas_get_the_annotators_that_are_configured(
    kind: str, expected: type[EngineError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Told apart by how they refuse: depth has an annotator, whose files are not there; pose has none."""
    photo = io.BytesIO()
    Image.new("RGB", (64, 64)).save(photo, "PNG")
    asked = request("a cup")
    controls = (ControlSettings(type=kind),)
    asked = replace(
        asked,
        params=asked.params.model_copy(update={"controls": controls}),
        uploads=Uploads(hints=(photo.getvalue(),), preprocess=True),
    )
    monkeypatch.setattr(EngineWorker, "load", lambda *_args, **_options: EchoWorker())
    annotators = {"depth": DepthSpec(PartSpec(str(tmp_path / "nowhere")))}
    (event,) = [event async for event in over_handle(annotators).generate(asked)]
    assert isinstance(event, Failed)
    assert type(event.error) is expected


def test_serve_can_read_what_the_builder_takes() -> None:
    """A string there, from postponed annotations, would make Serve pass a bare dict."""
    assert inspect.signature(build_app).parameters["config"].annotation is AppConfig


@pytest.mark.parametrize("name", packaged_configs())
def test_an_ingress_and_one_deployment_per_entry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed: list[dict[str, Any]] = []
    real = serve.deployment

    def recorded(what: Any, **options: Any) -> Any:
        deployed.append(options)
        return real(what, **options)

    monkeypatch.setattr(serve, "deployment", recorded)
    config = load_config(name)
    build_app(config)
    assert [options["name"] for options in deployed] == [*(entry.name for entry in config.deployments), "ingress"]
