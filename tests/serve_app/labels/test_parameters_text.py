"""What is written into a picture is read back by those who invented it, and by those who learnt it from them."""

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import ControlSettings, ReferenceSettings
from serve_app.generation.lora_tags import split_tags
from serve_app.labels.parameters_text import MAX_TEXT, parameters_text, parse_parameters

FIELDS: dict[str, Any] = {
    "width": 512,
    "height": 384,
    "num_inference_steps": 20,
    "sampler": "dpmpp_2m_karras",
    "model_name": "demo-sd",
}
TRUE_FIELDS = {
    "Steps": "20",
    "Sampler": "DPM++ 2M",
    "Schedule type": "Karras",
    "CFG scale": "7.5",
    "Seed": "7",
    "Size-1": "512",
    "Size-2": "384",
    "Model": "demo-sd",
}

HOSTILE = (
    "a cat\nSteps: 1, Seed: 2",
    "a cat\nSteps: 1, Sampler: Euler, CFG scale: 1, Seed: 2, Model: other",
    "a cat\nNegative prompt: a dog",
    "a cat, Negative prompt: a dog, Negative prompt: a cow",
    'a "cat", Seed: 2',
    'Seed: "2, Steps: 1',
    "a cat\\",
    "\n\nNegative prompt: only\nSteps: 1, Seed: 2, Size: 1x1",
    "猫, 蓝色: 背景",
    "🐈\n\n🐕",
    "",
)


def params_of(prompt: str, negative: str = "", **more: Any) -> GenerationParams:
    return GenerationParams(prompt=prompt, negative_prompt=negative, **{**FIELDS, **more})


def read_as_a1111_does(text: str) -> dict[str, str]:
    """A1111's rule: the last line has the fields, if it has at least three; a field goes before the lines above it."""
    pattern = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    if len(pattern.findall(last)) < 3:
        lines, last = [*lines, last], ""
    prompts, place = ["", ""], 0
    for line in (line.strip() for line in lines):
        if line.startswith("Negative prompt:"):
            place, line = 1, line[16:].strip()
        prompts[place] += line if not prompts[place] else f"\n{line}"
    read = {"Prompt": prompts[0], "Negative prompt": prompts[1]}
    for name, value in pattern.findall(last):
        value = json.loads(value) if value[:1] == '"' and value[-1:] == '"' else value
        sides = re.match(r"^(\d+)x(\d+)$", value)
        read |= {f"{name}-1": sides[1], f"{name}-2": sides[2]} if sides else {name: value}
    return read


def read_as_comfyui_does(text: str) -> tuple[str, str, dict[str, str]]:
    """ComfyUI's rule: from the last line that begins with `Steps:`, and a negative prompt must be there."""
    at = text.rindex("\nSteps:")
    line = text[at:].split("\n")[1]
    fields = [found[0] for found in re.findall(r'\s*([^:]+:\s*([^"\{].*?|".*?"|\{.*?\}))\s*(?:,|$)', line)]
    pairs = [field.split(":") for field in fields]
    negative = text.rindex("\nNegative prompt:", 0, at)
    return text[:negative].strip(), text[negative + 18 : at].strip(), {pair[0].strip(): pair[1] for pair in pairs}


def test_it_is_what_a1111_writes() -> None:
    text = parameters_text(params_of("a red cup", "text"), seed=7)
    prompt, negative, fields = text.split("\n")
    assert (prompt, negative) == ("a red cup", "Negative prompt: text")
    assert fields.startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 512x384, Model: demo-sd"
    )


@pytest.mark.parametrize("negative", ["", "text, frame", *HOSTILE])
@pytest.mark.parametrize("prompt", ["a red cup", *HOSTILE])
def test_no_prompt_changes_the_fields_or_another_prompt(prompt: str, negative: str) -> None:
    text = parameters_text(params_of(prompt, negative), seed=7)
    for read in (parse_parameters(text), read_as_a1111_does(text)):
        assert (read["Prompt"].strip(), read["Negative prompt"].strip()) == (prompt.strip(), negative.strip())
        assert read.items() >= TRUE_FIELDS.items()


@given(prompt=st.text(max_size=60), negative=st.text(max_size=60))
def test_no_text_at_all_does(prompt: str, negative: str) -> None:
    try:
        params = params_of(prompt, negative)
    except ValueError:
        return
    read = parse_parameters(parameters_text(params, seed=7))
    lines = [[line.strip() for line in each.strip().split("\n")] for each in (prompt, negative)]
    found = [[line.strip() for line in read[name].strip().split("\n")] for name in ("Prompt", "Negative prompt")]
    assert found == lines
    assert read.items() >= TRUE_FIELDS.items()


@pytest.mark.parametrize("prompt", ["a red cup", *HOSTILE])
def test_sd_parsers_reads_the_true_fields(prompt: str) -> None:
    picture = Image.new("RGB", (8, 8))
    picture.format = "PNG"
    picture.info["parameters"] = parameters_text(params_of(prompt, "text"), seed=7)
    info = ParserManager().parse(picture)
    assert info is not None
    (sampler,) = info.samplers
    assert sampler.name == "DPM++ 2M"
    assert sampler.parameters == {"cfg_scale": "7.5", "seed": "7", "steps": "20", "scheduler": "Karras"}
    assert sampler.model is not None
    assert sampler.model.name == "demo-sd"
    assert info.metadata["Size"] == "512x384"
    assert [each.value for each in sampler.negative_prompts] == ["text"]
    if prompt and "Negative prompt:" not in prompt:
        assert [each.value for each in sampler.prompts] == [prompt.strip()]


