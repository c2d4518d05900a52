"""Everything that can be known of an overlay without a cluster."""

from collections.abc import Iterator
from pathlib import Path

from serve_app.kubernetes.agreement import find_disagreements
from serve_app.kubernetes.kuberay import find_kuberay_faults
from serve_app.kubernetes.manifests import Manifests
from serve_app.kubernetes.schemas import find_kubernetes_faults, find_ray_faults
from serve_app.kubernetes.serve_schema import find_application_faults


def find_faults(manifests: Manifests, crd: Path | None = None) -> Iterator[str]:
    """What is wrong, a line each. With KubeRay's `crd` every field of the RayService is looked at.

    Raises Unbuildable where there is not one RayService.
    """
    yield from find_kubernetes_faults(manifests)
    if crd is not None:
        yield from find_ray_faults(manifests, crd)
    yield from find_kuberay_faults(manifests)
    broken = list(find_application_faults(manifests))
    yield from broken
    if not broken:
        yield from find_disagreements(manifests)
