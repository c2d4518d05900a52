"""The sizes of advertisements: made where the model is good, and delivered to the pixel."""

import pytest

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.spec import ModelSpec
from serve_app.generation.ad_formats import AD_FORMATS, WIDEST, apply_ad_format

SPEC = ModelSpec("sd15", "nowhere", native_size=512)


@pytest.mark.parametrize("name", AD_FORMATS)
def test_every_format_is_made_near_the_models_native_area_in_a_shape_that_it_knows(name: str) -> None:
    params = apply_ad_format(GenerationParams(prompt="a cup", ad_format=name), SPEC)
    asked = AD_FORMATS[name]
    assert params.output_size == (asked.width, asked.height)
    assert params.width is not None
    assert params.height is not None
    assert params.width * params.height == pytest.approx(512 * 512, rel=0.05)
    ratio, wanted = params.width / params.height, asked.width / asked.height
    assert ratio == pytest.approx(min(max(wanted, 1 / WIDEST), WIDEST), rel=0.03)


def test_a_size_to_make_that_is_asked_for_stands() -> None:
    params = GenerationParams(prompt="a cup", ad_format="billboard", width=1024, height=256)
    applied = apply_ad_format(params, SPEC)
    assert (applied.width, applied.height, applied.output_size) == (1024, 256, (970, 250))


def test_without_a_format_nothing_changes() -> None:
    params = GenerationParams(prompt="a cup")
    assert apply_ad_format(params, SPEC) is params


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"ad_format": "leaderbord"}, "ad_format", "leaderboard"),
        ({"ad_format": "nothing like it"}, "ad_format", "known formats"),
        ({"ad_format": "square", "output_size": [300, 300]}, "output_size", "another size"),
    ],
)
def test_what_is_not_known_or_contradicts_itself_is_refused(given: dict[str, object], field: str, said: str) -> None:
    params = GenerationParams.model_validate({"prompt": "a cup", **given})
    with pytest.raises(InvalidParameter, match=said) as refused:
        apply_ad_format(params, SPEC)
    assert refused.value.field == field


def test_a_request_that_is_repeated_from_its_answer_is_the_same() -> None:
    once = apply_ad_format(GenerationParams(prompt="a cup", ad_format="square"), SPEC)
    assert apply_ad_format(once, SPEC) == once
