"""IP-Adapters from a hub of our own on loopback: what is fetched, and that it is enough without the hub."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from diffusers import UNet2DConditionModel

from tests.deployments.engine.ip_adapter.tiny_ip_adapters import save_ip_adapters
from tests.deployments.engine.models.hub_server import COMMIT, REPOSITORY, client_environment, serve_hub

LOAD: Final = """
import sys, torch
from deployments.engine.models.loaded_model import load_model
from deployments.engine.models.part_location import fetch_model
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec

folder, repository, commit = sys.argv[1:]
adapter = IpAdapterSpec(repository, repository, commit, "models/plus.safetensors", commit, "models/image_encoder")
spec = ModelSpec("tiny", folder, native_size=64, ip_adapters={"brand": adapter})
fetch_model(spec, torch.float32)
model = load_model(spec, torch.device("cpu"), torch.float32)
print("loaded", model.ip_adapters.begin("brand").result().tokens)
"""


def load(folder: Path, home: Path, url: str, *, offline: bool) -> str:
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(folder), REPOSITORY, COMMIT]
    environment = client_environment(home, url, offline=offline)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_its_file_and_its_image_encoder_alone_are_fetched_and_then_it_loads_offline(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    (repository / "models").mkdir(parents=True)
    save_ip_adapters(repository / "models", UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet"))
    (repository / "models" / "image_encoder" / "pytorch_model.bin").write_bytes(b"a pickle")
    with serve_hub(repository) as hub:
        assert load(tiny_checkpoint, tmp_path / "home", hub.url, offline=False) == "loaded 16"
        url = hub.url
    weights = {name for name in hub.asked if name.endswith((".safetensors", ".bin"))}
    assert weights == {"models/plus.safetensors", "models/image_encoder/model.safetensors"}
    assert load(tiny_checkpoint, tmp_path / "home", url, offline=True) == "loaded 16"
