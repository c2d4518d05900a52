"""Every check of an overlay that needs no cluster."""

from collections.abc import Iterator
from pathlib import Path

from serve_app.kubernetes.agreement import find_disagreements
from serve_app.kubernetes.kuberay import find_kuberay_faults
from serve_app.kubernetes.manifests import Manifests
from serve_app.kubernetes.schemas import find_kubernetes_faults, find_ray_faults
from serve_app.kubernetes.serve_schema import find_application_faults


def find_faults(manifests: Manifests, crd: Path | None = None) -> Iterator[str]:
    """Yields each fault as one line. With KubeRay's `crd`, every field of the RayService is checked.

    Raises Unbuildable unless there is exactly one RayService.
    """
    yield from find_kubernetes_faults(manifests)
    if crd is not None:
        yield from find_ray_faults(manifests, crd)
    yield from find_kuberay_faults(manifests)
    broken = list(find_application_faults(manifests))
    yield from broken
    if not broken:
        yield from find_disagreements(manifests)
