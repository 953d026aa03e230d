"""What the figures show; how they look is compared, in part, by the notebooks."""

import base64
import io
import re

import numpy as np
import pytest
from matplotlib.colors import ListedColormap
from PIL import Image
from skimage.color import rgb2lab

from oasis_helpers import plotting


def texts(axis):
    return axis.get_title(), axis.get_ylabel()


def test_images_fill_named_rows_or_a_grid():
    pictures = np.linspace(0, 1, 5)[:, None, None, None] * np.ones((5, 8, 8, 1))
    rows = {"slice": pictures, "codes": np.arange(5)[:, None, None] * np.ones((5, 2, 2), int)}
    named = plotting.images(rows, "abcde", scales={"codes": ("viridis", 0, 4)})
    assert [texts(axis) for axis in named.axes[::5]] == [("a", "slice"), ("", "codes")]
    assert [axis.images[0].get_clim() for axis in named.axes[::5]] == [(0, 1), (0, 4)]
    grid = plotting.images(pictures, "abcde", columns=3)
    assert "".join(axis.get_title() for axis in grid.axes) == "abcde"
    assert [len(axis.images) for axis in grid.axes] == [1] * 5 + [0]
    row = plotting.images([np.ones((9, 9)), np.ones((3, 3))])
    assert len(row.axes) == 2, "pictures of different sizes stand in one row"


def test_each_code_has_a_colour_of_its_own_and_background_is_black():
    codes = np.arange(5 * 80).reshape(5, 10, 8) % 128
    codes[:, 0] = 7  # a row of the border
    colour_map, low, high = plotting.code_colours(codes)
    assert (low, high, colour_map.N) == (0, 255, 256)
    lab = rgb2lab(colour_map.colors[:128])
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
    assert apart[~np.eye(128, dtype=bool)].min() > 15 and np.diag(apart, 1).min() > 20
    assert np.flatnonzero((colour_map.colors == 0).all(axis=1)).tolist() == [7]
    one_map = np.full((10, 8), 3)
    one_map[4:6, 4:6] = 9
    fewer = plotting.code_colours(one_map)[0].colors
    others = [code for code in range(20) if code not in (3, 7)]
    np.testing.assert_array_equal(fewer[others], colour_map.colors[others])
    assert (fewer[3] == 0).all()


def test_whole_numbers_are_code_maps_and_pictures_have_the_height_asked_for():
    rows = {"slice": np.ones((3, 80, 80, 1)), "codes": np.arange(429).reshape(3, 13, 11) % 128}
    figure = plotting.images(rows, height=250)
    figure.draw_without_rendering()
    assert min(axis.get_window_extent().height for axis in figure.axes) >= 250
    shown = figure.axes[3].images[0]
    assert isinstance(shown.cmap, ListedColormap) and shown.get_clim() == (0, 255)


def test_a_comparison_shows_signed_differences():
    originals = np.full((2, 4, 4, 1), 0.5)
    figure = plotting.comparison(originals, originals - 0.25, ["one", "two"])
    differences = figure.axes[4].images[0]
    assert (differences.get_array() == -0.25).all() and differences.get_clim() == (-0.4, 0.4)
    assert "decoded − original" in figure.axes[-1].get_xlabel()


def test_curves_have_a_common_x_or_their_own():
    panels = {"loss": {"training": [3, 2, 1], "other": ([10, 100], [5, 6])}}
    axis = plotting.curves(panels, "step", log_ticks=[1, 10, 100]).axes[0]
    assert [line.get_xdata().tolist() for line in axis.lines] == [[1, 2, 3], [10, 100]]
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "step"
    bands = {"mean": ([0, 1], [2, 3])}
    axis = plotting.curves({"SSIM": {"mean": [1, 2]}}, x=np.array([5, 7]), bands=bands).axes[0]
    assert axis.lines[0].get_xdata().tolist() == [5, 7] and len(axis.collections) == 1


