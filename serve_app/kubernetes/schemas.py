"""Checks manifests against the schemas of Kubernetes and KubeRay: fields and types, and no unknown fields."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate

from serve_app.config.errors import ConfigError, read_yaml
from serve_app.kubernetes.manifests import Document, Manifests

# Kubernetes' schemas have no kinds of KubeRay and others.
_FOREIGN: Final = ("ray.io/", "monitoring.coreos.com/", "gateway.networking.k8s.io/")


def find_kubernetes_faults(manifests: Manifests) -> Iterator[str]:
    """Checks Kubernetes' own kinds, and the pod templates inside the RayService, which its CRD does not describe."""
    for document in manifests.documents:
        if not document["apiVersion"].startswith(_FOREIGN):
            yield from _validate(f"{document['kind']} {document['metadata']['name']}", document)
    for pod in manifests.ray_pods():
        template = {"metadata": pod.metadata, "spec": pod.spec}
        document = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "it"}, "template": template}
        yield from _validate(pod.name, document)


def find_ray_faults(manifests: Manifests, crd: Path) -> Iterator[str]:
    """Checks the RayService against KubeRay's CRD in that file. Raises ConfigError."""
    validator = jsonschema.Draft202012Validator(_read_schema(crd))
    for error in validator.iter_errors(manifests.service):
        yield f"RayService {'/'.join(map(str, error.absolute_path))}: {error.message}"


def _validate(name: str, document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{name} {'/'.join(map(str, error.path))}: {error.message}"


def _read_schema(crd: Path) -> Any:
    found = read_yaml(crd)
    try:
        (version,) = (each for each in found["spec"]["versions"] if each["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
    except (LookupError, TypeError, ValueError):
        raise ConfigError(f"{crd}: is no CustomResourceDefinition with a version v1") from None
    return _forbid_unknown_fields(schema)


def _forbid_unknown_fields(schema: Any) -> Any:
    """Converts an OpenAPI schema to JSON Schema that refuses unknown fields, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [_forbid_unknown_fields(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    plain = {
        name: _forbid_unknown_fields(value) for name, value in schema.items() if not name.startswith("x-kubernetes-")
    }
    fields = schema.get("properties")
    if isinstance(fields, Mapping) and "type" in schema:
        # `metadata` is Kubernetes' own, which a CRD does not describe.
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or not fields
        if not open_ended and "additionalProperties" not in schema:
            plain["additionalProperties"] = False
        if "required" in schema:
            # The API server fills in defaults before it validates.
            plain["required"] = [name for name in schema["required"] if "default" not in fields.get(name, {})]
    return plain
