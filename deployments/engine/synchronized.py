"""Lets one method of an object run at a time, for objects that one thread updates and others read. No torch."""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner", bound="Synchronized")
P = ParamSpec("P")
T = TypeVar("T")


class Synchronized:
    """An object with one reentrant lock: its synchronized methods may call each other."""

    def __init__(self) -> None:
        self._lock = RLock()


def synchronized(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[Owner, P], T]:
    """Makes `method` wait until no other thread is inside a synchronized method of the same object.

    A dictionary or deque that grows while it is iterated over raises, and two separate reads may not agree.
    """

    @wraps(method)
    def run_locked(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return run_locked
