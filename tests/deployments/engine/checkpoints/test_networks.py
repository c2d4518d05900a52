"""A network is loaded whole or not at all, whatever was done to its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import CLIPTextModel

from deployments.engine.checkpoints.library_networks import AutoencoderKL
from deployments.engine.checkpoints.networks import load_network
from deployments.engine.protocol.errors import ModelLoadError
from tests.deployments.engine.changes import State, overwrite
from tests.deployments.engine.tiny import tiny_text_encoder, tiny_tokenizer, tiny_vae

Change = Callable[[State, str], State]

CPU: Final = torch.device("cpu")
FILE: Final = "model.safetensors"

CHANGES: Final[dict[str, Change]] = {
    "leave one out": lambda state, key: {name: tensor for name, tensor in state.items() if name != key},
    "rename one": lambda state, key: {
        (f"{key}_old" if name == key else name): tensor for name, tensor in state.items()
    },
    "add one": lambda state, key: state | {f"adapter.{key}": state[key]},
    "flatten one": lambda state, key: state | {key: state[key].flatten()[:-1]},
    "spoil one": lambda state, key: state | {key: torch.full_like(state[key], torch.inf)},
    "make one integers": lambda state, key: state | {key: state[key].to(torch.int32)},
    "prefix all": lambda state, key: {f"text_model.{name}": tensor for name, tensor in state.items()},
    "prefix all otherwise": lambda state, key: {f"model.{name}": tensor for name, tensor in state.items()},
    "prefix one": lambda state, key: {
        (f"text_model.{name}" if name == key else name): tensor for name, tensor in state.items()
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_encoder")
    tiny_text_encoder(tiny_tokenizer()).save_pretrained(folder)
    return folder


@given(changes=st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 99)), max_size=2))
@settings(max_examples=25, deadline=None)
def test_no_weight_is_ever_made_up(changes: list[tuple[str, int]], folder: Path) -> None:
    whole = tiny_text_encoder(tiny_tokenizer()).state_dict()
    state = dict(whole)
    for name, index in changes:
        state = CHANGES[name](state, sorted(state)[index % len(state)])
    save_file({key: tensor.clone() for key, tensor in state.items()}, folder / FILE, metadata={"format": "pt"})
    try:
        network = load_network("it", "it", folder, CLIPTextModel, torch.float32, CPU, half=False)
    except ModelLoadError:
        return
    loaded = network.state_dict()
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_a_narrower_dtype_cannot_hold_are_refused(dtype: torch.dtype, folder: Path) -> None:
    whole = tiny_text_encoder(tiny_tokenizer()).state_dict()
    first = min(whole)
    save_file(whole | {first: whole[first] + 1e6}, folder / FILE, metadata={"format": "pt"})
    if dtype is torch.bfloat16:
        assert load_network("it", "it", folder, CLIPTextModel, dtype, CPU, half=True).dtype == dtype
    else:
        with pytest.raises(ModelLoadError, match=f"not finite in float16 .{first}"):
            load_network("it", "it", folder, CLIPTextModel, dtype, CPU, half=True)


@pytest.mark.parametrize("kind", [CLIPTextModel, AutoencoderKL])
def test_a_network_stays_as_it_was_loaded_when_its_file_is_written_to(kind: Any, tmp_path: Path) -> None:
    made = tiny_text_encoder(tiny_tokenizer()) if kind is CLIPTextModel else tiny_vae()
    made.save_pretrained(tmp_path)
    network = load_network("it", "it", tmp_path, kind, torch.float32, CPU, half=False)
    (file,) = tmp_path.glob("*.safetensors")
    overwrite(file)
    found = network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in made.state_dict().items())
