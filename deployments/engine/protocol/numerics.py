"""The version of everything that decides an image's bytes besides its parameters."""

from typing import Final

NUMERICS_VERSION: Final = 2
"""Part of every cached result's key. Raise it with any change after which the same request may give other bytes:
samplers, prompt weighting, guidance, blending, decoding, the file format of images, a new diffusers or Pillow. Raising
it for nothing costs making each image once more; not raising it serves images that no engine makes any more.
"""
