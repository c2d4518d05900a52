"""openvino-genai's own pipelines behind a small HTTP server, one picture at a time. Runs in an environment of its own.

Its samplers are fewer than diffusers'. A request of another is made with `euler`, which evaluates the UNet as often;
the picture is then not the one that was asked for, but it takes the same time.

    python -m bench.online.peers.genai_server FOLDER PORT
"""

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino
import openvino_genai
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image

from bench.engine.pipelines import restore_unmasked
from bench.online.messages import PEERS_HEALTH, PEERS_PATH, png_of, read_request
from bench.online.peers.genai_export import export
from bench.online.traffic import spec
from deployments.engine.protocol import request as engine_request
from deployments.engine.protocol.inputs import ImageArray

CLIENT_LEFT: Final = 499

_TYPES: Final = openvino_genai.Scheduler.Type
SAMPLERS: Final = {
    "ddim": _TYPES.DDIM,
    "euler": _TYPES.EULER_DISCRETE,
    "euler_a": _TYPES.EULER_ANCESTRAL_DISCRETE,
}


class GenaiPipelines:
    """The three pipelines around one copy of the networks, in fp32 as all contenders."""

    def __init__(self, folder: Path) -> None:
        inpaint = openvino_genai.InpaintingPipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
        self._pipelines = {
            "inpaint": inpaint,
            "image-to-image": openvino_genai.Image2ImagePipeline(inpaint),
            "text-to-image": openvino_genai.Text2ImagePipeline(inpaint),
        }
        self._settings = folder / "scheduler" / "scheduler_config.json"

    def file(self, request: engine_request.Request) -> bytes:
        """Returns the PNG file of `request`."""
        pipeline, params = self._pipelines[request.inputs.task], request.params
        sampler = SAMPLERS.get(str(params.sampler), _TYPES.EULER_DISCRETE)
        pipeline.set_scheduler(openvino_genai.Scheduler.from_config(self._settings, sampler))
        assert params.seed is not None
        made = pipeline.generate(
            params.prompt,
            *_images(request),
            generator=openvino_genai.TorchGenerator(params.seed),
            guidance_scale=params.guidance_scale,
            num_inference_steps=params.num_inference_steps,
            **_settings(request),
        )
        image: ImageArray = np.array(made.data[0])
        return png_of(restore_unmasked(Image.fromarray(image), request))


def build(pipelines: GenaiPipelines) -> FastAPI:
    """Builds the server: callers take turns in the order in which they came."""
    app, turn = FastAPI(), asyncio.Lock()

    @app.post(PEERS_PATH)
    async def generate(request: Request) -> Response:
        asked = read_request(await request.body())
        async with turn:
            if await request.is_disconnected():
                return Response(status_code=CLIENT_LEFT)
            return Response(await asyncio.to_thread(pipelines.file, asked), media_type="image/png")

    @app.get(PEERS_HEALTH)
    async def health() -> str:
        return "ok"

    return app


def _images(request: engine_request.Request) -> list[openvino.Tensor]:
    """The image and the mask as openvino-genai takes them, [1, H, W, 3]."""
    image, mask = request.inputs.image, request.inputs.mask
    arrays = [] if image is None else [image]
    if mask is not None:
        arrays.append(np.repeat(mask[:, :, None], 3, axis=2))
    return [openvino.Tensor(np.ascontiguousarray(array[None])) for array in arrays]


def _settings(request: engine_request.Request) -> dict[str, Any]:
    params = request.params
    settings: dict[str, Any] = {"width": params.width, "height": params.height}
    if params.guidance_scale > 1:
        settings["negative_prompt"] = params.negative_prompt
    if params.strength is not None:
        settings["strength"] = params.strength
    return settings


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    export(Path(spec().source), folder)
    uvicorn.run(build(GenaiPipelines(folder)), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
