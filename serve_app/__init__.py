"""Darkroom's front: `DiffusionService` in a plain Python process, and the HTTP application over it. No torch here."""

from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.protocol.spec import ModelSpec
from serve_app.generation.result import Result
from serve_app.image_processor import ImageProcessor
from serve_app.service import DiffusionService

__all__ = [
    "ControlSettings",
    "DiffusionService",
    "EngineError",
    "GenerationParams",
    "ImageProcessor",
    "ModelSpec",
    "Result",
]
