"""The layer that gives memory back after large requests and answers."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.freed_memory import LARGE_BYTES, FreedMemory, mmap_large_blocks


class MemoryRelease:
    """Counts what passes, and has freed memory given back after a request that was large, either way."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._freed = FreedMemory()
        mmap_large_blocks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passed = 0

        async def counting_receive() -> Message:
            nonlocal passed
            message = await receive()
            passed += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            nonlocal passed
            passed += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counting_receive, counting_send)
        finally:
            if passed >= LARGE_BYTES:
                self._freed.schedule()
