"""The one Ray Serve deployment class: an engine behind a handle. One deployment per entry of the configuration."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from deployments.annotators.catalogue import NO_NETWORKS, Annotators
from deployments.annotators.spec import AnnotatorSpecs
from deployments.engine.calibration.usable_cores import usable_cores
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.events import Event, Failed, Finished, ImageDone
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.report import EngineReport, TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec, UpscalerSpec
from deployments.metrics import engine_samples
from deployments.process_memory.garbage_collection import collector_paused
from deployments.ray_metrics import Publisher
from deployments.replica_port import bind_to_loopback
from deployments.serve_log import log_through_serve
from deployments.sharing.spec import SharingSpec
from deployments.throughput import RateMeter
from deployments.uploads.enlarging import PictureEnlarger
from deployments.uploads.intake import Intake
from deployments.watermark.methods import load_method
from deployments.weights.local_files import local_digest_of

if TYPE_CHECKING:
    from deployments.engine.worker.engine_worker import EngineWorker
    from deployments.sharing.state_sharing import StateSharing

log = logging.getLogger(__name__)

EXIT_DEVICE_LOST = 70


class ModelReplica:
    """One engine, the models that it hosts, and the annotators and upscalers that work on pictures for them.

    The constructor loads and warms up what it is to preload, so a replica that Serve counts as ready is warm. Its
    annotators load at their first use.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        config: EngineConfig,
        annotators: AnnotatorSpecs = NO_NETWORKS,
        upscalers: Sequence[UpscalerSpec] = (),
        watermark_method: str | None = None,
        sharing: SharingSpec | None = None,
        preload: Literal["all", "first"] = "all",
        version: str = "",
    ) -> None:
        """`preload` says whether all models are loaded at once, or the first, and the others when they are asked for.
        `watermark_method` is what pictures will be marked with, if they will be. With `sharing`, replicas share the
        early states that images leave for others. `version` is of what the images of these engines depend on.

        Raises ValueError if the method, or a secret of the sharing, is not there: better than after the work of the
        first picture.
        """
        bind_to_loopback()
        log_through_serve("deployments")
        if watermark_method is not None:
            load_method(watermark_method)
        if sharing is not None:
            sharing.read_secrets()
            # As this process finds them: it may have started after they were replaced.
            sharing = sharing.for_files([local_digest_of(spec) for spec in specs])
        # Imported here, in the replica's process: the ingress and the driver import this module and must stay light.
        with collector_paused():
            from deployments.engine.worker.engine_worker import EngineWorker

        if config.threads is None:
            # Ray has set OMP_NUM_THREADS to num_cpus, which is how it counts replicas and not what one may use.
            config = replace(config, threads=usable_cores())
        # The request was copied on its way here, files included.
        self._intake = Intake(Annotators(annotators, config.device, end_process), owns_files=True)
        first = specs[0].name if preload == "first" else None
        self._worker = worker = EngineWorker.load(
            specs, config, first=first, upscalers=upscalers, on_device_lost=end_process
        )
        self._enlarger = PictureEnlarger(worker.upscalers)
        self._version = version
        self._work_rate = RateMeter()
        self._sharing = None if sharing is None else share_states(sharing, worker)
        self._publisher = Publisher(lambda: engine_samples(self._report()))

    async def generate(self, request: Request, version: str = "") -> AsyncGenerator[Event, None]:
        """Yields the request's events. Cancelling or closing it early frees its rows before the next step.

        `version` is that of the engines that the caller knows of.
        """
        finished = False
        try:
            ready = await self._intake.decode(request, self._worker)
            async with aclosing(self._worker.generate(ready)) as events:
                async for event in events:
                    finished = isinstance(event, Finished | Failed)
                    if isinstance(event, ImageDone) and version != self._version:
                        event = replace(event, is_current=False)
                    yield event
        except EngineError as error:
            finished = True
            yield Failed(request.id, error)
        except asyncio.CancelledError:
            log.info("request %s: the caller left", request.id)
            raise
        finally:
            # Aborted twice, because a leaked request costs seconds of a GPU and a repeated abort costs nothing.
            if not finished:
                self._worker.abort(request.id)

    async def abort(self, request_id: str) -> None:
        """Cancels a request, if it is here. Sent to all replicas by a caller that does not know which has it."""
        self._worker.abort(request_id)

    async def cancel(self, name: str, tenant: str) -> bool:
        """Cancels that tenant's requests of this name, and tells their callers.

        Returns False if there are none here.
        """
        return self._worker.cancel(name, tenant)

    async def forget_states(self) -> None:
        """Forgets the states that images have left for others."""
        self._worker.states.clear()

    async def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        """Counts the tokens of the request's prompts, the negative one second. Raises EngineError."""
        return await asyncio.to_thread(self._worker.count_tokens, request)

    async def make_hints(self, request: Request) -> tuple[bytes, ...]:
        """Makes the hints that the request's ControlNets would get, as PNG files. Raises EngineError."""
        return await self._intake.make_hints(request, self._worker)

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """Enlarges a picture by an upscaler. Returns a PNG file. Raises EngineError."""
        return await self._enlarger.enlarge(enlargement)

    async def report(self) -> EngineReport:
        """Returns the engine's report."""
        return self._report()

    async def check_health(self) -> None:
        """Raises if the engine's loop has ended or hangs; Serve then replaces the replica."""
        if not self._worker.is_alive:
            raise RuntimeError("the engine's loop makes no progress")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns what `autoscaling.WorkPolicy` adds up: the share of a full device in use, and the seconds of one that
        wait.
        """
        load = self._worker.load_now()
        return {"work": self._work_rate.update(load.worked), "backlog": load.backlog}

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Applies the settings that may change without a restart: `log_level`. All others belong in the constructor."""
        unknown = set(user_config) - {"log_level"}
        if unknown:
            raise ValueError(f"user_config may hold log_level only, got {', '.join(sorted(unknown))}")
        if "log_level" in user_config:
            logging.getLogger("deployments").setLevel(user_config["log_level"])

    def __del__(self) -> None:
        # Serve calls it once, after the drain; an interpreter that ends calls it too, also after a failed constructor.
        worker = self.__dict__.pop("_worker", None)
        if worker is not None:
            self._publisher.stop()
            worker.stop()
            self._intake.close()
            self._enlarger.close()
            if self._sharing is not None:
                self._sharing.close()

    def _report(self) -> EngineReport:
        report = self._worker.report()
        return report if self._sharing is None else replace(report, sharing=self._sharing.report())


def share_states(spec: SharingSpec, worker: "EngineWorker") -> "StateSharing | None":
    """Shares the worker's states; None where it keeps none."""
    # Imported in the replica's process only, as the engine is.
    from deployments.sharing.state_sharing import StateSharing

    return StateSharing(spec, worker.states) if worker.states.max_bytes else None


def end_process() -> None:
    """Ends this process at once: only a new process can use the device again, and Serve starts one.

    Nothing is cleaned up, since that would call the device. The ingress repeats the callers' requests.
    """
    logging.shutdown()
    os._exit(EXIT_DEVICE_LOST)
