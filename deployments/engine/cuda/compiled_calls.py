"""Networks that run compiled where they were compiled beforehand, and as they are everywhere else.

Compiling takes a minute, and no picture may wait for that: so a call never compiles. What is to run compiled is
compiled when its model is warmed up, and calls of any other kind are made by the network itself.
"""

import copy
import logging
from collections.abc import Callable, Hashable
from typing import Any, Final

from torch import Tensor
from torch.utils._pytree import tree_leaves

from deployments.engine.cuda.networks import Backend, CompiledNetwork
from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky

log = logging.getLogger(__name__)

MOST_KINDS: Final = 2
"""The kinds of calls that are compiled of one network; each is a graph of its own, for all batch sizes."""


class CompiledCalls:
    """A network's function, compiled for some kinds of its calls.

    A kind is what arguments there are, and their shapes, whatever the batch; a batch of one is a kind of its own. If
    compiling fails, or a compiled call does, the function is used as it is from then on; only a call that memory has
    run out in says nothing against the next one. `title` names the network.
    """

    def __init__(self, function: Callable[..., Any], title: str, backend: Backend) -> None:
        self._function, self._title = function, title
        self._compiled = CompiledNetwork(function, backend)
        self._kinds: set[Hashable] = set()
        self._has_failed = False

    @property
    def is_compiled(self) -> bool:
        """True if some kind of call is compiled."""
        return bool(self._kinds)

    def compile(self, *inputs: Any, **named: Any) -> None:
        """Compiles calls of this kind, by making one. Changes nothing if `MOST_KINDS` are compiled already."""
        kind = _kind_of(inputs, named)
        if self._has_failed or kind in self._kinds or len(self._kinds) == MOST_KINDS:
            return
        try:
            self._compiled(*inputs, **named)
            self._kinds.add(kind)
        except Exception as error:
            raise_if_sticky(error)
            self._give_up(error)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self._kinds and _kind_of(inputs, named) in self._kinds:
            try:
                return self._compiled(*inputs, **named)
            except Exception as error:
                raise_if_sticky(error)
                if is_out_of_memory(error):
                    raise
                self._give_up(error)
        # Outside the handler: the traceback would keep the failed call's tensors alive.
        return self._function(*inputs, **named)

    def _give_up(self, error: Exception) -> None:
        self._has_failed = True
        self._kinds.clear()
        log.warning("%s is not compiled, and slower than it could be: %s", self._title, error, exc_info=error)


class _Compilable:
    """A network one of whose functions may run compiled, by `calls`; all else of it is `plain`'s, which always runs as
    it is. A deep copy is one of `plain`.
    """

    def __init__(self, plain: Any, calls: CompiledCalls) -> None:
        self.plain, self.calls = plain, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["plain"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.plain, memo)


class CompilableNetwork(_Compilable):
    """A UNet or ControlNet that may run compiled."""

    def __init__(self, plain: Any, title: str, backend: Backend) -> None:
        super().__init__(plain, CompiledCalls(plain, title, backend))

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.calls(*inputs, **named)


class CompilableVae(_Compilable):
    """A VAE whose decoder may run compiled."""

    def __init__(self, plain: Any, title: str, backend: Backend) -> None:
        super().__init__(plain, CompiledCalls(plain.decode, title, backend))

    def decode(self, *inputs: Any, **named: Any) -> Any:
        return self.calls(*inputs, **named)


def is_compiled(network: Any) -> bool:
    """Returns True if calls of `network` run compiled."""
    return isinstance(network, _Compilable) and network.calls.is_compiled


def _kind_of(inputs: tuple[Any, ...], named: dict[str, Any]) -> Hashable:
    names = sorted(named)
    leaves = tree_leaves((inputs, [named[name] for name in names]))
    shapes = [(leaf.shape[1:], leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    batch = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    return len(inputs), *names, *shapes, batch == 1
