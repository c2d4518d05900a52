"""The documents that kustomize builds from an overlay, as they would be applied."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from serve_app.config.errors import parse_yaml

BUILD_S: Final = 60.0

Document = dict[str, Any]


class Unbuildable(Exception):
    """The folder is no overlay that kustomize can build; the message is kustomize's."""


@dataclass(frozen=True)
class PodTemplate:
    """A pod template, and its name in messages."""

    name: str
    spec: Document
    metadata: Document

    @property
    def main(self) -> Document:
        """The pod's main container, Ray's for example."""
        first: Document = self.spec["containers"][0]
        return first


@dataclass(frozen=True)
class Manifests:
    """The documents of one overlay."""

    documents: Sequence[Document]

    def of_kind(self, kind: str) -> list[Document]:
        """Returns the documents of that kind."""
        return [document for document in self.documents if document.get("kind") == kind]

    @cached_property
    def service(self) -> Document:
        """The one RayService. Raises Unbuildable unless there is exactly one."""
        found = self.of_kind("RayService")
        if len(found) != 1:
            raise Unbuildable(f"an overlay has one RayService, and here are {len(found)}")
        return found[0]

    @property
    def cluster(self) -> Document:
        """The configuration of its Ray cluster."""
        cluster: Document = self.service["spec"]["rayClusterConfig"]
        return cluster

    @property
    def groups(self) -> list[Document]:
        """The cluster's worker groups."""
        return list(self.cluster.get("workerGroupSpecs", ()))

    @property
    def application(self) -> Document:
        """`serveConfigV2`, parsed."""
        parsed = parse_yaml(self.service["spec"].get("serveConfigV2", ""), "RayService: serveConfigV2")
        return parsed if isinstance(parsed, dict) else {}

    def ray_pods(self) -> Iterator[PodTemplate]:
        """Yields the templates of Ray's pods: the head's, then each group's."""
        yield _template("head", self.cluster["headGroupSpec"]["template"])
        yield from self.worker_pods()

    def worker_pods(self) -> Iterator[PodTemplate]:
        """Yields the templates of the worker groups."""
        for group in self.groups:
            yield _template(f"group {group['groupName']}", group["template"])


def build(folder: Path) -> Manifests:
    """Runs `kubectl kustomize` on `folder`. Raises Unbuildable."""
    try:
        done = subprocess.run(
            ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=BUILD_S, check=False
        )
    except FileNotFoundError:
        raise Unbuildable("this needs kubectl, which is not here") from None
    if done.returncode:
        raise Unbuildable(done.stderr.strip())
    return Manifests([document for document in yaml.safe_load_all(done.stdout) if document])


def _template(name: str, template: Document) -> PodTemplate:
    return PodTemplate(name, template["spec"], template.get("metadata", {}))
