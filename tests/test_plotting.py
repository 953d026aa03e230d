"""What no other test and no notebook compares: the animation."""

import base64
import io
import re

import numpy as np
from PIL import Image

from oasis_helpers import plotting


def test_animation_has_its_frames_and_words():
    maps = np.where(np.arange(6).reshape(3, 2) < np.arange(7)[:, None, None], 5.0, np.nan)
    slices = np.linspace(0, 1, 7)[:, None, None] * np.ones((7, 12, 8))
    page = plotting.growing(maps, slices, 8, "six cells in turn").data
    assert 'alt="six cells in turn"' in page
    file = base64.b64decode(re.search('base64,([^"]+)', page)[1])
    with Image.open(io.BytesIO(file)) as animation:
        assert animation.n_frames >= 7 and animation.size == (2 * 32 + 16, 48)
        first = np.asarray(animation.convert("RGB"))
        assert (first[:, :32] == 255).all(), "something is drawn before the first code"
