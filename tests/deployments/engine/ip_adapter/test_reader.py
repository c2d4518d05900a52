"""IP-Adapters' files: what is read is what diffusers reads, and what cannot be applied exactly is refused by reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deployments.engine.conditioning.cross_attention import CrossAttentionCache
from deployments.engine.ip_adapter.image_projection import build_projection
from deployments.engine.ip_adapter.reader import IpAdapterWeights, read_ip_adapter
from deployments.engine.protocol.errors import ModelLoadError
from tests.deployments.engine.changes import overwrite
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import (
    EMBEDDING,
    STATES,
    attention_state,
    plain_state,
    plus_state,
)
from tests.deployments.engine.tiny import tiny_unet
from tests.deployments.engine.tiny_xl import tiny_xl_unet

State = dict[str, Tensor]


def read(state: State, folder: Path, unet: torch.nn.Module | None = None) -> IpAdapterWeights:
    path = folder / "adapter.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return read_ip_adapter("it", path, CrossAttentionCache(unet or tiny_unet()).shapes)


def part(state: State, start: str) -> State:
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_the_projection_is_that_of_diffusers_loader(kind: str, tmp_path: Path) -> None:
    unet = tiny_unet()
    state = plain_state(unet, 5) if kind == "plain" else plus_state(unet, 5)
    given = torch.randn((2, EMBEDDING) if kind == "plain" else (2, 17, STATES))
    theirs = unet._convert_ip_adapter_image_proj_to_diffusers(part(state, "image_proj."), low_cpu_mem_usage=False)
    ours = read(state, tmp_path).projection.eval()
    with torch.inference_mode():
        assert torch.equal(ours(given), theirs.eval()(given))


@pytest.mark.parametrize("xl", [False, True])
def test_the_layers_are_in_the_order_of_the_keys(xl: bool, tmp_path: Path) -> None:
    unet = tiny_xl_unet() if xl else tiny_unet()
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    state = plain_state(unet, 5)
    wanted = [
        state[f"ip_adapter.{place}.to_{kind}_ip.weight"]
        for place, name in enumerate(names)
        for kind in "kv"
        if name.endswith("attn2")
    ]
    own = CrossAttentionCache(unet)
    assert [name for name in own._projections if name.endswith("to_k")] == [
        f"{name}.to_k" for name in names if name.endswith("attn2")
    ]
    path = tmp_path / "adapter.safetensors"
    save_file(state, path)
    found = read_ip_adapter("it", path, own.shapes).attention
    assert len(found) == len(wanted)
    assert all(map(torch.equal, found, wanted))


def face_id(state: State) -> State:
    names = ("proj.0.weight", "proj.0.bias", "proj.2.weight", "proj.2.bias", "norm.weight", "norm.bias")
    loras = {f"ip_adapter.{place}.to_q_lora.down.weight": torch.zeros(2, 3) for place in range(6)}
    return {f"image_proj.{name}": torch.zeros(3, 3) for name in names} | attention_state(tiny_unet(), 1) | loras


def face_id_portrait(state: State) -> State:
    """Without LoRAs."""
    return {name: tensor for name, tensor in face_id(state).items() if "lora" not in name}


def face_id_plus(state: State) -> State:
    return face_id_portrait(state) | {"image_proj.perceiver_resampler.proj_in.weight": torch.zeros(3, 3)}


def full_face(state: State) -> State:
    names = ("proj.0.weight", "proj.0.bias", "proj.2.weight", "proj.2.bias", "proj.3.weight", "proj.3.bias")
    return {f"image_proj.{name}": torch.zeros(3, 3) for name in names} | attention_state(tiny_unet(), 1)


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


def with_more(name: str) -> Callable[[State], State]:
    return lambda state: state | {name: torch.zeros(2, 2)}


def reshaped(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: state | {name: torch.zeros(shape)}


def halved_tokens(state: State) -> State:
    names = ("image_proj.proj.weight", "image_proj.proj.bias")
    return state | {name: state[name][: len(state[name]) // 2] for name in names}


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "FaceID": (face_id, "FaceID"),
    "FaceID without LoRAs": (face_id_portrait, "FaceID, which needs a face recogniser's"),
    "FaceID Plus": (face_id_plus, "FaceID Plus"),
    "full face": (full_face, "full-face"),
    "a LoRA": (lambda _: {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "as an IP-Adapter's file has"),
    "another layer": (with_more("ip_adapter.9.to_k_ip.weight"), "layers of cross-attention"),
    "a layer less": (without("ip_adapter.1.to_v_ip.weight"), "layers of cross-attention"),
    "something in attention": (with_more("ip_adapter.1.gate"), "that no IP-Adapter has"),
    "something beside": (with_more("more.weight"), "that no IP-Adapter has"),
    "something in the projection": (with_more("image_proj.more.weight"), "neither a plain nor a plus"),
    "no norm": (without("image_proj.norm.weight"), "other shapes"),
    "no bias": (without("image_proj.norm.bias"), "lacks weights"),
    "two tokens": (halved_tokens, "other shapes"),
    "another width": (reshaped("ip_adapter.1.to_k_ip.weight", 32, 16), "another base model"),
    "whole numbers": (lambda s: s | {"image_proj.norm.bias": torch.zeros(32, dtype=torch.int32)}, "floating-point"),
}

REFUSED_PLUS: dict[str, tuple[Callable[[State], State], str]] = {
    "a block less": (lambda s: {n: t for n, t in s.items() if ".layers.3." not in n}, "lacks weights"),
    "a block more": (with_more("image_proj.layers.4.0.to_q.weight"), "neither a plain nor a plus"),
    "odd heads": (reshaped("image_proj.layers.0.0.to_q.weight", 100, 64), "other shapes"),
    "other widths": (reshaped("image_proj.layers.2.0.to_q.weight", 64, 64), "do not fit one another"),
    "many tokens": (lambda _: plus_state(tiny_unet(), 5, tokens=17), "17 tokens"),
}


@pytest.mark.parametrize("case", [*REFUSED, *REFUSED_PLUS])
def test_what_cannot_be_applied_exactly_is_refused_by_reason(case: str, tmp_path: Path) -> None:
    change, reason = (REFUSED | REFUSED_PLUS)[case]
    state = plus_state(tiny_unet(), 5) if case in REFUSED_PLUS else plain_state(tiny_unet(), 5)
    with pytest.raises(ModelLoadError, match=reason) as raised:
        read(change(state), tmp_path)
    assert raised.value.message.startswith("it")


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="layers of cross-attention, and this model's has"):
        read(plain_state(tiny_xl_unet(), 5), tmp_path)


def test_a_file_that_is_cut_off_or_pickled_is_refused(tmp_path: Path) -> None:
    layers = CrossAttentionCache(tiny_unet()).shapes
    path = tmp_path / "adapter.safetensors"
    save_file(plain_state(tiny_unet(), 5), path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelLoadError, match="cut off"):
        read_ip_adapter("it", path, layers)
    torch.save({}, path)
    with pytest.raises(ModelLoadError, match="pickle"):
        read_ip_adapter("it", path, layers)


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_an_adapter_stays_as_it_was_read_when_its_file_is_written_to(kind: str, tmp_path: Path) -> None:
    unet = tiny_unet()
    found = read(plain_state(unet, 5) if kind == "plain" else plus_state(unet, 5), tmp_path)
    tensors = [*found.attention, *found.projection.state_dict().values()]
    before = [tensor.clone() for tensor in tensors]
    overwrite(tmp_path / "adapter.safetensors")
    assert all(map(torch.equal, tensors, before))


def test_weights_are_taken_as_they_are() -> None:
    state = part(plain_state(tiny_unet(), 5), "image_proj.")
    built = build_projection(state)
    assert torch.equal(built.state_dict()["image_embeds.weight"], state["proj.weight"])
