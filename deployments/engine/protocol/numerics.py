"""The version of everything about a picture that its parameters do not say."""

from typing import Final

NUMERICS_VERSION: Final = 2
"""Part of every cached result's name. Raise it with any change after which the same request may give other bytes:
samplers, prompt weighting, guidance, blending, decoding, a picture's file format, a new diffusers or Pillow. Raising it
for nothing costs one making of each picture; not raising it hands out pictures that no engine makes any more.
"""
