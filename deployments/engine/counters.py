"""What an engine has done, in numbers."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What the engine has done since it started. `unet_rows` counts real rows, `padded_rows` what was computed."""

    unet_calls: int = 0
    unet_rows: int = 0
    padded_rows: int = 0
    images: int = 0
    requests: int = 0
    failures: int = 0
    cancelled: int = 0
    refused: int = 0
    denoise_seconds: float = 0.0
