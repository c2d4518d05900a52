"""Shuffling keeps what an image is made of, and not where it is."""

import numpy as np

from deployments.annotators.content_shuffle import shuffle_content
from tests.deployments.annotators.images import patches


def test_colours_stay_and_shapes_go() -> None:
    image = patches(320, 256)
    hint = shuffle_content(image)
    assert np.abs(hint.mean((0, 1)) - image.mean((0, 1))).max() < 25
    assert np.abs(hint.astype(int) - image).mean() > 40


def test_the_flow_is_smooth_and_reaches_every_side() -> None:
    height, width = 200, 300
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([rows * 255 / (height - 1), columns * 255 / (width - 1), np.zeros((height, width))], axis=2)
    hint = shuffle_content(places.round().astype(np.uint8)).astype(int)
    for axis in (0, 1):
        assert hint[:, :, axis].min() <= 2
        assert hint[:, :, axis].max() >= 253
        assert np.abs(np.diff(hint[:, :, axis], axis=1 - axis)).max() < 12
