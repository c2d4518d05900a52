"""A first use, as processes of their own: what a user sees is what a user needs to read, and nothing of libraries'."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deployments.engine.tiny import save_tiny_checkpoint, save_tiny_controlnet

ROOT = Path(__file__).parents[1]

PICTURES = """
import asyncio

from PIL import Image

from serve_app import DiffusionService, GenerationParams, ModelSpec


async def main() -> None:
    tiny = ModelSpec("tiny", {source!r}, controlnets={{"canny": {net!r}}})
    async with DiffusionService(models=[tiny], max_rows=2, threads=1, dtype={dtype!r}) as service:
        params = GenerationParams(prompt="a cup", num_inference_steps=2, seed=1)
        (picture,) = await service.generate_text_to_image(params)
        long = params.model_copy(update={{"prompt": "a (red:1.2) cup BREAK " + "on a blue background, " * 12}})
        for sampler in ("ddim", "euler_a", "dpmpp_2m", "lms", "unipc", "pndm"):
            await service.generate_text_to_image(long.model_copy(update={{"sampler": sampler}}))
        await service.generate_image_to_image(picture, params)
        await service.inpaint_image(picture, Image.new("L", picture.size, 255), params)
        await service.generate_with_controlnet(picture, params, preprocess=True)


asyncio.run(main())
"""


def run(*command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """`command` in an environment without anything that would make libraries quieter, or ours louder."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "LANG")
        if name in os.environ
    }
    env = kept | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=120, check=False)


def python(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return run(sys.executable, "-c", code, folder=folder)


def darkroom(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return run(sys.executable, "-m", "serve_app.cli", *arguments, folder=folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("first") / "tiny")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_controlnet(tmp_path_factory.mktemp("first") / "canny", seed=5)


@pytest.fixture(scope="module")
def config(source: Path) -> Path:
    hosted = {"name": "tiny", "models": ["tiny"], "device": "cpu", "threads": 1, "max_rows": 2}
    model = {"name": "tiny", "source": str(source)}
    path = source.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump({"models": [model], "deployments": [hosted]}))
    return path


def test_an_import_prints_nothing(tmp_path: Path) -> None:
    result = python("import serve_app, serve_app.app, deployments.model_deployment", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_first_pictures_in_python_print_nothing(dtype: str, source: Path, net: Path, tmp_path: Path) -> None:
    result = python(PICTURES.format(source=str(source), net=str(net), dtype=dtype), tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_first_picture_on_the_command_line_names_its_file_and_no_more(config: Path, tmp_path: Path) -> None:
    here = ("--local", "--config", str(config), "--steps", "2", "--seed", "3", "-o", "cup.png")
    result = darkroom("generate", "a cup", *here, folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "cup.png (seed 3)\n", "")


@pytest.mark.parametrize("command", [(), ("generate",), ("serve",), ("batch",), ("keys", "new"), ("k8s", "check")])
def test_help_is_all_that_help_prints(command: tuple[str, ...], tmp_path: Path) -> None:
    result = darkroom(*command, "--help", folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.lstrip().startswith("Usage: ")


def test_what_an_embedding_program_has_set_for_the_libraries_holds_afterwards(source: Path, tmp_path: Path) -> None:
    code = f"""
import logging, threading, torch, diffusers, transformers
from diffusers.utils import logging as of_diffusers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as of_transformers
from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.spec import ModelSpec

def state():
    bars = of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
    levels = [logging.getLogger(name).level for name in ("", "diffusers", "transformers", "py.warnings")]
    register, init = torch.nn.Module.register_parameter, torch.nn.init.normal_
    return bars, are_progress_bars_disabled(), levels, register, init

def load():
    load_model(ModelSpec("tiny", {str(source)!r}), torch.device("cpu"), torch.float32)

def changed_by_loading():
    before = state()
    both = [threading.Thread(target=load) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    return state() != before

found = [changed_by_loading()]
disable_progress_bars()
logging.getLogger("transformers").setLevel(logging.DEBUG)
of_diffusers.disable_progress_bar()
found.append(changed_by_loading())
print(found)
"""
    assert python(code, tmp_path).stdout == "[False, False]\n"
