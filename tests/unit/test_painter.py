"""The code painter, clicked by code."""

import io

import numpy as np
import pytest
from PIL import Image

from oasis_helpers import load_pretrained
from oasis_helpers.painter import SIDE, CodePainter


@pytest.fixture(scope="module")
def vqvae():
    return load_pretrained("cohort").vqvae


@pytest.fixture
def painter(vqvae):
    y, x = np.mgrid[:80, :80] - 40
    discs = np.stack([0.7 * (np.hypot(y, x) < radius) for radius in (25, 35)])
    return CodePainter(vqvae, discs[..., None], ["small", "large"])


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.value)), int)


def test_a_click_changes_the_code_and_the_picture_there(painter):
    code = (int(painter.codes[6, 5]) + 40) % painter.vqvae.num_embeddings
    painter.code.value = code
    painter.buttons[6][5].click()
    assert painter.codes[6, 5] == code and f"code {code}" in painter.buttons[6][5].tooltip
    difference = np.abs(pixels(painter.edited) - pixels(painter.original))
    assert difference.max() > 10
    strongest = np.unravel_index(difference.argmax(), difference.shape)
    assert np.abs(np.array(strongest) / SIDE - [6.5, 5.5]).max() < 2.5, "another place changed"
    painter.reset_button.click()
    assert (pixels(painter.edited) == pixels(painter.original)).all()


def test_pick_up(painter):
    painter.mode.value = "pick up"
    before = painter.codes.copy()
    painter.buttons[2][3].click()
    assert painter.code.value == before[2, 3]
    np.testing.assert_array_equal(painter.codes, before)


def test_another_slice_begins_with_its_own_codes(painter):
    painter.buttons[0][0].click()
    painter.slice.value = 1
    np.testing.assert_array_equal(painter.codes, painter.code_maps[1])


def test_names_must_match_images(vqvae):
    with pytest.raises(ValueError, match="0 images and 1 names"):
        CodePainter(vqvae, np.zeros((0, 80, 80, 1)), ["one"])
