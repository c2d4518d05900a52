"""Runs the networks of a process through OpenVINO."""

from pathlib import Path
from typing import Any

from deployments.engine.conditioning.controlnet import ControlNet
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.converted_network import Origin
from deployments.engine.openvino.networks import (
    OpenVinoControlNet,
    OpenVinoHintEmbedder,
    OpenVinoUNet,
    OpenVinoVae,
)
from deployments.engine.openvino.text_encoder import OpenVinoTextEncoder


class OpenVinoRuntime:
    """Takes torch networks, and returns what runs in their place; on `threads` threads, all in fp32."""

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        """`folder` keeps converted networks for later starts; without it they are converted at each."""
        self.folder = folder
        self._compiler = Compiler(threads, folder)

    def run_unet(self, unet: Any, title: str, digest: str) -> OpenVinoUNet:
        """Returns `unet`, whose prompts are an input already, to run here.

        `title` names it in messages, and `digest` is of its weights; so it is for the others.
        """
        return OpenVinoUNet(self._compiler, Origin(title, digest), unet)

    def run_vae(self, vae: Any, title: str, digest: str) -> OpenVinoVae:
        """Returns `vae` to run here."""
        return OpenVinoVae(self._compiler, Origin(title, digest), vae)

    def run_text_encoder(self, text_encoder: Any, title: str, digest: str) -> OpenVinoTextEncoder:
        """Returns `text_encoder` to run here."""
        return OpenVinoTextEncoder(self._compiler, Origin(title, digest), text_encoder)

    def run_controlnet(self, net: ControlNet, title: str, digest: str) -> None:
        """Lets both networks of `net` run here."""
        origin = Origin(title, digest)
        net.network = OpenVinoControlNet(self._compiler, origin, net.network)
        net.embedder = OpenVinoHintEmbedder(self._compiler, origin, net.embedder)
