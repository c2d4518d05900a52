"""Converted networks answer as torch's do, on any thread; what cannot be converted runs on torch."""

import copy
import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from deployments.engine.checkpoints.networks import load_network
from deployments.engine.conditioning.cross_attention import CrossAttentionCache, context_width
from deployments.engine.conditioning.prompt_encoder import PromptEncoder
from deployments.engine.device.memory import CpuMemory
from deployments.engine.lora.rows.layers import layers_of
from deployments.engine.models import components as loading
from deployments.engine.models.components import Components, PartFolder, size_of
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.openvino import converted_network
from deployments.engine.openvino.conversion import Input, convert, split_gates
from deployments.engine.openvino.networks import OpenVinoUNet
from deployments.engine.openvino.runtime import OpenVinoRuntime
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.changes import overwrite
from tests.deployments.engine.embedding_files import save_embedding
from tests.deployments.engine.tiny import (
    TOKENS,
    WIDTH,
    tiny_controlnet,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
)

CPU = torch.device("cpu")
CLOSE = 1e-4


def pair(runtime: OpenVinoRuntime, network: Any) -> tuple[Any, OpenVinoUNet]:
    """A UNet on torch, and the same one on OpenVINO."""
    CrossAttentionCache(network)
    return copy.deepcopy(network), runtime.run_unet(network, "the UNet", "")