@pytest.mark.parametrize("prompt", ["a red cup", "a cat\nSteps: 1, Seed: 2", "a cat\nNegative prompt: a dog"])
@pytest.mark.parametrize("negative", ["", "text"])
def test_comfyui_reads_the_true_fields(prompt: str, negative: str) -> None:
    read = read_as_comfyui_does(parameters_text(params_of(prompt, negative), seed=7))
    assert read[0].replace(" :", ":") == prompt
    assert read[1] == negative
    assert {name: read[2][name].strip(" ,") for name in ("Steps", "Sampler", "Seed", "Model")} == {
        name: TRUE_FIELDS[name] for name in ("Steps", "Sampler", "Seed", "Model")
    }


def test_what_only_some_requests_have_is_said_where_they_have_it() -> None:
    params = params_of(
        "a cup",
        strength=0.6,
        clip_skip=1,
        mask_feather=8,
        controls=(ControlSettings(type="canny", scale=0.8), ControlSettings(type="depth", end=0.5)),
        guidance_interval=(0.2, 0.8),
        deep_cache=3,
        sampler="checkpoint",
        model_name="maker/model: final, really",
    )
    text = parameters_text(params, seed=7, preprocessed=True, further={"Hires upscale": 2, "Hires upscaler": "Lanczos"})
    for read in (parse_parameters(text), read_as_a1111_does(text)):
        assert read["Denoising strength"] == "0.6"
        assert read["Clip skip"] == "2"
        assert read["Mask feather"] == "8"
        assert read["Guidance interval"] == "0.2-0.8"
        assert read["Deep cache"] == "3"
        assert read["Sampler"] == "Checkpoint"
        assert "Schedule type" not in read
        assert read["Model"] == "maker/model: final, really"
        assert read["Hires upscale"] == "2"
        assert read["Hires upscaler"] == "Lanczos"
        units = [dict(item.split(": ") for item in read[f"ControlNet {i}"].split(", ")) for i in (0, 1)]
        assert [unit["Model"] for unit in units] == ["canny", "depth"]
        assert [unit["Module"] for unit in units] == ["canny", "depth"]
        assert [unit["Weight"] for unit in units] == ["0.8", "1"]
        assert [unit["Guidance End"] for unit in units] == ["1", "0.5"]
    plain = parse_parameters(parameters_text(params_of("a cup"), seed=7))
    assert not plain.keys() & {"Denoising strength", "Clip skip", "Mask feather", "ControlNet 0", "Deep cache"}


@pytest.mark.parametrize("prompt", ["a red cup", *HOSTILE])
def test_loras_are_tags_behind_the_prompt(prompt: str) -> None:
    """A1111 takes them out again, wherever in the prompt they are."""
    loras = ({"name": "coffee", "scale": 0.8}, {"name": "a shoe", "scale": -1})
    text = parameters_text(params_of(prompt, "text", loras=loras), seed=7)
    for read in (parse_parameters(text), read_as_a1111_does(text)):
        tagged = split_tags(read["Prompt"])
        assert tagged.prompt.strip() == prompt.strip()
        assert [(each.name, each.scale) for each in tagged.loras] == [("coffee", 0.8), ("a shoe", -1.0)]
        assert read["Negative prompt"] == "text"
        assert read.items() >= TRUE_FIELDS.items()


def test_without_prompts_there_is_no_word_of_them() -> None:
    text = parameters_text(params_of("a secret cup\nNegative prompt: x", "a secret"), seed=7, prompts=False)
    assert "\n" not in text
    assert "secret" not in text
    assert parse_parameters(text).items() >= {**TRUE_FIELDS, "Prompt": "", "Negative prompt": ""}.items()


def test_a_text_without_fields_is_a_prompt() -> None:
    assert parse_parameters("a cup\nof: tea") == {"Prompt": "a cup\nof: tea", "Negative prompt": ""}
    assert parse_parameters("") == {"Prompt": "", "Negative prompt": ""}


@pytest.mark.parametrize("unit", ["a", "a: ", 'a: "', 'a: "\\', ", ", "a b-", "1x", "Negative prompt:\n", "\t"])
def test_a_hostile_text_is_read_in_no_time(unit: str) -> None:
    text = "x\n" + unit * (10 * MAX_TEXT // len(unit))
    began = time.perf_counter()
    parse_parameters(text)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("escape", ["\\ud800", "\\u0007", "\\u001b[2J", "\\u009b", "\\u0000"])
def test_no_escape_brings_in_what_the_text_may_not_have(escape: str) -> None:
    fields = parse_parameters(f'Steps: 2, Sampler: a, X: "a{escape}b", Seed: 3')
    assert fields["X"].replace("[2J", "") == "ab"
    json.dumps(fields, ensure_ascii=False).encode()


def test_a_reference_is_told_as_the_extension_tells_an_ip_adapter() -> None:
    reference = ReferenceSettings(adapter="style", scale=0.5, end=0.8, weights=(1.0, 0.25))
    canny = (ControlSettings(type="canny"),)
    for controls, unit in (((), "ControlNet 0"), (canny, "ControlNet 1")):
        text = parameters_text(params_of("a cup", controls=controls, reference=reference), seed=7)
        for read in (parse_parameters(text), read_as_a1111_does(text)):
            assert read[unit] == (
                "Module: ip-adapter-auto, Model: style, Weight: 0.5, Guidance Start: 0, Guidance End: 0.8, "
                "Control Mode: Balanced"
            )
            assert read["Reference weights"] == "1-0.25"
