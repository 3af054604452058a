"""Natural-scene statistics: against a public library's figures, their definition, and what is known of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.lm.image_encoder import ImageEncoder
from reasonrec_fast.lm.natural_scene import (
    NaturalSceneEncoder,
    asymmetric_gaussian,
    generalised_gaussian,
    halved,
    natural_scene_statistics,
    normalised,
)

# What the fits of piq 0.8.0 (piq.brisque, Apache-2.0) give for the coefficients of `pattern`, at both scales.
PIQ = [
    10.0, 0.688146, 1.524, -0.079077, 0.557214, 0.414323, 1.563, -0.131139, 0.590164, 0.358109, 1.367, -0.060298,
    0.556654, 0.443929, 1.395, -0.066239, 0.560402, 0.437232, 1.553, 0.296191, 0.658, -0.047146, 0.168214, 0.111603,
    0.68, -0.068138, 0.177158, 0.097554, 0.577, -0.055151, 0.196512, 0.122012, 0.602, -0.05892, 0.189141, 0.113115,
]  # fmt: skip


def pattern():
    rows, columns = np.mgrid[:96, :128]
    waves = 127 + 60 * np.sin(rows / 17) * np.cos(columns / 23) + 30 * np.sin(rows * columns / 7.0)
    return (waves + 40 * ((rows // 32 + columns // 32) % 2)).clip(0, 255).round()


def photograph(seed=0, size=(120, 160)):
    """Something with edges, shades and grain."""
    generator = np.random.default_rng(seed)
    image = gaussian_filter(generator.normal(size=size), 6) * 600 + 120
    image[30:80, 40:100] += 50
    return (image + gaussian_filter(generator.normal(size=size), 0.7) * 12).clip(0, 255)


def test_figures_of_a_public_library():
    np.testing.assert_allclose(natural_scene_statistics(pattern()), PIQ, atol=1e-3)  # its shapes are on a grid of 0.001


def test_coefficients_are_their_definition():
    image = photograph()
    row, column = 50, 61
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    weights = np.outer(window, window) / np.outer(window, window).sum()
    patch = image[row - 3 : row + 4, column - 3 : column + 4]
    mean = (weights * patch).sum()
    deviation = np.sqrt((weights * (patch - mean) ** 2).sum())
    assert normalised(image)[row, column] == pytest.approx((image[row, column] - mean) / (deviation + 1), abs=1e-9)


@pytest.mark.parametrize("size", [(96, 128), (97, 131)])
def test_half_size_is_that_of_pillow(size):
    image = photograph(size=size)
    even = image[: size[0] // 2 * 2, : size[1] // 2 * 2]
    expected = Image.fromarray(even.astype(np.float32)).resize((size[1] // 2, size[0] // 2), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(halved(image)[4:-4, 4:-4], np.asarray(expected)[4:-4, 4:-4], atol=1e-3)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_shapes_are_recovered(shape):
    generator = np.random.default_rng(0)
    signs = generator.choice([-1, 1], 200_000)
    values = generator.gamma(1 / shape, size=200_000) ** (1 / shape) * signs
    assert generalised_gaussian(values)[0] == pytest.approx(shape, rel=0.05)
    fitted, mean, left, right = asymmetric_gaussian(np.where(values < 0, 3 * values, values)[signs < 2])
    assert left > 8 * right
    assert mean < 0
    mirrored = asymmetric_gaussian(-np.where(values < 0, 3 * values, values))
    np.testing.assert_allclose(mirrored, [fitted, -mean, right, left])


def test_what_is_known_of_distortions():
    """Coefficients of noise are flatter than normal, as their deviation is that of 17 pixels in effect, and neighbours
    differ; blur takes variance away and makes neighbours alike."""
    plain = photograph()
    noise = natural_scene_statistics(127 + 40 * np.random.default_rng(1).normal(size=plain.shape))
    blurred, statistics = natural_scene_statistics(gaussian_filter(plain, 3)), natural_scene_statistics(plain)
    assert 2.5 < noise[0] < 3.5
    assert blurred[1] < 0.5 * statistics[1] < statistics[1] < noise[1]
    likeness = [part[3] / part[1] for part in (noise, statistics, blurred)]  # mean product by variance
    assert likeness[0] < 0 < likeness[1] < likeness[2]


def test_neither_brightness_nor_the_way_it_is_turned_matters():
    image = photograph()
    np.testing.assert_allclose(
        natural_scene_statistics(image), natural_scene_statistics(image / 2 + image / 2 - 7), atol=1e-9
    )
    turned = natural_scene_statistics(image.T)
    plain = natural_scene_statistics(image)
    np.testing.assert_allclose(plain[[0, 1, *range(2, 6)]], turned[[0, 1, *range(6, 10)]], atol=1e-9)
    np.testing.assert_allclose(plain[10:14], turned[10:14], atol=1e-9)


NOTHING = [10.0, 0.0, *[10.0, 0.0, 0.0, 0.0] * 4] * 2


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (64, 48)])
@pytest.mark.parametrize("value", [0, 0.1, 127, 255])
def test_constant_images(size, value):
    assert natural_scene_statistics(np.full(size, value)).tolist() == NOTHING


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (2, 2), (3, 3), (1, 500), (5, 40)])
def test_small_images_are_finite(size):
    statistics = natural_scene_statistics(np.random.default_rng(0).integers(0, 256, size))
    assert statistics.shape == (36,)
    assert np.isfinite(statistics).all()


def test_images_of_two_values_are_finite():
    for image in (np.eye(40) * 255, np.tril(np.full((30, 30), 255)), np.indices((32, 32)).sum(0) % 2 * 255):
        assert np.isfinite(natural_scene_statistics(image)).all()


def test_the_same_bits_for_any_memory_layout():
    image = photograph().round().astype(np.uint8)
    first = natural_scene_statistics(image)
    np.testing.assert_array_equal(first, natural_scene_statistics(np.asfortranarray(image).astype(np.float32)))
    assert natural_scene_statistics(image).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("grey", "message"),
    [
        (np.zeros((4, 4, 3)), r"grey: expected luminance \[H, W\] of one pixel at least; got float64 \[4, 4, 3\]"),
        (np.zeros((0, 4)), r"got float64 \[0, 4\]"),
        (np.zeros((2, 2), dtype=complex), "got complex128"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), "grey: expected finite luminance; got nan in row 1, column 0"),
    ],
)
def test_what_is_no_image_is_refused(grey, message):
    with pytest.raises(DataError, match=message):
        natural_scene_statistics(grey)


def test_an_encoder_of_one_token():
    encoder = NaturalSceneEncoder()
    assert isinstance(encoder, ImageEncoder)
    image = photograph().round().astype(np.uint8)
    features = encoder.encode([image, image[:50]])
    assert features.shape == (2, 1, 36)
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features[0, 0], natural_scene_statistics(image), rtol=1e-5, atol=1e-6)
    assert torch.equal(encoder.encode([image[:50]])[0], features[1])
    assert encoder.encode([]).shape == (0, 1, 36)
