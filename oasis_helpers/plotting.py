"""Every figure of the course: arrays in, a matplotlib `Figure` out; no model is known here.

Intensities are grey from 0 to 1, and each code has a colour of its own. Curves and bars use the
colours of Okabe and Ito (2008), which colour-blind readers can distinguish. A function returns its
figure closed, so that a notebook shows it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from skimage.color import rgb2lab

Panels = dict[str, dict]  # {title of a panel, with its unit: {name: what is plotted}}
Scale = tuple[str | ListedColormap, float, float]  # colour map, lowest value, highest value

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY, SIGNED = ("gray", 0, 1), ("RdBu_r", -0.4, 0.4)
WIDTH = 9.0  # inches, of every figure
BARE = {"xticks": [], "yticks": [], "frame_on": False}  # axes that hold a picture

STYLE = {
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
}


def _figure(rows: int, columns: int, height: float, width: float = WIDTH, **options):
    """A closed figure in the common style, and its axes as an array (rows, columns)."""
    with plt.rc_context(STYLE):
        size = width, height
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    plt.close(figure)
    return figure, axes


def _panels(panels: dict, height: float, columns: int = 0, **options):
    """`_figure` with a titled axis for each panel; the height is that of a row of panels."""
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure, axes = _figure(rows, columns, rows * height, **options)
    for axis, title in zip(axes.flat, panels):
        axis.set_title(title, fontsize=12 if len(panels) < 3 else 10)
    return figure, axes


def _legend(figure: Figure, axes: np.ndarray) -> None:
    """One legend below panels that name the same things, else one in each panel."""
    entries = [axis.get_legend_handles_labels() for axis in axes.flat]
    if len(entries) > 1 and len({tuple(names) for _, names in entries}) == 1:
        figure.legend(*entries[0], loc="outside lower center", ncols=min(len(entries[0][1]), 4))
    else:
        for axis in axes.flat:
            axis.legend(fontsize=9)


@cache
def _palette() -> np.ndarray:
    """256 colours, none dark, each as different as it can be from white and all before it."""
    colours = np.stack(np.meshgrid(*[np.linspace(0, 1, 14)] * 3), -1).reshape(-1, 3)
    lab, chosen = rgb2lab(colours), [len(colours) - 1]
    nearest = np.where(lab[:, 0] < 42, 0, np.inf)
    for _ in range(256):
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(nearest.argmax())
    return colours[chosen[1:]]


def code_colours(codes: np.ndarray) -> Scale:
    """The colours of code maps (..., h, w), the same in all figures; neighbours look different.

    Background codes, those that fill more than 4 % of the border, are black.
    """
    border = np.append(codes[..., [0, -1], :], codes[..., [0, -1]])
    values, counts = np.unique(border, return_counts=True)
    background = values[counts > max(3, 0.04 * counts.sum())]  # 3: by chance in a single map
    colours = np.resize(_palette(), (max(256, int(np.nanmax(codes)) + 1), 3))
    colours[np.asarray(background, int)] = 0
    return ListedColormap(colours).with_extremes(bad="white"), 0, len(colours) - 1


def images(
    rows: dict[str, np.ndarray] | np.ndarray,
    titles: Sequence[str] = (),
    title: str = "",
    columns: int | None = None,
    scales: dict[str, Scale] | None = None,
    colour_bar: str = "",
    height: int = 0,
) -> Figure:
    """Pictures (n, height, width) or (n, height, width, 1) in rows, with a title above all.

    Args:
        rows: {row's name: pictures}, or pictures alone, which fill rows of `columns`. Pictures of
            whole numbers are code maps and have `code_colours`; others are grey from 0 to 1.
        titles: above the pictures in reading order; as many as columns title the columns.
        columns: pictures in a row, where rows have no names; all of them by default.
        scales: {row's name: (colour map, lowest, highest)}, where a row shows something else.
        colour_bar: label of a colour bar for the last row; none by default.
        height: pixels that every picture has at least; by default a row fills the usual width.
    """
    named = isinstance(rows, dict)
    columns = len(next(iter(rows.values()))) if named else columns or len(rows)
    starts = range(0, len(rows), columns)
    lines = rows.items() if named else [("", rows[first : first + columns]) for first in starts]
    aspects = [np.divide(*np.squeeze(pictures[0]).shape) for _, pictures in lines]
    width = WIDTH / max(columns + 0.7 * named, 5 if colour_bar else 0)  # of a picture
    if height:
        width = (height + 8) / STYLE["figure.dpi"] / min(aspects)  # with a gap
    total = len(lines) * width * max(aspects) + 0.2 * -(-len(titles) // columns)
    total += 1.3 if colour_bar else 0.4
    across = columns * width + 0.3 * named if height else WIDTH
    figure, axes = _figure(len(lines), columns, total, across, subplot_kw=BARE)
    for line, (name, pictures) in zip(axes, lines):
        whole_numbers = np.asarray(pictures[0]).dtype.kind in "iu"
        usual = code_colours(np.squeeze(pictures)) if whole_numbers else GREY
        colour_map, low, high = (scales or {}).get(name, usual)
        for axis, picture in zip(line, pictures):
            image = axis.imshow(np.squeeze(picture), cmap=colour_map, vmin=low, vmax=high)
        line[0].set_ylabel(name, fontsize=10)
    for axis, text in zip(axes.flat, titles):
        axis.set_title(text, fontsize=10 if columns < 8 else 9, pad=3)
    if colour_bar:
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01)
        bar.set_label(colour_bar, fontsize=10)
    figure.suptitle(title)
    return figure


def comparison(
    originals: np.ndarray,
    pictures: np.ndarray,
    titles: Sequence[str],
    title: str = "",
    names: tuple[str, str] = ("original", "decoded"),
    height: int = 0,
) -> Figure:
    """`images`, float in [0, 1], in two rows of these names, and a row of signed differences."""
    rows = {names[0]: originals, names[1]: pictures, "difference": pictures - originals}
    label = f"{names[1]} − {names[0]} (intensity from 0 to 1)"
    return images(rows, titles, title, None, {"difference": SIGNED}, label, height)


def animate_sampling(code_maps: np.ndarray, slices: np.ndarray, alt: str):
    """An animated GIF, as `IPython.display.HTML`: a code map fills up, and its slice beside it.

    Args:
        code_maps: float (frames, h, w), codes, NaN where no code has been sampled yet.
        slices: float (frames, height, width) in [0, 1], what the maps decode to.
        alt: what the animation shows, in words.
    """
    import base64
    import io

    from IPython.display import HTML
    from PIL import Image

    tall, wide = np.array(slices.shape[1:]) // code_maps.shape[1:]  # pixels of a position
    colour_map, _, highest = code_colours(code_maps[-1])
    colours = colour_map(code_maps / highest).repeat(tall, axis=1).repeat(wide, axis=2)
    gap = np.ones_like(colours[:, :, :8])
    pixels = np.concatenate([colours, gap, plt.get_cmap("gray")(slices)], axis=2)[..., :3]
    enlarged = np.uint8(255 * pixels).repeat(2, axis=1).repeat(2, axis=2)
    frames = [Image.fromarray(frame) for frame in enlarged]
    file = io.BytesIO()
    rest = frames[1:] + frames[-1:] * 20  # the finished map stays for a while
    frames[0].save(file, "GIF", duration=90, save_all=True, append_images=rest, loop=0)
    data = base64.b64encode(file.getvalue()).decode()
    return HTML(f'<img src="data:image/gif;base64,{data}" alt="{alt}">')


def curves(
    panels: Panels,
    x_label: str = "epoch",
    x: np.ndarray | None = None,
    bands: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    log_ticks: Sequence[float] | None = None,
) -> Figure:
    """Curves side by side.

    Args:
        panels: {title: {curve's name: y}}, or a pair (x, y) for a curve with points of its own.
        x: float (n,), of all curves that are y alone; 1, 2, ... by default.
        bands: {curve's name: (low, high)}, a shade behind the curve of that name.
        log_ticks: the x axis is logarithmic, with these ticks.
    """
    figure, axes = _panels(panels, 3.3)
    for axis, named in zip(axes.flat, panels.values()):
        for number, (name, values) in enumerate(named.items()):
            own_x = isinstance(values, tuple)
            at, y = values if own_x else (x, values)
            at = np.arange(1, len(y) + 1) if at is None else at
            (line,) = axis.plot(at, y, "osD^vP*"[number % 7] * own_x + "-", ms=5, label=name)
            if name in (bands or {}):
                axis.fill_between(at, *bands[name], color=line.get_color(), alpha=0.18)
        axis.set_xlabel(x_label)
        if log_ticks is not None:
            axis.set_xscale("log")
            axis.set_xticks(log_ticks, [f"{tick:g}" for tick in log_ticks])
            axis.minorticks_off()
        elif x is None:
            axis.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes)
    return figure


def bars(panels: Panels, x_label: str = "", highlight: str = "") -> Figure:
    """Horizontal bars side by side, with their values to three digits; one row may be highlighted.

    Args:
        panels: {title: {row's name: value}}, or {title: {row's name: {bar's name: value}}} for
            groups of bars; the same rows in each panel.
    """
    first_panel = next(iter(panels.values()))
    rows, row = list(first_panel), next(iter(first_panel.values()))
    grouped = isinstance(row, dict)
    names = list(row) if grouped else [""]
    thickness = 0.8 / len(names)
    figure, axes = _panels(panels, 0.27 * len(rows) * len(names) + 1.3, sharey=True)
    for axis, values in zip(axes.flat, panels.values()):
        for number, name in enumerate(names):
            lengths = [values[row][name] if grouped else values[row] for row in rows]
            positions = np.arange(len(rows)) + thickness * (number - (len(names) - 1) / 2)
            colours = [COLOURS[1 if row == highlight else number % 7] for row in rows]
            bar = axis.barh(positions, lengths, thickness, label=name, color=colours)
            decimals = 2 - int(np.floor(np.log10(max(1e-9, *lengths))))
            axis.bar_label(bar, fmt=f"%.{max(0, decimals)}f", padding=3, fontsize=9)
        axis.set_xlabel(x_label)
        axis.locator_params(axis="x", nbins=9 // len(panels) + 1)
        axis.margins(x=0.3 if len(panels) > 1 else 0.1, y=0.02)  # room for the values
    axes[0, 0].set_yticks(range(len(rows)), rows, fontsize=10)
    axes[0, 0].invert_yaxis()
    if grouped:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


def estimates(panels: Panels, symlog: Sequence[str] = ()) -> Figure:
    """Means with their intervals, {title: {row's name: (mean, low, high)}}, side by side.

    Axes of the panels named in `symlog` are logarithmic beyond 1, for values far apart.
    """
    rows = list(next(iter(panels.values())))
    figure, axes = _panels(panels, 0.42 * len(rows) + 0.8, sharey=True)
    for axis, (title, values) in zip(axes.flat, panels.items()):
        for number, row in enumerate(rows):
            mean, low, high = values[row]
            colour = COLOURS[number % 7]
            axis.plot([low, high], [number, number], lw=3, alpha=0.4, color=colour)
            axis.plot(mean, number, "o", color=colour)
        if title in symlog:
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xticks([0, 1, 10], ["0", "1", "10"])
            axis.margins(x=0.12)
    axes[0, 0].set_yticks(range(len(rows)), rows)
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def histograms(
    panels: Panels, x_label: str, marks: dict[str, float] | None = None, log: bool = False
) -> Figure:
    """Histograms side by side, without NaN and infinity.

    Args:
        panels: {title: {name: values of any shape}}, which have the same bins in a panel.
        marks: {name: value}, dashed lines.
        log: a logarithmic y axis, so that a rare value stays visible beside a frequent one.
    """
    figure, axes = _panels(panels, 3.3, sharey=log)
    for axis, (title, named) in zip(axes.flat, panels.items()):
        named = {name: np.asarray(values, "float64") for name, values in named.items()}
        named = {name: values[np.isfinite(values)] for name, values in named.items()}
        if not all(len(values) for values in named.values()):
            raise ValueError(
                f"The panel {title!r} has no value that is a number; give each name one or more."
            )
        edges = _edges(np.concatenate(list(named.values())))
        for name, values in named.items():
            fractions = np.histogram(values, edges)[0] / len(values)
            axis.stairs(fractions, edges, fill=not log, alpha=1 if log else 0.6, label=name)
        for number, (name, value) in enumerate((marks or {}).items()):
            axis.axvline(value, color=COLOURS[-1 - number % 7], linestyle="--", label=name)
        axis.set(xlabel=x_label, yscale="log" if log else "linear")
        axis.locator_params(axis="x", nbins=6)  # more labels would touch
    axes[0, 0].set_ylabel("fraction of the values")
    _legend(figure, axes)
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of some 30 bins; for values on a grid, each bin holds the same number of steps."""
    distinct = np.unique(np.round(values, 6))
    if np.ptp(values) <= 1e-6 * np.abs(values).max():  # equal, but for rounding
        middle, half = values.mean(), 0.5 * max(1, 1e-3 * abs(values.mean()))
        return np.linspace(middle - half, middle + half, 31)
    if not 1 < len(distinct) < len(values) / 4:
        return np.histogram_bin_edges(values, 30)
    step = np.diff(distinct).min()
    width = max(1, round(np.ptp(values) / step / 30)) * step
    return np.arange(values.min() - step / 2, values.max() + width, width)


def maps(
    panels: dict[str, np.ndarray],
    label: str,
    columns: int,
    background: np.ndarray | None = None,
    scale: Scale | None = None,
    axis_labels: tuple[str, str] = ("", ""),
) -> Figure:
    """Tables of numbers as pictures with one colour bar.

    Args:
        panels: {title: float (height, width)}, NaN where there is nothing to show; `columns` a row.
        label: of the colour bar, with its unit.
        background: float (height, width) in [0, 1], in grey where a panel has nothing to show; its
            outlines are in white on top of every panel.
        scale: (colour map, lowest, highest); `viridis` and the extremes of all panels by default.
        axis_labels: of x and y, for panels that are not pictures.
    """
    figure, axes = _panels(panels, WIDTH / (columns + 0.4) + 0.3, columns, subplot_kw=BARE)
    every = np.concatenate([np.ravel(values) for values in panels.values()])
    colour_map, low, high = scale or ("viridis", np.nanmin(every), np.nanmax(every))
    for axis, values in zip(axes.flat, panels.values()):
        if background is not None:
            axis.imshow(np.squeeze(background), cmap="gray", vmin=0, vmax=1)
            axis.contour(np.squeeze(background), [0.15, 0.4], colors="w", linewidths=0.8, alpha=0.8)
        image = axis.imshow(values, cmap=colour_map, vmin=low, vmax=high)
        axis.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    figure.colorbar(image, ax=axes, shrink=0.8, label=label)
    return figure


def points(
    panels: dict[str, tuple], axis_labels: tuple[str, str], cloud: np.ndarray | None = None
) -> Figure:
    """Coloured points in the plane, {title: (points (n, 2), values (n,))}; NaN is a grey cross.

    A cloud, float (m, 2), is small dots behind the points of every panel.
    """
    figure, axes = _panels(panels, 3.9, sharex=True, sharey=True)
    for axis, (positions, values) in zip(axes.flat, panels.values()):
        if cloud is not None:
            axis.scatter(*cloud.T, s=6, color="0.65")
        empty = np.isnan(values)
        axis.scatter(*positions[empty].T, s=40, color="0.4", marker="x")
        dots = axis.scatter(*positions[~empty].T, s=45, c=values[~empty], edgecolor="black", lw=0.4)
        figure.colorbar(dots, ax=axis)
        axis.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    return figure


def boxes(pictures: dict[str, np.ndarray], rectangles: list[list], title: str = "") -> Figure:
    """Pictures with rectangles over them, e.g. a crop or the positions of a code grid.

    Args:
        pictures: {title: (height, width)}, grey from 0 to 1.
        rectangles: for each picture a list of (top, left, height, width) in its pixels.
    """
    figure, axes = _panels(pictures, 0.95 * WIDTH / max(len(pictures), 2) + 0.5)
    for axis, picture, outlines in zip(axes.flat, pictures.values(), rectangles):
        axis.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=1)
        axis.set(xlabel="column (pixels)", ylabel="row (pixels)")
        axis.grid(False)
        for top, left, height, width in outlines:
            style = {"fill": False, "color": COLOURS[4], "lw": 1.2}
            axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), width, height, **style))
    figure.suptitle(title)
    return figure


def codebook_plane(panels: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Vectors and codebook entries in the plane: {title: (vectors (n, 2), entries (K, 2))}.

    The background shows each entry's part of the plane. Thin lines join few vectors to their
    entries. Entries that no vector chooses are hollow.
    """
    everything = np.concatenate([np.concatenate(panel) for panel in panels.values()])
    low, high = everything.min(0), everything.max(0)
    margin = 0.08 * (high - low).max()
    x, y = (np.linspace(low[i] - margin, high[i] + margin, 200) for i in (0, 1))
    plane = np.stack(np.meshgrid(x, y), -1)
    figure, axes = _panels(panels, 4.2, min(len(panels), 2), sharex=True, sharey=True)
    for axis, (vectors, entries) in zip(axes.flat, panels.values()):
        owner = ((plane[:, :, None] - entries) ** 2).sum(-1).argmin(-1)
        axis.pcolormesh(x, y, owner % 10, cmap="tab10", vmin=0, vmax=9, alpha=0.18)
        chosen = ((vectors[:, None] - entries) ** 2).sum(-1).argmin(-1)
        few = len(vectors) < 50
        if few:
            axis.plot(*np.stack([vectors, entries[chosen]]).transpose(2, 0, 1), "grey", lw=0.8)
        axis.plot(*vectors.T, ".", color="black", ms=7 if few else 2)
        used = np.isin(np.arange(len(entries)), chosen)
        axis.plot(*entries[used].T, "D", color=COLOURS[1], ms=8, label="entry in use")
        axis.plot(*entries[~used].T, "D", color=COLOURS[1], mfc="none", ms=8, label="dead entry")
        axis.set(aspect="equal", xlabel="first component", ylabel="second component")
        axis.label_outer()
        axis.grid(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def grid_positions(
    panels: dict[str, np.ndarray], kinds: list[str], mark: tuple = (), texts: dict | None = None
) -> Figure:
    """Grids side by side, the positions coloured by kind, with one legend.

    Args:
        panels: {title: int (rows, columns)}, numbers of up to five kinds, 0 ... len(kinds) - 1.
        mark: (row, column) of a position that gets a star in every panel.
        texts: {title: (rows, columns)}, written at the positions of that panel.
    """
    colours = ("#E6E6E6", COLOURS[5], COLOURS[4], COLOURS[1], COLOURS[2])[: len(kinds)]
    style = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": len(kinds) - 1}
    figure, axes = _panels(panels, WIDTH / max(len(panels), 3) + 0.7, subplot_kw=BARE)
    for axis, (title, grid) in zip(axes.flat, panels.items()):
        axis.pcolormesh(grid, edgecolors="white", linewidth=0.8, **style)
        axis.set_aspect("equal")
        axis.invert_yaxis()
        for (row, column), text in np.ndenumerate((texts or {}).get(title, np.empty((0, 0)))):
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9)
        if mark:
            axis.plot(mark[1] + 0.5, mark[0] + 0.5, "*", color="black", ms=11)
    swatches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    figure.legend(swatches, kinds, loc="outside lower center", ncols=len(kinds), frameon=False)
    return figure
