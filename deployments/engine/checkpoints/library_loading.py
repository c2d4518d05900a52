"""Reads weights with diffusers and transformers: one network at a time, and without what they have to say meanwhile."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging

_lock = RLock()


@contextmanager
def load_exclusively() -> Iterator[None]:
    """Every `from_pretrained` of ours is inside one.

    The libraries replace functions of torch's for the whole process while they read, and put back what they found: two
    at once would leave a replacement there. No progress bars are shown meanwhile, and nothing below errors is logged:
    what matters about a checkpoint we find out ourselves, and say which part of which model it is. Whatever our caller
    has set for these libraries holds again afterwards.
    """
    with _lock, ExitStack() as afterwards:
        # transformers' switch moves the hub's bars along with its own; what comes first here is put back last.
        if are_progress_bars_disabled():
            afterwards.callback(disable_progress_bars)
        for library in (diffusers_logging, transformers_logging):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                afterwards.callback(library.enable_progress_bar)
        for name in ("diffusers", "transformers"):
            afterwards.callback(_silence(logging.getLogger(name)))
        yield


def _silence(logger: logging.Logger) -> Callable[[], None]:
    """Keeps all else of `logger` back; what puts its level back."""
    before = logger.level
    logger.setLevel(max(before, logging.ERROR))
    return lambda: logger.setLevel(before)
