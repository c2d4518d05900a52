"""The versions of this server's packages, read without importing them."""

import platform
from importlib.metadata import PackageNotFoundError, version

from deployments.metrics import BUILD, Sample


def darkroom_version() -> str:
    """This package's version; "0" if it is not installed."""
    return _version_of("darkroom")


def build_sample() -> Sample:
    """The build sample for Prometheus: always 1, with the versions as labels."""
    versions = (darkroom_version(), platform.python_version(), *map(_version_of, ("ray", "torch", "diffusers")))
    return Sample(BUILD, versions, 1)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "0"
