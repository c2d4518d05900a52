"""The subject of the GPU bench, its forecasts, and the meters that its parts share.

Milliseconds are medians from idle device to idle device.
"""

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from bench.checkpoints import Architecture, write_controlnet
from bench.engine.contenders import Outcome, Pipelines, serve_with_engine
from bench.engine.workload import CONTROL, request
from bench.timing import median_ms
from deployments.engine.cuda.networks import Backend
from deployments.engine.engine import Engine
from deployments.engine.lora.adapter import Adapter
from deployments.engine.models.attention import sample_inputs
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.engine_config import EngineConfig, EngineOptions
from deployments.engine.protocol.events import Event
from deployments.engine.protocol.files.loras import LoraFile
from deployments.engine.protocol.request import Request
from deployments.engine.worker.compilation import compile_networks

# A model of one H200 from before the first measurement, all of it exact fp16 with CUDA graphs and fused kernels.
FORECAST_CEILING_TFLOPS = 790.0
FORECAST_UNET_MS = {2: 5.7, 4: 9.7, 8: 17.4, 16: 32.4, 32: 62.0}
FORECAST_VAE_MS = {"eager": 24.0, "compiled": 7.5}
FORECAST_IMAGES_PER_SECOND = {20: 11.5, 50: 4.9}
FORECAST_LORAS_SHARE = {"eager": 0.80, "captured": 0.92}

ENGINE_ROWS = 16
PIPELINE_BATCH = 8


@dataclass
class Subject:
    """What is measured. `compiled` is how a user of diffusers compiles a network, `backend` is what ours are compiled
    with; `ceiling` is filled in by the part `gemm`, TFLOP/s.
    """

    model: LoadedModel
    folder: Path
    architecture: Architecture
    rows: tuple[int, ...]
    steps: tuple[int, ...]
    images: int
    gemm_size: int
    compiled: Callable[[Any], Any]
    backend: Backend = "inductor"
    ceiling: float | None = None
    _pipelines: Pipelines | None = field(default=None, repr=False)

    @property
    def pipelines(self) -> Pipelines:
        if self._pipelines is None:
            self._pipelines = Pipelines(self.folder, self.model)
        return self._pipelines

    @cached_property
    def controlled(self) -> LoadedModel:
        """The same checkpoint with a ControlNet of random weights beside it."""
        folder = self.folder / "controlnet"
        write_controlnet(self.folder, folder, self.model.dtype)
        spec = replace(self.model.spec, controlnets={CONTROL: str(folder)})
        return load_model(spec, self.model.device, self.model.dtype)

    @cached_property
    def compiled_model(self) -> LoadedModel:
        """The same checkpoint as a server loads and warms it up: its networks run compiled."""
        parts = Components(self.model.device, self.model.dtype, compile_with=self.backend)
        model = load_model(self.model.spec, self.model.device, self.model.dtype, parts, self.model.attention)
        compile_networks(model)
        return model

    @property
    def options(self) -> EngineOptions:
        """An engine's settings, as the server's worker makes them for this device."""
        return EngineConfig(max_rows=ENGINE_ROWS).complete(self.model.device.type).options

    def requests(self, count: int, steps: int) -> list[Request]:
        """Guided requests at the model's native size."""
        return [
            request(
                self.model.spec,
                f"image-{steps}-{index}",
                prompt=f"a picture of number {index}",
                seed=index,
                steps=steps,
                sampler="dpmpp_2m",
                guidance=7.5,
                size=None,
            )
            for index in range(count)
        ]

    def share(self, tflops: float) -> float | None:
        return None if self.ceiling is None else round(tflops / self.ceiling, 3)

    def tidy(self) -> None:
        """Gives memory back between parts."""
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def tick_figures(subject: Subject, model: LoadedModel, rows: int) -> dict[str, Any]:
    figures = unet_figures(subject, model.unet, rows)
    longest = 64
    engine = Engine([model], ignored, EngineConfig(max_rows=rows, padded_sizes=(rows,)))
    try:
        for one in subject.requests(rows // 2, longest):
            engine.submit(one)
        tick = median_ms(engine.step, model.device, repeats=10)
    finally:
        engine.close()
    return figures | {"tick_ms": rounded(tick)}


def unet_figures(subject: Subject, unet: Callable[..., Any], rows: int, *, captured: bool = False) -> dict[str, Any]:
    """Times a call of `rows` rows; `captured`: as a CUDA graph, where there is CUDA."""
    device = subject.model.device
    inputs = sample_inputs(subject.model.unet, rows, device, subject.model.dtype)
    with torch.inference_mode():
        call = partial(unet, **inputs)
        milliseconds = median_ms(capture(call) if captured and device.type == "cuda" else call, device)
    tflops = rows * subject.architecture.unet_gflop / milliseconds
    return {
        "unet_ms": rounded(milliseconds),
        "ms_per_row": rounded(milliseconds / rows),
        "tflops": rounded(tflops),
        "share": subject.share(tflops),
        "forecast_ms": FORECAST_UNET_MS.get(rows),
    }


def capture(call: Callable[[], object]) -> Callable[[], object]:
    """Returns the replay of a call as a CUDA graph: the same kernels on the same tensors, without the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def decode_figures(subject: Subject, decode: Callable[..., Any], batch: int) -> dict[str, Any]:
    side = subject.model.unet.config.sample_size
    latents = torch.randn(
        (batch, subject.model.channels, side, side), device=subject.model.device, dtype=subject.model.dtype
    )
    with torch.inference_mode():
        milliseconds = median_ms(lambda: decode(latents, return_dict=False), subject.model.device)
    tflops = batch * subject.architecture.vae_gflop / milliseconds
    return {"ms": rounded(milliseconds), "ms_per_image": rounded(milliseconds / batch), "share": subject.share(tflops)}


def with_other_neighbours(value: Any) -> Any:
    """`value` with every row but the first replaced."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.cat((value[:1], (value[1:] * 0.5).flip(0)))


def serve(
    subject: Subject,
    model: LoadedModel,
    requests: Sequence[Request],
    read_adapter: Callable[[LoraFile], Adapter] | None = None,
) -> Outcome:
    """Serves `requests` as the server does: with its settings, on a thread that is the engine's own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(serve_with_engine, [model], requests, read_adapter, **subject.options).result()


def engine_speed(subject: Subject, model: LoadedModel, steps: int) -> dict[str, Any]:
    serve(subject, model, subject.requests(ENGINE_ROWS // 2, 2))
    return speed_figures(serve(subject, model, subject.requests(subject.images, steps)), steps)


def pipeline_speed(subject: Subject, batch: int, steps: int) -> dict[str, Any]:
    count = min(subject.images, 4 * batch)
    requests = subject.requests(count, steps)
    groups = [list(range(start, min(start + batch, count))) for start in range(0, count, batch)]
    subject.pipelines.serve(subject.requests(batch, 2), [list(range(batch))])
    return speed_figures(subject.pipelines.serve(requests, groups), steps)


def speed_figures(outcome: Outcome, steps: int) -> dict[str, Any]:
    return {
        "images_per_second": round(len(outcome.latencies) / outcome.seconds, 3),
        "images": len(outcome.latencies),
        "seconds": round(outcome.seconds, 3),
        "forecast": FORECAST_IMAGES_PER_SECOND.get(steps),
    }


def ignored(event: Event) -> None:
    pass


def rounded(value: float) -> float:
    return round(value, 3)
