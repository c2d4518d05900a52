"""Darkroom on KubeRay: renders manifests from the configuration used everywhere else, and checks them offline."""