def inputs_for(unet: Any, rows: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    sample = torch.randn(rows, unet.config.in_channels, height, width, generator=generator)
    keys = torch.randn(rows, TOKENS, context_width(unet), generator=generator)
    return sample, torch.linspace(1, 999, rows), keys


def compiled_for(unet: OpenVinoUNet) -> set[object]:
    """The shapes of latents that it has programs of their own for."""
    return {key[0] for key, compiled in unet._run._programs.items() if compiled.program is not None}


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest number if that is above 1."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))


@pytest.mark.parametrize(("in_channels", "per_shape"), [(4, True), (9, False)])
def test_a_unet_answers_as_torch_does_at_any_size_with_and_without_a_controlnet(
    in_channels: int, per_shape: bool, runtime: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted_network, "STATIC_BYTES", 2**30 if per_shape else 0)
    torch_unet, unet = pair(runtime, tiny_unet(in_channels=in_channels))
    controlnet = tiny_controlnet(11)
    hint = torch.ones(3, 16, 9, 13)
    controlnet.controlnet_cond_embedding = nn.Identity()
    for rows, height, width in ((2, 8, 8), (3, 9, 13)):
        inputs = inputs_for(torch_unet, rows, height, width)
        assert distance(unet(*inputs)[0], torch_unet(*inputs, return_dict=False)[0]) < CLOSE
    down, middle = controlnet(inputs[0][:, :4], inputs[1], torch.ones(3, TOKENS, WIDTH), hint, return_dict=False)
    extra = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
    assert distance(unet(*inputs, **extra)[0], torch_unet(*inputs, **extra, return_dict=False)[0]) < CLOSE
    assert distance(unet(*inputs, **extra)[0], unet(*inputs)[0]) > 10 * CLOSE
    assert unet.backend == "openvino"


def test_a_conversion_that_answers_with_no_numbers_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert_badly(function: Any, *given: Any) -> Any:
        return convert(lambda *inputs: tuple(each * torch.nan for each in function(*inputs)), *given)

    monkeypatch.setattr(converted_network, "convert", convert_badly)
    torch_unet, unet = pair(OpenVinoRuntime(threads=1, folder=tmp_path), tiny_unet())
    inputs = inputs_for(torch_unet)
    with caplog.at_level(logging.WARNING):
        assert distance(unet(*inputs)[0], torch_unet(*inputs, return_dict=False)[0]) < CLOSE
    assert "differ from torch's by nan" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    """The folder of a VAE of the test's own."""
    tiny_vae().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def load_vae(folder: Path, converted: Path) -> Any:
    """The VAE in `folder` on OpenVINO, whose conversions are kept in `converted`."""
    components = Components(CPU, torch.float32, openvino=OpenVinoRuntime(threads=1, folder=converted))
    return components.vae(PartFolder("the VAE", "the VAE", folder))


def test_a_conversion_is_of_the_weights_that_it_is_kept_under(vae_folder: Path, tmp_path: Path) -> None:
    """Whatever was written into the file between the load and the first call, which converts."""
    picture = torch.rand(1, 3, 16, 16)
    right = tiny_vae().encode(picture).latent_dist.mean
    file = vae_folder / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    loaded = load_vae(vae_folder, tmp_path / "converted")
    overwrite(file)
    assert distance(loaded.encode(picture).latent_dist.mean, right) < CLOSE
    file.write_bytes(content)
    assert distance(load_vae(vae_folder, tmp_path / "converted").encode(picture).latent_dist.mean, right) < CLOSE


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_a_part_that_is_written_to_while_it_loads_is_refused(
    part: str, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was loaded would be kept under the digest of something else."""
    tiny_unet().save_pretrained(tmp_path / "unet")

    def load_later(title: str, source: str, folder: Path, *how: Any, **more: Any) -> Any:
        overwrite(folder / "diffusion_pytorch_model.safetensors")
        return load_network(title, source, folder, *how, **more)

    monkeypatch.setattr(loading, "load_network", load_later)
    shared = Components(CPU, torch.float32, openvino=OpenVinoRuntime(threads=1))
    load: Any = shared.vae if part == "vae" else shared.unet
    with pytest.raises(ModelLoadError, match="was changed while it was read"):
        load(PartFolder("it", "it", tmp_path / part))


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_unit_computes_its_halves_apart_and_gives_what_it_gave(bias: bool) -> None:
    unit, states = GEGLU(8, 16, bias).requires_grad_(requires_grad=False), torch.randn(2, 5, 8)
    wanted = unit(states)
    network = nn.Sequential(unit)
    with split_gates(network):
        assert distance(unit(states), wanted) < 1e-6
    assert torch.equal(unit(states), wanted)
    model = convert(lambda given: (network(given),), [Input("states", states)], network)
    # A weight that is split is a constant; what is computed is not.
    split = [op.input_value(0).get_node().get_type_name() for op in model.get_ops() if "Split" in op.get_type_name()]
    assert set(split) <= {"Constant"}


def test_a_unet_that_is_told_the_guidance_scale_answers_as_torch_does(runtime: OpenVinoRuntime) -> None:
    plain = tiny_unet()
    config = {**plain.config, "time_cond_proj_dim": WIDTH, "_use_default_values": []}
    told = type(plain).from_config(config).eval().requires_grad_(False)
    torch_unet, unet = pair(runtime, told)
    inputs, scales = inputs_for(torch_unet), torch.randn(2, WIDTH)
    for scale in (scales, None):
        wanted = torch_unet(*inputs, timestep_cond=scale, return_dict=False)[0]
        assert distance(unet(*inputs, timestep_cond=scale)[0], wanted) < CLOSE


def test_a_text_encoder_that_masks_padding_is_obeyed(runtime: OpenVinoRuntime) -> None:
    encoder = tiny_text_encoder(tiny_tokenizer())
    encoder.config.use_attention_mask = True
    original = copy.deepcopy(encoder)
    converted = runtime.run_text_encoder(encoder, "the text encoder", "")
    ids = torch.arange(TOKENS)[None]
    for shown in (10, TOKENS):
        mask = (torch.arange(TOKENS) < shown).long()[None]
        wanted = original(ids, attention_mask=mask, output_hidden_states=True)
        answer = converted(ids, attention_mask=mask, output_hidden_states=True)
        assert distance(answer.last_hidden_state, wanted.last_hidden_state) < CLOSE
        assert distance(answer.hidden_states[-2], wanted.hidden_states[-2]) < CLOSE
    assert converted.backend == "openvino"


def test_learnt_embeddings_stand_in_prompts_as_they_do_with_torch(runtime: OpenVinoRuntime, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    encoder = tiny_text_encoder(tokenizer)
    plain = PromptEncoder(tokenizer, copy.deepcopy(encoder), CPU, torch.float32)
    converted = PromptEncoder(tokenizer, runtime.run_text_encoder(encoder, "the text encoder", ""), CPU, torch.float32)
    file = save_embedding(tmp_path, "hat", 3)
    for prompt, clip_skip in (("a red cup", 0), ("a (hat:1.2) on the cup", 0), ("hat", 1)):
        wanted = plain.encode(prompt, clip_skip, embeddings=[file]).states
        assert distance(converted.encode(prompt, clip_skip, embeddings=[file]).states, wanted) < CLOSE
    assert converted.text_encoders[0].backend == "openvino"


def test_threads_that_call_at_the_same_time_do_not_disturb_one_another(runtime: OpenVinoRuntime) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    inputs = [inputs_for(torch_unet, rows) for rows in (2, 2, 3, 3)]
    wanted = [torch_unet(*each, return_dict=False)[0] for each in inputs]

    def call_often(index: int) -> float:
        # All answers are kept until the end: none may be overwritten by a later call.
        answers: list[Tensor] = [unet(*inputs[index])[0] for _ in range(20)]
        return max(distance(answer, wanted[index]) for answer in answers)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(call_often, range(4))) < CLOSE


class Unconvertible(nn.Module):
    """OpenVINO has no such operation."""

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = torch.special.bessel_j0(x) + x
        return answer


class Untraceable(nn.Module):
    """A trace keeps the way that the example took."""

    def forward(self, x: Tensor) -> Tensor:
        return -x if float(x.abs().sum()) > 1e4 else x


@pytest.mark.parametrize(("part", "why"), [(Unconvertible(), ""), (Untraceable(), "differ from torch's")])
def test_a_network_that_cannot_be_converted_runs_on_torch_and_is_named(
    part: nn.Module, why: str, runtime: OpenVinoRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    network = tiny_unet()
    network.conv_in = nn.Sequential(network.conv_in, part)
    torch_unet, unet = pair(runtime, network)
    sample, *others = inputs_for(torch_unet)
    inputs = (sample * 1e3, *others)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert distance(unet(*inputs)[0], torch_unet(*inputs, return_dict=False)[0]) < CLOSE
    (record,) = caplog.records
    assert record.getMessage().startswith("the UNet cannot run on OpenVINO; torch runs its UNet")
    assert why in record.getMessage()
    assert unet.backend == "torch"


def test_torch_keeps_no_second_copy_of_the_weights_and_sizes_are_as_before(
    fast_controlled: LoadedModel, tiny_controlled: LoadedModel
) -> None:
    fast_controlled.unet(*inputs_for(fast_controlled.unet))
    assert fast_controlled.deep_cache is not None
    shallow = {weight for module in fast_controlled.deep_cache.modules for weight in module.parameters()}
    weights = list(fast_controlled.unet.named_parameters())
    # Keys of prompts are made by torch, outside the loop; what a shallow call runs is converted when there is one. What
    # gains of LoRAs do depends on biases.
    kept = {name for name, weight in weights if ".projection." in name or weight in shallow}
    kept |= {f"network.{path}.bias" for path in layers_of(fast_controlled.unet.network)}
    assert all(weight.is_meta != (name in kept) for name, weight in weights)
    assert fast_controlled.bytes == tiny_controlled.bytes


def test_meters_see_what_a_call_needs(fast_controlled: LoadedModel) -> None:
    peaks = []
    for rows in (4, 8):
        inputs = inputs_for(fast_controlled.unet, rows)
        fast_controlled.unet(*inputs)
        with CpuMemory().meter() as meter:
            fast_controlled.unet(*inputs)
        peaks.append(meter.peak)
    assert peaks[0] > 10 * inputs[0].nbytes
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.1)


def test_models_share_networks_and_an_evicted_one_takes_what_was_compiled_with_it(
    tiny_checkpoint: Path, tiny_checkpoint_9: Path, runtime: OpenVinoRuntime
) -> None:
    specs = [ModelSpec("a", str(tiny_checkpoint)), ModelSpec("b", str(tiny_checkpoint_9))]
    manager = DiffusionModelManager(specs, CPU, torch.float32, budget_bytes=1, openvino=runtime)
    a, b = manager.acquire("a"), manager.acquire("b")
    assert a.vae is b.vae
    assert manager.bytes == a.bytes + size_of(b.unet)
    a.unet(*inputs_for(a.unet))
    gone = [weakref.ref(each) for each in (a.unet, *(compiled.program for compiled in a.unet._run._programs.values()))]
    assert len(gone) == 2
    del a
    manager.release("a")
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_the_programs_for_shapes_that_are_not_used_any_more_are_dropped(
    runtime: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted_network, "KEPT_BYTES", 0)
    monkeypatch.setattr(converted_network, "FEWEST_PROGRAMS", 2)
    torch_unet, unet = pair(runtime, tiny_unet())
    for rows in (1, 2, 3):
        unet(*inputs_for(torch_unet, rows))
    assert [key[0] for key in unet._run._programs] == [(2, 4, 8, 8), (3, 4, 8, 8)]


def test_a_small_network_stays_compiled_for_more_shapes_than_a_large_one(
    runtime: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, small = pair(runtime, tiny_unet())
    monkeypatch.setattr(converted_network, "KEPT_BYTES", 2 * size_of(small.network))
    monkeypatch.setattr(converted_network, "FEWEST_PROGRAMS", 1)
    _, unet = pair(runtime, tiny_unet())
    assert unet._run._programs.maxsize == 2


def test_calls_go_on_while_another_shape_is_compiled_and_all_who_want_it_share_it(
    runtime: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    known, new = inputs_for(torch_unet, 2), inputs_for(torch_unet, 3)
    unet(*known)
    begun, may_end, compiled = threading.Event(), threading.Event(), []
    compile_one = unet._run._compile

    def compile_slowly(model: Any, shapes: Any, **named: Any) -> Any:
        compiled.append(shapes[0][0])
        begun.set()
        assert may_end.wait(60)
        return compile_one(model, shapes, **named)

    monkeypatch.setattr(unet._run, "_compile", compile_slowly)
    with ThreadPoolExecutor(2) as threads:
        beforehand = threads.submit(unet.compile_for, 3, 8, 8, TOKENS)
        assert begun.wait(60)
        waiting = threads.submit(unet, *new)
        assert distance(unet(*known)[0], torch_unet(*known, return_dict=False)[0]) < CLOSE
        assert not waiting.done()
        may_end.set()
        beforehand.result()
        assert distance(waiting.result()[0], torch_unet(*new, return_dict=False)[0]) < CLOSE
    assert compiled == [3]


def test_a_call_of_a_shape_that_nobody_foresaw_does_not_wait_until_it_is_compiled(
    runtime: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    unet.compile_for(1, 8, 8, TOKENS, for_all=True)
    may_end, compile_one = threading.Event(), unet._run._compile
    compiled: list[str] = []

    def compile_slowly(model: Any, shapes: Any, **named: Any) -> Any:
        compiled.append(threading.current_thread().name)
        assert may_end.wait(60)
        return compile_one(model, shapes, **named)

    monkeypatch.setattr(unet._run, "_compile", compile_slowly)
    inputs = inputs_for(torch_unet, 3, 12, 20)
    expected = torch_unet(*inputs, return_dict=False)[0]
    for _ in range(2):
        assert distance(unet(*inputs)[0], expected) < CLOSE
    assert (3, 4, 12, 20) not in compiled_for(unet)
    may_end.set()
    unet._compiler._threads.submit(lambda: None).result(timeout=60)
    assert (3, 4, 12, 20) in compiled_for(unet)
    assert compiled == ["compile-unforeseen_0"]
    assert distance(unet(*inputs)[0], expected) < CLOSE


def test_an_exact_call_waits_for_the_program_of_its_shape(runtime: OpenVinoRuntime) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    unet.compile_for(1, 8, 8, TOKENS, for_all=True)
    with unet.exact_calls():
        unet(*inputs_for(torch_unet, 3))
    assert (3, 4, 8, 8) in compiled_for(unet)


def test_a_shape_that_could_not_be_compiled_is_tried_again(
    runtime: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_unet, unet = pair(runtime, tiny_unet())
    unet(*inputs_for(torch_unet, 2))
    inputs = inputs_for(torch_unet, 3)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("not now")

    with monkeypatch.context() as patched:
        patched.setattr(unet._run, "_compile", fail)
        with pytest.raises(RuntimeError, match="not now"):
            unet(*inputs)
    assert distance(unet(*inputs)[0], torch_unet(*inputs, return_dict=False)[0]) < CLOSE


def test_a_model_without_openvino_says_torch(tiny_controlled: LoadedModel) -> None:
    assert tiny_controlled.backend == "torch"


def test_a_second_model_of_the_same_weights_is_not_converted_again(
    fast_controlled: LoadedModel, components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_controlled.unet(*inputs_for(fast_controlled.unet))

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(converted_network, "convert", refuse)
    again = load_model(fast_controlled.spec, CPU, torch.float32, components)
    inputs = inputs_for(again.unet)
    assert distance(again.unet(*inputs)[0], fast_controlled.unet(*inputs)[0]) == 0
    assert again.backend == "openvino"