@pytest.mark.parametrize("same", [True, False])
def test_panels_that_name_the_same_curves_have_one_legend(same):
    curve = [1, 2, 3]
    figure = plotting.curves({"a": {"one": curve}, "b": {"one" if same else "two": curve}})
    legends = [axis.get_legend() is not None for axis in figure.axes]
    assert (len(figure.legends), legends) == ((1, [False] * 2) if same else (0, [True] * 2))


def test_bars_are_rows_or_groups():
    axis = plotting.bars({"rate": {"a": 1.0, "b": 2.0}}, "bits", highlight="b").axes[0]
    assert [bar.get_width() for bar in axis.patches] == [1, 2]
    assert axis.patches[0].get_facecolor() != axis.patches[1].get_facecolor()
    assert [text.get_text() for text in axis.texts] == ["1.00", "2.00"]
    rows = {name: {"whole": 1.0, "brain": 0.8} for name in ("reference", "improved", "other")}
    figure = plotting.bars({"SSIM": rows})
    assert len(figure.axes[0].patches) == 6 and len(figure.legends) == 1


def test_bins_hold_equally_many_steps_of_a_grid():
    grey_levels = np.tile(np.arange(256), 8) / 255
    heights = plotting.histograms({"": {"levels": grey_levels}}, "x").axes[0].patches[0].get_data()
    assert np.ptp(heights.values[:-1]) < 1e-12, "some bins hold more grey levels than others"
    assert heights.values.sum() == pytest.approx(1)


def test_animation_has_its_frames_and_words():
    code_maps = np.where(np.arange(6).reshape(3, 2) < np.arange(7)[:, None, None], 5.0, np.nan)
    slices = np.linspace(0, 1, 7)[:, None, None] * np.ones((7, 24, 16))
    page = plotting.animate_sampling(code_maps, slices, "six codes in turn").data
    assert 'alt="six codes in turn"' in page
    file = base64.b64decode(re.search('base64,([^"]+)', page)[1])
    with Image.open(io.BytesIO(file)) as animation:
        assert animation.n_frames >= 7 and animation.size == (2 * 32 + 16, 48)
        first = np.asarray(animation.convert("RGB"))
        assert (first[:, :32] == 255).all(), "a code is visible before the first one is sampled"


EQUAL = {
    "equal": np.full(40, 0.9, "float32"),
    "one": np.ones(1),
    "nearly": 0.1 + np.float32([0, 1e-8] * 20),
    "doubles": np.array([0.1, 0.1 + 2e-16] * 20),
    "large": np.full(9, 1e20),
    "large and near": np.array([1e20, 1e20 * (1 + 1e-15)] * 20),
    "whole numbers": np.full(9, 7),
    "bytes": np.uint8([3, 200] * 20),
    "truth": np.array([True, False] * 9),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", EQUAL.values(), ids=EQUAL)
def test_histograms_of_equal_values(values):
    bars = plotting.histograms({"": {"x": values}}, "x").axes[0].patches[0].get_data()
    assert bars.values.sum() == pytest.approx(1)
    assert (np.diff(bars.edges) > 0).all()


def test_histograms_leave_nan_out_and_refuse_no_value(refused):
    values = {"x": np.array([1, 2, np.nan, np.inf])}
    bars = plotting.histograms({"": values}, "x").axes[0].patches[0].get_data()
    assert bars.values.sum() == pytest.approx(1)
    words = "The panel 'scores' has no value that is a number; give each name one or more."
    refused(lambda: plotting.histograms({"scores": {"x": np.full(3, np.nan)}}, "x"), words)


def test_more_names_than_colours():
    names = [str(number) for number in range(9)]
    assert len(plotting.estimates({"": {name: (1, 0, 2) for name in names}}).axes[0].lines) == 18
    assert len(plotting.bars({"": {"row": {name: 1.0 for name in names}}}).axes[0].patches) == 9
    points = {name: ([1, 2], [1, 2]) for name in names}
    assert len(plotting.curves({"": points}).axes[0].lines) == 9
    marks = {name: 1.0 for name in names}
    plotting.histograms({"": {"x": np.arange(9)}}, "x", marks)
