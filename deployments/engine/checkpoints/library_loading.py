"""Guards loading with diffusers and transformers: one network at a time, and without their messages."""

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
    """Locks and silences the libraries; every `from_pretrained` of ours runs inside this context.

    The libraries replace functions of torch's for the whole process while they read, and put back what they found: two
    at once would leave a replacement there. No progress bars are shown meanwhile, and nothing below errors is logged:
    our own checks report what matters about a checkpoint, and name the part and the model. The caller's own settings of
    these libraries are restored afterwards.
    """
    with _lock, ExitStack() as afterwards:
        # transformers' switch also moves the hub's bars; callbacks run in reverse, so this one runs last.
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
    """Raises the level of `logger` to errors, and returns a function that restores it."""
    before = logger.level
    logger.setLevel(max(before, logging.ERROR))
    return lambda: logger.setLevel(before)
