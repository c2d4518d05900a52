"""Holds models in memory for the requests that use them, and loads those that are not there, off the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.protocol.request import Request
from deployments.engine.worker.model_loading import acquire_model

# One model loads at a time; other loads wait.
_LOADERS = 2


class ModelAccess:
    """Lends the models of `manager` to requests. `send` passes messages to the engine's thread."""

    def __init__(
        self,
        manager: DiffusionModelManager,
        send: Callable[[Callable[[Engine], object]], object],
        prepare_thread: Callable[[], object],
    ) -> None:
        """`prepare_thread` is called first on each thread that loads."""
        self._manager = manager
        self._send = send
        # A pool of their own: callers of a model that is not there wait here, and no other work must wait with them.
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="load-model", initializer=prepare_thread)

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[LoadedModel]:
        """Holds the model in memory; loads it, off the engine's thread, if it is not there."""
        model = self._manager.acquire_loaded(name) or await self._acquire(name)
        try:
            yield model
        finally:
            self._manager.release(name)

    def close(self) -> None:
        """Ends the threads. A load that runs is finished first."""
        self._loaders.shutdown(wait=False)

    async def _acquire(self, name: str) -> LoadedModel:
        """Acquires the model on a thread.

        A caller that leaves meanwhile neither stops the load nor keeps the model in use.
        """
        manager, loop = self._manager, asyncio.get_running_loop()
        loading = loop.run_in_executor(self._loaders, acquire_model, manager, name, self._send)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(lambda done: manager.release(name) if done.exception() is None else None)
            raise


async def check_sampler(request: Request, model: LoadedModel) -> None:
    """Has the request's sampler checked off the engine's thread, which asks for the verdict next."""
    assert request.params.sampler is not None
    samplers = model.samplers.of(request.pipeline)
    if not samplers.is_checked(request.params.sampler):
        await asyncio.to_thread(samplers.refusal, request.params.sampler)
