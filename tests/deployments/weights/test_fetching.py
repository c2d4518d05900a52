"""A model's files are fetched whole, and tried again; from a hub: tests/serve_app/cli/test_fetch.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec, PartSpec
from deployments.weights.fetching import fetch
from tests.deployments.engine.tiny import save_tiny_checkpoint


@pytest.mark.parametrize("place", ["controlnets", "parts"])
def test_everything_that_a_model_is_made_of_is_fetched_and_tried_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there is a repository on a hub that does not answer; it comes up in the end."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, late = save_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "late"
    named = {"controlnets": "canny", "parts": "vae"}[place]
    given: dict[str, Any] = {place: {named: PartSpec(str(late), "0" * 40)}}
    spec = ModelSpec("tiny", str(folder), native_size=64, **given)
    said: list[str] = []
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            late.mkdir()

    fetch([(spec, "cpu", "float32")], {}, 5, said.append, sleep)
    assert pauses == [10.0, 20.0]
    assert [named in line for line in said] == [True, True, False]
    late.rmdir()
    with pytest.raises(ModelLoadError, match=named):
        fetch([(spec, "cpu", "float32")], {}, 1, said.append, sleep)
    assert len(pauses) == 2


def test_an_ip_adapter_is_fetched_with_its_image_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, file = save_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "brand.safetensors"
    file.touch()
    adapter = IpAdapterSpec(str(file), str(tmp_path), subfolder="encoder")
    spec = ModelSpec("tiny", str(folder), native_size=64, ip_adapters={"brand": adapter})
    with pytest.raises(ModelLoadError, match=r"its IP-Adapter 'brand', its image encoder: .* has no folder 'encoder'"):
        fetch([(spec, "cpu", "float32")], {}, 1, print)
    (tmp_path / "encoder").mkdir()
    fetch([(spec, "cpu", "float32")], {}, 1, print)
    away = replace(adapter, source="someone/adapters", revision="0" * 40, file="brand.safetensors")
    with pytest.raises(ModelLoadError, match="its IP-Adapter 'brand': the hub is out of reach"):
        fetch([(replace(spec, ip_adapters={"brand": away}), "cpu", "float32")], {}, 1, print)
