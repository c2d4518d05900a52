"""For objects that one thread tells and others ask: of their methods one runs at a time. No torch here."""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner", bound="Locked")
P = ParamSpec("P")
T = TypeVar("T")


class Locked:
    """Has one lock for all that it knows. Methods that use it may call each other."""

    def __init__(self) -> None:
        self._lock = RLock()


def locked(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[Owner, P], T]:
    """`method`, waiting until no other thread is inside a locked method of the same object.

    A dictionary or deque that grows while it is walked through raises, and what was read in two looks need not fit
    together.
    """

    @wraps(method)
    def one_at_a_time(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return one_at_a_time
