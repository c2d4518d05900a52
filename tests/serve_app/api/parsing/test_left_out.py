"""Absent, null and empty values mean the same, wherever a field may be given."""

import json
from typing import Any, Final

import httpx
import pytest

from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import ControlSettings
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.api.parsing.test_hostile_forms import END, FORM, field, file, part, picture
from tests.serve_app.fakes import PATH, FakeBackend

BASE: Final = "/ads/v2/diffusion"
CUP: Final = {"prompt": "a red cup", "seed": 3}
OPTIONAL: Final = sorted(name for name, field in GenerationParams.model_fields.items() if not field.is_required())
OF_THE_DOORS: Final = ("fit", "mask_type", "mask_alpha", "preprocess")
OF_CONTROLS: Final = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")

PROMPT: Final = field(b"prompt", b"a red cup")
IMAGE: Final = file(b"init_image", picture())
HINT: Final = file(b"control_image", picture()) + field(b"controlnet_type", b"canny")
UNCHOSEN: Final = part(b'form-data; name="mask"; filename=""', b"", b"Content-Type: application/octet-stream\r\n")


async def post(client: httpx.AsyncClient, door: str, *parts: bytes) -> httpx.Response:
    return await client.post(f"{BASE}/{door}", content=b"".join(parts) + END, headers=FORM)


@pytest.mark.parametrize("name", OPTIONAL)
async def test_null_is_left_out_in_json_in_batches_and_in_params(
    name: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    # What is not said is drawn, and would differ.
    said = {"prompt": "a red cup", name: None} | ({} if name == "seed" else {"seed": 3})
    assert (await client.post(PATH, json=said)).status_code == 200
    batch = await client.post(f"{BASE}/batch-generate", json={"requests": [said], "priority": None})
    assert (batch.status_code, batch.json()["succeeded"]) == (200, 1)
    form = await post(client, "image-to-image", field(b"params", json.dumps(said).encode()), IMAGE)
    assert form.status_code == 200, form.text
    defaults = GenerationParams(prompt="a red cup").model_dump()
    asked = [request.params.model_dump() for request in backend.asked]
    filled_in = ("width", "height", "seed", "sampler", "model_name", "strength")
    assert all(params[name] == defaults[name] for params in asked if name not in filled_in)


@pytest.mark.parametrize("name", [*OPTIONAL, *OF_THE_DOORS, *OF_CONTROLS])
@pytest.mark.parametrize("written", [b"", None])
async def test_an_empty_part_and_a_null_in_params_are_left_out(
    name: str, written: bytes | None, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    said = field(name.encode(), b"") if written is not None else field(b"params", json.dumps({name: None}).encode())
    answer = await post(client, "controlnet", PROMPT, HINT, IMAGE, said)
    assert answer.status_code == 200, answer.text
    bare = await post(client, "controlnet", PROMPT, HINT, IMAGE)
    one, other = (dict(each.json()["parameters"], seed=0) for each in (answer, bare))
    assert one == other
    first, second = (request.uploads for request in backend.asked)
    assert first == second


@pytest.mark.parametrize("whole", [b"", b"null", b"{}"])
async def test_the_part_for_all_parameters_may_be_left_out_too(whole: bytes, client: httpx.AsyncClient) -> None:
    assert (await post(client, "image-to-image", PROMPT, IMAGE, field(b"params", whole))).status_code == 200


async def test_a_batchs_priority_holds_for_an_entry_whose_own_is_null(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"requests": [CUP | {"priority": None, "deadline_ms": None}], "priority": "low", "deadline_ms": 50_000.0}
    assert (await client.post(f"{BASE}/batch-generate", json=body)).status_code == 200
    assert backend.asked[0].params.priority == "low"
    assert backend.asked[0].params.deadline_ms


@pytest.mark.parametrize("unchosen", [UNCHOSEN, field(b"mask", b"")])
async def test_a_file_that_was_not_chosen_is_left_out(
    unchosen: bytes, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    image = file(b"image", picture())
    answer = await post(client, "inpaint", PROMPT, image, unchosen, field(b"mask_type", b"center"))
    assert answer.status_code == 200, answer.text
    uploads = backend.asked[0].uploads
    assert uploads is not None
    assert (uploads.mask, uploads.mask_type) == (None, "center")


async def test_a_file_that_was_chosen_and_is_empty_is_named(client: httpx.AsyncClient) -> None:
    answer = await post(client, "controlnet", PROMPT, HINT, IMAGE, file(b"mask", b""))
    assert assert_problem(answer, 422, "invalid_parameter")["error"]["param"] == "mask"


async def test_a_value_left_out_among_several_keeps_the_places_of_the_others(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    scales = field(b"controlnet_conditioning_scale", b"") + field(b"controlnet_conditioning_scale", b"0.5")
    answer = await post(client, "controlnet", PROMPT, HINT, HINT, scales)
    assert answer.status_code == 200, answer.text
    assert [control.scale for control in backend.asked[0].params.controls] == [1.0, 0.5]


async def test_null_is_no_value_of_what_is_required_nor_of_what_is_unknown(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post(PATH, json={"prompt": None}), 422, "wrong_type")
    assert_problem(await client.post(PATH, json=CUP | {"steps": None}), 422, "unknown_field")
    answer = await post(client, "image-to-image", PROMPT, IMAGE, field(b"steps", b""))
    assert_problem(answer, 422, "unknown_field")


@pytest.mark.parametrize("number", ["128.0", "1.28e2", "128.", "128"])
async def test_128_0_is_a_whole_number_in_json_and_in_forms(
    number: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    if number != "128.":
        sent = f'{{"prompt": "a red cup", "width": {number}}}'.encode()
        assert (await client.post(PATH, content=sent, headers={"Content-Type": "application/json"})).status_code == 200
    assert (await post(client, "image-to-image", PROMPT, IMAGE, field(b"width", number.encode()))).status_code == 200
    assert {(type(request.params.width), request.params.width) for request in backend.asked} == {(int, 128)}


@pytest.mark.parametrize("number", [128.5, 1e300, 2.0**60, True, "128"])
async def test_what_is_no_exact_whole_number_is_not_rounded(number: Any, client: httpx.AsyncClient) -> None:
    for name in ("width", "seed"):
        answer = await client.post(PATH, json={"prompt": "a red cup", name: number})
        assert_problem(answer, 422, "wrong_type")


@pytest.mark.parametrize("previews", ["", "1_0", " 3", "٣", "3.0", "+3"])
async def test_numbers_in_queries_are_plain_digits(previews: str, client: httpx.AsyncClient) -> None:
    assert (await client.post(PATH, json=CUP, params={"previews": previews})).status_code == 422
    assert (await client.post(PATH, json=CUP, params={"previews": "3"})).status_code == 200


def test_a_controls_nulls_are_left_out() -> None:
    said: dict[str, Any] = {"type": "canny", "scale": None, "start": None, "end": None}
    assert ControlSettings.model_validate(said) == ControlSettings(type="canny")


async def test_json_may_begin_with_a_byte_order_mark(client: httpx.AsyncClient) -> None:
    sent = b"\xef\xbb\xbf" + json.dumps(CUP).encode()
    assert (await client.post(PATH, content=sent, headers={"Content-Type": "application/json"})).status_code == 200
    assert (await post(client, "image-to-image", IMAGE, field(b"params", sent))).status_code == 200
