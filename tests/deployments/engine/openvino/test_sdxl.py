"""On OpenVINO Stable Diffusion XL's networks answer as torch's do, and make the pictures of diffusers."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from deployments.engine.conditioning.cross_attention import context_width
from deployments.engine.conditioning.deep_cache import DeepCache
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.openvino.converted_network import Origin
from deployments.engine.openvino.networks import OpenVinoControlNet
from deployments.engine.openvino.runtime import OpenVinoRuntime
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.harness import difference, reference_image, request_for, run
from tests.deployments.engine.openvino.test_networks import CLOSE, CPU, distance, inputs_for, pair
from tests.deployments.engine.test_kinds import control, picture
from tests.deployments.engine.tiny import TOKENS, tiny_tokenizer
from tests.deployments.engine.tiny_xl import (
    save_tiny_xl,
    tiny_second_text_encoder,
    tiny_xl_controlnet,
    tiny_xl_unet,
    xl_inputs,
)


@pytest.mark.parametrize("guidance", [None, 16])
def test_a_unet_that_is_told_texts_and_sizes_answers_as_torch_does(
    guidance: int | None, runtime: OpenVinoRuntime
) -> None:
    torch_unet, unet = pair(runtime, tiny_xl_unet(time_cond_proj_dim=guidance))
    more = {} if guidance is None else {"timestep_cond": torch.randn(3, guidance)}
    inputs, added = inputs_for(torch_unet, rows=3), {"added_cond_kwargs": xl_inputs(3)}
    wanted = torch_unet(*inputs, **added, **more, return_dict=False)[0]
    assert distance(unet(*inputs, **added, **more)[0], wanted) < CLOSE
    other = {"added_cond_kwargs": xl_inputs(3) | {"time_ids": torch.ones(3, 6)}}
    assert distance(unet(*inputs, **other, **more)[0], wanted) > 10 * CLOSE
    assert unet.backend == "openvino"
    whole, deep = DeepCache(torch_unet).run_whole(*inputs, added | more)
    shallow = DeepCache(torch_unet).run_shallow(*inputs, deep, added | more)
    assert unet.deep_cache is not None
    answer, answered_deep = unet.deep_cache.run_whole(*inputs, added | more)
    assert distance(answer, whole) < CLOSE
    assert distance(unet.deep_cache.run_shallow(*inputs, answered_deep, added | more), shallow) < CLOSE


def test_a_controlnet_that_is_told_texts_and_sizes_answers_as_torch_does(runtime: OpenVinoRuntime) -> None:
    net = tiny_xl_controlnet(61)
    net.controlnet_cond_embedding = nn.Identity()
    original = copy.deepcopy(net)
    converted = OpenVinoControlNet(runtime._compiler, Origin("the ControlNet", ""), net)
    sample, time, _ = inputs_for(net)
    context, hint, added = torch.randn(2, TOKENS, context_width(original)), torch.randn(2, 16, 8, 8), xl_inputs(2)
    down, middle = original(sample, time, context, hint, added_cond_kwargs=added, return_dict=False)
    own_down, own_middle = converted(sample, time, context, hint, added_cond_kwargs=added)
    assert max(distance(one, other) for one, other in zip(own_down, down, strict=True)) < CLOSE
    assert distance(own_middle, middle) < CLOSE


@pytest.mark.parametrize("end", ["own", "old"])
def test_a_second_text_encoder_answers_as_torch_does(end: str, runtime: OpenVinoRuntime) -> None:
    tokenizer = tiny_tokenizer("!")
    encoder = tiny_second_text_encoder(tokenizer)
    if end == "old":
        # Old configs name another token than the one that ends texts, which has the highest number.
        encoder.config.eos_token_id = encoder.text_model.eos_token_id = 2
    original = copy.deepcopy(encoder)
    converted = runtime.run_text_encoder(encoder, "the second text encoder", "")
    for text in ("a red cup", "a cat on the cup"):
        ids = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        wanted = original(ids, output_hidden_states=True)
        answer = converted(ids, output_hidden_states=True)
        assert distance(answer.text_embeds, wanted.text_embeds) < CLOSE
        assert distance(answer.hidden_states[-2], wanted.hidden_states[-2]) < CLOSE
    assert converted.backend == "openvino"


def test_its_pictures_are_those_of_diffusers(tmp_path: Path, runtime: OpenVinoRuntime) -> None:
    folder = save_tiny_xl(tmp_path / "xl")
    tiny_xl_controlnet(61).save_pretrained(tmp_path / "canny", safe_serialization=True)
    spec = ModelSpec("xl", str(folder), controlnets={"canny": str(tmp_path / "canny")})
    model: LoadedModel = load_model(spec, CPU, torch.float32, Components(CPU, torch.float32, openvino=runtime))
    assert model.backend == "openvino"
    asked = [
        request_for(model, "text", sampler="dpmpp_2m"),
        request_for(model, "no guidance", guidance_scale=1.0),
        request_for(model, "control", Inputs(hints=(picture(3),)), controls=(control("canny"),)),
        request_for(model, "picture", Inputs(image=picture(1)), strength=0.6),
    ]
    tape, _ = run(model, asked)
    for request in asked:
        assert difference(tape.images(request.id)[0], reference_image(folder, model, request)) <= 1, request.id
    assert model.backend == "openvino"
