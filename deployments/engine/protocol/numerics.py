"""The version of everything that decides an image's bytes besides its parameters."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

NUMERICS_VERSION: Final = 3
"""Part of every cached result's key. Raise it with any change after which the same request may give other bytes:
samplers, prompt weighting, guidance, blending, decoding, the file format of images, a new diffusers or Pillow. Raising
it for nothing costs making each image once more; not raising it serves images that no engine makes any more.
"""


_KERNELS_ON_CUDA: Final = ("torch", "triton", "xformers")
"""The packages whose kernels compute on CUDA: our own are compiled by Triton, and of attention the fastest on the card
is chosen of what they have. Two kinds of card may choose differently; what each has chosen is in its engine's report.
"""


def numerics_of(backend: str, device: str) -> str:
    """Returns what the images of engines with these settings depend on: with OpenVINO, also on its version here, and
    where it may be a GPU, on those of the packages whose kernels run there.
    """
    packages: tuple[str, ...] = () if backend == "torch" else ("openvino",)
    if device != "cpu":
        packages += _KERNELS_ON_CUDA
    return ", ".join((backend, *map(_name_version, packages)))


def _name_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"without {package}"
