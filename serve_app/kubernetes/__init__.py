"""Darkroom on KubeRay: manifests are rendered from the same configuration as everything else, and checked offline."""
