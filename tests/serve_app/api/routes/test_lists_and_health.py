"""Models, samplers, styles, statistics, health, and the documentation."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.params import IMAGE_FIELDS, GenerationParams
from deployments.engine.protocol.sampler_names import resolve_sampler
from serve_app.api.application import create_api
from serve_app.backends.protocol import BackendReport
from serve_app.service import DiffusionService
from tests.serve_app.fakes import OTHER, PATH, TINY, FakeBackend, http

BASE = "/ads/v2/diffusion"


async def test_health_has_the_guides_keys(client: httpx.AsyncClient) -> None:
    response = await client.get(f"{BASE}/health")
    health = response.json()
    assert response.status_code == 200
    assert list(health) == [
        "status",
        "service",
        "loaded_models",
        "device",
        "backend",
        "cache_entries",
        "labels",
        "timestamp",
    ]
    assert (health["status"], health["service"], health["loaded_models"]) == ("healthy", "diffusion", 2)
    assert (health["device"], health["cache_entries"]) == ("cpu", 0)
    assert health["timestamp"].endswith("Z")
    assert datetime.fromisoformat(health["timestamp"])


async def test_not_ready_is_503_but_alive(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.now = BackendReport()
    for path in (f"{BASE}/health", "/readyz"):
        response = await client.get(path)
        assert (response.status_code, response.json()["status"]) == (503, "starting")
    assert (await client.get("/livez")).status_code == 200


async def test_models_that_cannot_be_loaded_are_unhealthy_and_their_path_stays_here(
    client: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def report() -> BackendReport:
        raise ModelLoadError("there is no folder /SECRET")

    monkeypatch.setattr(backend, "report", report)
    response = await client.get(f"{BASE}/health")
    assert (response.status_code, response.json()["status"]) == (503, "unhealthy")
    assert (await client.get(f"{BASE}/stats")).json()["loaded_models"] == 0
    backend.script = lambda _: [ModelLoadError("there is no folder /SECRET")]
    refused = await client.post(PATH, json={"prompt": "a cup"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_load_failed")
    assert "SECRET" not in response.text + refused.text


async def test_http_statistics_are_the_services(client: httpx.AsyncClient, service: DiffusionService) -> None:
    await client.post(PATH, json={"prompt": "a cup"})
    assert (await client.get(f"{BASE}/stats")).json() == await service.get_generation_stats()


async def test_models_tell_names_limits_and_licence(client: httpx.AsyncClient) -> None:
    tiny, other = (await client.get(f"{BASE}/models")).json()["models"]
    assert (tiny["name"], tiny["aliases"], tiny["native_size"], tiny["default_sampler"]) == (
        "tiny",
        ["maker/tiny"],
        64,
        "ddim",
    )
    assert tiny["limits"]["width"] == {"min": 64, "max": 2048, "multiple_of": 8}
    assert tiny["limits"]["max_pixels"] == 1024 * 1024
    assert other["licence"] == "MIT"


async def test_models_of_few_steps_tell_their_defaults_and_have_them_where_callers_say_nothing() -> None:
    few = replace(OTHER, default_steps=4, default_guidance_scale=0.0)
    backend = FakeBackend(models=(few, TINY))
    async with http(create_api(DiffusionService(backend))) as client:
        listed = {each["name"]: each for each in (await client.get(f"{BASE}/models")).json()["models"]}
        assert (listed["other"]["default_steps"], listed["other"]["default_guidance_scale"]) == (4, 0.0)
        assert (listed["tiny"]["default_steps"], listed["tiny"]["default_guidance_scale"]) == (50, 7.5)
        given: list[dict[str, Any]] = [{}, {"num_inference_steps": 9, "guidance_scale": 2.0}, {"guidance_scale": None}]
        for more in given:
            await client.post(PATH, json={"prompt": "a cup", **more})
        await client.post("/sdapi/v1/txt2img", json={"prompt": "a cup"})
        await client.post("/sdapi/v1/txt2img", json={"prompt": "a cup", "steps": 20, "cfg_scale": 7})
    asked = [(each.params.num_inference_steps, each.params.guidance_scale) for each in backend.asked]
    assert asked == [(4, 0.0), (9, 2.0), (4, 0.0), (4, 0.0), (20, 7.0)]


async def test_every_listed_sampler_name_is_understood(client: httpx.AsyncClient) -> None:
    for row in (await client.get(f"{BASE}/samplers")).json()["samplers"]:
        assert resolve_sampler(row["label"]) == row["name"]
        assert all(resolve_sampler(alias) == row["name"] for alias in row["aliases"])


async def test_styles_are_listed_with_their_texts(client: httpx.AsyncClient) -> None:
    styles = {row["name"]: row["text"] for row in (await client.get(f"{BASE}/styles")).json()["styles"]}
    assert set(styles) >= {"professional", "lifestyle", "luxury", "minimalist", "vintage", "modern"}
    assert styles["luxury"] == "luxury photography, premium materials, sophisticated composition"


async def test_the_documentation_describes_every_field_and_its_examples_work(client: httpx.AsyncClient) -> None:
    assert (await client.get("/docs")).status_code == 200
    operation = (await client.get("/openapi.json")).json()["paths"][PATH]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    properties = content["schema"]["properties"]
    assert set(properties) == set(GenerationParams.model_fields) - IMAGE_FIELDS | {"reference_images"}
    assert all(field["description"] for field in properties.values())
    for example in content["examples"].values():
        GenerationParams.model_validate(example["value"])
    assert set(operation["responses"]["200"]["content"]) >= {"application/json", "image/png", "text/event-stream"}
