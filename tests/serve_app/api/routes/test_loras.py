"""LoRAs are listed with what they fit, and a request's names reach the backend as files."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.settings import MAX_LORAS
from deployments.loras.catalogue import LoraCatalogue, LoraSpec
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.service import DiffusionService
from tests.deployments.loras.files import write_lora
from tests.serve_app.fakes import PATH, FakeBackend

LIST = "/ads/v2/diffusion/loras"


@pytest.fixture
def service(backend: FakeBackend, tmp_path: Path) -> DiffusionService:
    write_lora(tmp_path / "coffee.safetensors")
    write_lora(tmp_path / "norms.safetensors", end="w_norm")
    (tmp_path / "rows").mkdir()
    path = write_lora(tmp_path / "rows" / "x.safetensors")
    rows = [
        LoraSpec("shoe", str(path), models=("tiny",)),
        LoraSpec("lcm", "maker/lcm", "a" * 40, "x.safetensors"),
    ]
    cache = ResultCache(CacheConfig())
    return DiffusionService(backend, cache=cache, loras=LoraCatalogue(rows, tmp_path))


def asking(*loras: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": "a cup", "seed": 7, "loras": list(loras), **more}


async def test_loras_are_listed_with_the_models_that_they_fit(client: httpx.AsyncClient, tmp_path: Path) -> None:
    listed = (await client.get(LIST)).json()["loras"]
    assert {each["name"]: each["models"] for each in listed} == {
        "shoe": ["tiny"],
        "lcm": ["tiny", "other"],
        "coffee": ["tiny", "other"],
        "norms": [],
    }
    assert {each["name"]: each["networks"] for each in listed}["coffee"] == ["unet"]
    assert "norms" in next(each["problem"] for each in listed if each["name"] == "norms")
    write_lora(tmp_path / "new.safetensors")
    assert "new" in [each["name"] for each in (await client.get(LIST)).json()["loras"]]
    assert str(tmp_path) not in (await client.get(LIST)).text


async def test_names_reach_the_backend_as_files(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await client.post(PATH, json=asking({"name": "coffee", "scale": 0.8}, {"name": "shoe"}))
    assert answer.status_code == 200
    assert [(use.file.name, use.scale) for use in backend.asked[-1].loras] == [("coffee", 0.8), ("shoe", 1.0)]
    assert answer.json()["parameters"]["loras"] == [{"name": "coffee", "scale": 0.8}, {"name": "shoe", "scale": 1.0}]


async def test_without_loras_nothing_is_said_of_them(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await client.post(PATH, json=asking())
    assert "loras" not in answer.json()["parameters"]
    assert backend.asked[-1].loras == ()


async def test_a_file_that_changes_is_another_result(
    client: httpx.AsyncClient, backend: FakeBackend, tmp_path: Path
) -> None:
    for _ in range(2):
        await client.post(PATH, json=asking({"name": "coffee"}))
    assert len(backend.asked) == 1
    write_lora(tmp_path / "next", seed=1).replace(tmp_path / "coffee.safetensors")
    assert (await client.post(PATH, json=asking({"name": "coffee"}))).headers["x-cache"] != "HIT"
    assert len(backend.asked) == 2


@pytest.mark.parametrize(
    ("body", "pointer", "what"),
    [
        (asking({"name": "cofee"}), "#/loras", "did you mean coffee"),
        (asking({"name": "norms"}), "#/loras", "norms"),
        (asking({"name": "shoe"}, model_name="other"), "#/loras", "tiny"),
        (asking({"name": "coffee"}, {"name": "coffee"}), "#/loras", "twice"),
        (asking({"name": "coffee", "scale": 5}), "#/loras/0/scale", "at most 4"),
        (asking({"name": "coffee", "weight": 1}), "#/loras/0/weight", "scale"),
        (asking({"name": "../coffee"}), "#/loras/0/name", "not a path"),
        (asking({"scale": 1}), "#/loras/0/name", "is required"),
        (asking("coffee"), "#/loras/0", "must be an object"),
        (asking(*({"name": str(i)} for i in range(MAX_LORAS + 1))), "#/loras", f"at most {MAX_LORAS}"),
    ],
)
async def test_what_is_wrong_with_loras_is_named(
    body: dict[str, Any], pointer: str, what: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert what in fault["message"]
    assert backend.asked == []


async def test_openais_clients_name_them_beside_openais_fields(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"prompt": "a cup", "size": "64x64", "loras": [{"name": "coffee", "scale": 0.5}]}
    assert (await client.post("/v1/images/generations", json=body)).status_code == 200
    assert [(use.file.name, use.scale) for use in backend.asked[-1].loras] == [("coffee", 0.5)]
    refused = await client.post("/v1/images/generations", json=body | {"loras": [{"name": "nowhere"}]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "loras"


async def test_hugging_faces_clients_name_them_among_the_parameters(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"inputs": "a cup", "parameters": {"loras": [{"name": "coffee"}]}}
    assert (await client.post("/hf/tiny", json=body)).status_code == 200
    assert backend.asked[-1].loras[0].file.name == "coffee"


async def test_forms_have_them_in_their_json(client: httpx.AsyncClient, backend: FakeBackend, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    files = {"init_image": (tmp_path / "photo.png").read_bytes()}
    data = {"params": '{"prompt": "a cup", "loras": [{"name": "coffee"}]}'}
    answer = await client.post("/ads/v2/diffusion/image-to-image", files=files, data=data)
    assert answer.status_code == 200
    assert backend.asked[-1].loras[0].file.name == "coffee"
