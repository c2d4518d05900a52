"""Models with two text encoders are trained on as diffusers' own pipelines see them, and what is learnt is served."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from deployments.engine.lora.reader import read_adapter
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.files.loras import LoraFile
from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.base_networks import load_base
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.learning.adapter_layers import add_lora, load_lora_weights
from deployments.training.lora.lessons import encode_pictures, encode_prompts
from deployments.training.lora.pictures import PictureMaker
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits
from deployments.training.lora.training_run import train_lora
from tests.deployments.engine.tiny_xl import save_tiny_xl, xl_inputs
from tests.deployments.training.lora.learning.test_trainer import settings

CPU = torch.device("cpu")
PROMPTS = ["a red cup on a table", "", "a picture of a cat"]


def nothing() -> None:
    """Has nothing to stop for."""


@pytest.mark.parametrize("zeros", [True, False])
def test_prompts_and_pictures_are_those_of_diffusers_pipeline(zeros: bool, tmp_path: Path) -> None:
    folder = save_tiny_xl(tmp_path, zeros_for_nothing=zeros)
    base = load_base(ModelSpec("tiny", str(folder)), CPU, torch.float32)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.scheduler = base.sampler
    words, pooled = encode_prompts(base, PROMPTS, nothing)
    for row, prompt in enumerate(PROMPTS):
        expected, unasked, whole, unasked_whole = pipeline.encode_prompt(prompt, device=CPU)
        if not prompt:
            expected, whole = unasked, unasked_whole
        torch.testing.assert_close(words[row], expected[0])
        torch.testing.assert_close(pooled[row], whole[0])
    assert bool(words[1].any()) is not zeros
    made = PictureMaker(base, 64, 64, 5.0, nothing, 2).make(PROMPTS[:1], [3])[0]
    asked: dict[str, Any] = {"height": 64, "width": 64, "guidance_scale": 5.0, "num_inference_steps": 2}
    expected_picture = pipeline(PROMPTS[0], generator=torch.Generator().manual_seed(3), **asked).images[0]
    np.testing.assert_allclose(np.asarray(made, int), np.asarray(expected_picture, int), atol=1)


def test_what_is_learnt_is_what_diffusers_and_engines_read(source: Path, tmp_path: Path) -> None:
    folder = save_tiny_xl(tmp_path / "model")
    spec, run = ModelSpec("tiny", str(folder), native_size=64), RunFolder(tmp_path / "run")
    asked, limits = settings(steps=3, layers="all", sample_every=2), TrainingLimits()
    found = train_lora(run, read_examples(source, asked, limits), asked, spec, limits, device="cpu")
    assert found.drift is not None
    assert found.drift > 0
    assert len(run.read_losses()) == 3
    assert [path.name for path in run.list_samples()] == ["000002-00.png", "000003-00.png"]
    adapter = read_adapter(LoraFile("cup", str(run.lora)), run.lora)
    assert any("conv1" in layer for layer in adapter.layers["unet"])

    base = load_base(spec, CPU, torch.float32)
    add_lora(base.unet, asked.rank, asked.layers, asked.seed)
    state = torch.load(run.checkpoint, weights_only=True)
    load_lora_weights(base.unet, state["weights"])
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    words = torch.randn(2, 77, base.text_width)
    given, added = (torch.randn(2, 4, 8, 8), torch.tensor([500, 20]), words), {"added_cond_kwargs": xl_inputs(2)}
    with torch.no_grad():
        before = pipeline.unet(*given, **added).sample
        pipeline.load_lora_weights(str(run.lora.parent), weight_name=run.lora.name)
        after = pipeline.unet(*given, **added).sample
        torch.testing.assert_close(base.unet(*given, **added).sample, after)
    assert not torch.allclose(before, after, atol=1e-6)


def test_a_model_that_lacks_one_of_its_texts_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_xl(tmp_path)
    (folder / "tokenizer_2").rename(tmp_path / "hidden")
    with pytest.raises(ModelLoadError, match="tokenizer_2"):
        load_base(ModelSpec("tiny", str(folder)), CPU, torch.float32)


def test_a_vae_that_wants_more_than_half_precision_gets_it_while_it_encodes(tmp_path: Path) -> None:
    base = load_base(ModelSpec("tiny", str(save_tiny_xl(tmp_path))), CPU, torch.float16)
    base.vae.register_to_config(force_upcast=True)
    seen: list[torch.dtype] = []
    base.vae.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    latents = encode_pictures(base, [Image.new("RGB", (64, 64), "red")], nothing)
    assert (seen, latents.dtype, base.vae.dtype) == ([torch.float32], torch.float16, torch.float16)
    assert bool(latents.isfinite().all())
