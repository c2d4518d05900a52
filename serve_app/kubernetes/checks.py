"""Everything that can be known of an overlay without a cluster."""

from collections.abc import Iterator
from pathlib import Path

from serve_app.kubernetes.agreement import agreement_faults
from serve_app.kubernetes.kuberay import kuberay_faults
from serve_app.kubernetes.manifests import Manifests
from serve_app.kubernetes.schemas import kubernetes_faults, ray_faults
from serve_app.kubernetes.serve_schema import application_faults


def faults(manifests: Manifests, crd: Path | None = None) -> Iterator[str]:
    """What is wrong, a line each. With KubeRay's `crd` every field of the RayService is looked at.

    Raises Unbuildable where there is not one RayService.
    """
    yield from kubernetes_faults(manifests)
    if crd is not None:
        yield from ray_faults(manifests, crd)
    yield from kuberay_faults(manifests)
    broken = list(application_faults(manifests))
    yield from broken
    if not broken:
        yield from agreement_faults(manifests)
