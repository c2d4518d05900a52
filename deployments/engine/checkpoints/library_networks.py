"""Imports the networks that are served from diffusers, and of diffusers little more than those.

One module of `unets` needs one of `transformers`, and importing that imports its package, whose body imports a hundred
networks more; and schedulers import SciPy's statistics for one function, which beta schedules use. That is seconds of
every start. So these packages' bodies wait until somebody asks for a name of theirs; all names stay importable, from
this process' other code too.
"""

import sys
import threading
from importlib.util import find_spec, module_from_spec
from typing import Any, Final

_NETWORKS: Final = ("autoencoders", "controlnets", "transformers", "unets")


def defer_package(name: str) -> None:
    """Puts the package `name` into `sys.modules` with a body that is run when an unknown name is asked for.

    Its submodules can be imported without that. Does nothing if the package has been imported already.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.loader is None:
        return
    loader, package = spec.loader, module_from_spec(spec)
    lock, has_begun = threading.RLock(), False

    def find(attribute: str) -> Any:
        nonlocal has_begun
        # A second thread waits here; the body itself, which may ask for names that it has not defined yet, does not.
        with lock:
            if not has_begun:
                has_begun = True
                try:
                    loader.exec_module(package)
                except BaseException:
                    has_begun = False
                    raise
        try:
            return vars(package)[attribute]
        except KeyError:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}") from None

    vars(package)["__getattr__"] = find
    sys.modules[name] = package


for _package in ("scipy.stats", *(f"diffusers.models.{networks}" for networks in _NETWORKS)):
    defer_package(_package)

from diffusers import (  # noqa: E402
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    ModelMixin,
    Transformer2DModel,
    UNet2DConditionModel,
)

__all__ = [
    "AutoencoderKL",
    "ControlNetModel",
    "ControlNetUnionModel",
    "ModelMixin",
    "Transformer2DModel",
    "UNet2DConditionModel",
]
