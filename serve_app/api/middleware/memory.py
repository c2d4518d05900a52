"""Middleware that returns memory to the system after large requests and answers."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.process_memory.freed_memory import LARGE_BYTES, FreedMemory, mmap_large_blocks


class MemoryRelease:
    """Counts bytes both ways, and has freed memory returned after a request or answer of `LARGE_BYTES` or more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._freed = FreedMemory()
        mmap_large_blocks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passed = 0

        async def receive_and_count() -> Message:
            nonlocal passed
            message = await receive()
            passed += len(message.get("body", b""))
            return message

        async def send_and_count(message: Message) -> None:
            nonlocal passed
            passed += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive_and_count, send_and_count)
        finally:
            if passed >= LARGE_BYTES:
                self._freed.schedule()
