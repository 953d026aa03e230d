"""The code painter, clicked by code."""

import base64
import io
import re

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
    patches = np.linspace(1, 0, vqvae.num_embeddings)[:, None, None] * np.ones((6, 6))
    return CodePainter(vqvae, discs[..., None], ["small", "large"], patches)


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.value)), int)


def test_a_click_changes_the_code_and_the_picture_there(painter):
    code = (int(painter.codes[6, 5]) + 40) % painter.vqvae.num_embeddings
    painter.palette[code].click()
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
    assert painter.code == before[2, 3] and painter.label.value == f"code {painter.code}"
    marked = [code for code, button in painter.palette.items() if button.layout.border_top]
    assert marked == [painter.code], "the palette marks another code than the one picked up"
    np.testing.assert_array_equal(painter.codes, before)


def test_the_palette_shows_a_patch_of_each_code_from_dark_to_bright(painter):
    assert list(painter.palette) == list(range(len(painter.palette)))[::-1]
    style = painter.widget.children[-1].value
    rules = dict(re.findall(r"\.(\S+) {background: url\(data:image/png;base64,([^)]+)\)}", style))
    for code in (0, 127):
        (name,) = painter.palette[code]._dom_classes
        patch = np.asarray(Image.open(io.BytesIO(base64.b64decode(rules[name]))))
        assert patch.shape == (SIDE, SIDE) and (patch == (255 if code == 0 else 0)).all()
        assert painter.palette[code].tooltip == f"code {code}"


def test_another_slice_begins_with_its_own_codes(painter):
    painter.buttons[0][0].click()
    painter.slice.value = 1
    np.testing.assert_array_equal(painter.codes, painter.code_maps[1])


def test_names_must_match_images(vqvae):
    with pytest.raises(ValueError, match="shorter"):
        CodePainter(vqvae, np.zeros((1, 80, 80, 1)), ["one", "two"], np.zeros((128, 6, 6)))
