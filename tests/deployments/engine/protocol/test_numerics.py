"""Images are taken for the same only where the same software makes them."""

from importlib.metadata import PackageNotFoundError

import pytest

from deployments.engine.protocol import numerics
from deployments.engine.protocol.numerics import numerics_of


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages that are installed, by version."""
    packages = {"torch": "2.13.0", "triton": "3.6.0", "openvino": "2026.4"}

    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(numerics, "version", version)
    return packages


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
@pytest.mark.parametrize("package", ["torch", "triton", "xformers"])
def test_where_it_may_be_a_gpu_every_package_counts_that_brings_kernels(
    package: str, device: str, installed: dict[str, str]
) -> None:
    before = numerics_of("torch", device)
    installed[package] = "99"
    assert numerics_of("torch", device) != before
    installed.pop(package)
    assert f"without {package}" in numerics_of("torch", device)


def test_on_a_cpu_they_do_not_count_and_openvino_counts_where_it_may_run(installed: dict[str, str]) -> None:
    plain, openvino = numerics_of("torch", "cpu"), numerics_of("auto", "cpu")
    installed["triton"] = installed["torch"] = "99"
    assert numerics_of("torch", "cpu") == plain == "torch"
    assert numerics_of("auto", "cpu") == openvino == "auto, openvino 2026.4"
    installed["openvino"] = "99"
    assert numerics_of("auto", "cpu") != openvino
