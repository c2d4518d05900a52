"""Keeps what an engine has measured of its models, so that the next start on a machine like this one need not."""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from threading import Lock
from typing import Any, Final

import torch
from pydantic import ValidationError

from deployments.engine.calibration.conditions import digest, machine, settings, versions
from deployments.engine.calibration.figures import ModelFigures
from deployments.engine.calibration.kept_files import NOTHING_KEPT, KeptFiles
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.engine_config import DEFAULTS, EngineConfig
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.admission import Admission

log = logging.getLogger(__name__)

KIND: Final = "calibration"


class CalibrationKeeper:
    """Reads and writes the figures of an engine's models. All methods may be called from any thread.

    Figures hold for one kind of machine, one set of settings and versions, and one architecture: two checkpoints with
    equal networks share them, whatever their weights.
    """

    def __init__(self, kept: KeptFiles = NOTHING_KEPT, config: EngineConfig = DEFAULTS) -> None:
        self._kept = kept
        self._config = config
        self._lock = Lock()
        self._conditions: dict[str, Mapping[str, Any]] = {}
        self._written: dict[str, ModelFigures] = {}

    def restore(self, model: LoadedModel, admission: Admission) -> bool:
        """Gives `admission` the figures of `model`. Returns False if there are none, so that it must be measured."""
        name = model.spec.name
        native = Bucket(name, *model.spec.native)
        with self._lock:
            conditions = self._conditions.setdefault(name, _conditions_of(model, self._config))
        if admission.costs.has_knee(native):
            return True
        figures = self._kept.read(KIND, conditions, ModelFigures)
        if figures is None:
            return False
        admission.costs.restore(name, figures.costs)
        admission.plan.restore(name, figures.peaks)
        if admission.costs.has_knee(native):
            log.info("model %s: its speed and memory are known from an earlier start", name)
            return True
        return False

    def save(self, admission: Admission) -> None:
        """Writes the figures of every model whose knee is known, if they have changed."""
        with self._lock:
            for name, conditions in self._conditions.items():
                try:
                    figures = ModelFigures(costs=admission.costs.export(name), peaks=admission.plan.export(name))
                except ValidationError as error:  # a machine that was suspended during a call, say
                    log.warning("the figures of model %s are not kept: %s", name, error)
                    continue
                if figures.costs.knees and figures != self._written.get(name):
                    self._kept.write(KIND, conditions, figures)
                    self._written[name] = figures


def _conditions_of(model: LoadedModel, config: EngineConfig) -> dict[str, Any]:
    device: dict[str, Any] = {"type": model.device.type, "dtype": str(model.dtype), "threads": torch.get_num_threads()}
    device["backends"] = {name: version(name) for name in model.backend.split(" and ")}
    if model.device.type == "cuda":
        properties = torch.cuda.get_device_properties(model.device)
        device |= {"name": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
        device["compiled"] = model.compiled
    return {
        "machine": machine(),
        "device": device,
        "settings": settings(config),
        "versions": versions(),
        "model": digest(_architecture_of(model)),
    }


def _architecture_of(model: LoadedModel) -> dict[str, Any]:
    """Describes the networks: their classes, settings and sizes, the image size that figures are measured at, and the
    tiles that the VAE sees of larger ones.
    """
    parts = {"unet": model.unet, "vae": model.vae}
    parts |= zip(("text_encoder", "text_encoder_2"), model.prompt_encoder.text_encoders, strict=False)
    parts |= {f"controlnet {name}": net.network for name, net in model.controlnets.items()}
    return {
        "native": model.spec.native,
        "tile": model.tile,
        "attention": sorted(map(str, model.attention.kernels.items())),
        "bytes": model.bytes,
        "safety": str(model.spec.safety),
        **{name: (type(network).__name__, _config_of(network)) for name, network in parts.items()},
    }


def _config_of(network: Any) -> dict[str, Any]:
    # Names that begin with an underscore say where a network was loaded from.
    config = network.config
    described = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in described.items() if not key.startswith("_")}
