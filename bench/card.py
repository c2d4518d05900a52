"""Makes the card that every bench prints first and puts into its JSON: hardware, versions, commit; None if unknown."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

_PACKAGES = ("torch", "openvino", "diffusers", "transformers", "xformers", "numpy", "ray")


def card(device: torch.device) -> dict[str, Any]:
    """Returns what the numbers were measured on and with."""
    return {"hardware": _hardware(device), "versions": _versions(), "commit": commit()}


def print_card(facts: dict[str, Any]) -> None:
    for group in ("hardware", "versions"):
        print(f"{group:9} " + ", ".join(f"{key} {value}" for key, value in facts[group].items() if value is not None))
    print(f"{'commit':9} {facts['commit']}", flush=True)


def commit() -> str | None:
    """Returns the short commit of this checkout, with a plus if files of the project differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + "+" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    done = subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _hardware(device: torch.device) -> dict[str, Any]:
    """Describes the machine. The load average shows whether it was busy when the bench began."""
    facts: dict[str, Any] = {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_before": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_gib"] = round(properties.total_memory / 2**30, 1)
        facts["multiprocessors"] = properties.multi_processor_count
    return facts


def _processor() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or None
    lines = cpuinfo.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _versions() -> dict[str, str | None]:
    facts: dict[str, str | None] = {"python": platform.python_version()}
    facts |= {name: _version(name) for name in _PACKAGES}
    if torch.cuda.is_available():
        facts |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return facts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def silence_libraries() -> None:
    """Switches off the libraries' progress bars, which would break up a report."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
