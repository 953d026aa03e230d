"""Every figure the series draws: arrays in, a matplotlib `Figure` out; no model is known here.

One visual language: intensity in grey from 0 to 1, codes in the perceptual map `viridis`, curves
in Okabe and Ito's colours, which colour-blind readers can tell apart. A function returns its
figure closed, so that a notebook shows it once, as the value of the cell.
"""

from __future__ import annotations

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH = 9.0  # inches, of every figure

STYLE = {
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "image.interpolation": "nearest",
    "legend.frameon": False,
}


def _figure(rows: int = 1, columns: int = 1, height: float = 3.2, **options):
    """A figure in the common style, not yet shown, and its axes as an array (rows, columns)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTH, height), squeeze=False, **options
        )
    plt.close(figure)
    return figure, axes


def image_rows(
    rows: list[np.ndarray],
    row_titles: list[str],
    column_titles: list[str] | None = None,
    title: str = "",
    limits: list[tuple[float, float, str]] | None = None,
) -> Figure:
    """Rows of pictures, e.g. originals above their reconstructions above their code maps.

    Args:
        rows: arrays (n, height, width) or (n, height, width, 1), the same n in every row.
        row_titles: one for each row, written at its left.
        column_titles: one for each picture, written above the first row.
        title: of the whole figure.
        limits: (lowest, highest, colour map) for each row; grey from 0 to 1 where not given.
    """
    limits = limits or [(0, 1, "gray")] * len(rows)
    count = len(rows[0])
    height = WIDTH / (count + 0.7) * len(rows) + 0.6
    figure, axes = _figure(len(rows), count, height)
    for line, pictures, name, (low, high, colours) in zip(axes, rows, row_titles, limits):
        for axis, picture in zip(line, pictures):
            axis.imshow(np.squeeze(picture), cmap=colours, vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name)
    for axis, name in zip(axes[0], [] if column_titles is None else column_titles):
        axis.set_title(name, fontsize=10)
    figure.suptitle(title)
    return figure


def growing(maps: np.ndarray, slices: np.ndarray, codes: int, alt: str, pause: int = 90) -> HTML:
    """An animation: a code map that fills up, and beside it the slice that it decodes to.

    Args:
        maps: float (frames, h, w), NaN where no code has been drawn yet.
        slices: float (frames, height, width) in [0, 1].
        codes: K, for the colours.
        alt: what is to be seen, in words.
        pause: milliseconds between frames.

    Returns:
        An animated GIF as an element of a page.
    """
    high, wide = (16 * cells for cells in maps.shape[1:])  # pixels of the screen
    frames = []
    for code_map, picture in zip(maps, slices):
        coloured = plt.get_cmap("viridis").with_extremes(bad="white")(code_map / (codes - 1))
        parts = [np.uint8(255 * coloured[..., :3]), np.uint8(255 * picture)]
        pair = Image.new("RGB", (2 * wide + 16, high), "white")
        for number, part in enumerate(parts):
            enlarged = Image.fromarray(part).resize((wide, high), Image.Resampling.NEAREST)
            pair.paste(enlarged, (number * (wide + 16), 0))
        frames.append(pair)
    file = io.BytesIO()
    rest = {"save_all": True, "append_images": frames[1:] + frames[-1:] * 20, "loop": 0}
    frames[0].save(file, "GIF", duration=pause, **rest)
    data = base64.b64encode(file.getvalue()).decode()
    return HTML(f'<img src="data:image/gif;base64,{data}" alt="{alt}">')


def image_grid(pictures: np.ndarray, columns: int, title: str = "", labels=None) -> Figure:
    """Pictures (n, height, width) or (n, height, width, 1) in reading order, grey from 0 to 1."""
    rows = -(-len(pictures) // columns)
    _, height, width = np.shape(pictures)[:3]
    for_label = 0.0 if labels is None else 0.15
    figure, axes = _figure(
        rows, columns, rows * (WIDTH / columns * height / width + for_label) + 0.4
    )
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, picture) in enumerate(zip(axes.flat, pictures)):
        axis.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=1)
        if labels is not None:
            axis.set_title(str(labels[number]), fontsize=9, pad=2)
    figure.suptitle(title)
    return figure


def curves(panels: dict[str, dict[str, np.ndarray]], x_label: str = "epoch") -> Figure:
    """Curves side by side: {panel's title with its unit: {curve's name: values}}."""
    figure, axes = _figure(1, len(panels), 3.2)
    for axis, (title, lines) in zip(axes.flat, panels.items()):
        for name, values in lines.items():
            axis.plot(np.arange(1, len(values) + 1), values, label=name)
        axis.set(title=title, xlabel=x_label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    return figure


def bars(values: dict[str, float], title: str, unit: str, highlight: str | None = None) -> Figure:
    """Horizontal bars with their values written beside them, the highlighted one in orange."""
    figure, axes = _figure(1, 1, 0.45 * len(values) + 1.2)
    axis = axes[0, 0]
    colours = [COLOURS[1] if name == highlight else COLOURS[0] for name in values]
    drawn = axis.barh(list(values), list(values.values()), color=colours)
    axis.bar_label(drawn, fmt="%.2f", padding=4)
    axis.invert_yaxis()
    axis.set(title=title, xlabel=unit)
    return figure


def comparison(
    originals: np.ndarray,
    pictures: np.ndarray,
    labels: list[str],
    title: str = "",
    names: tuple[str, str] = ("original", "decoded"),
) -> Figure:
    """Originals, the pictures made of them, and the differences with their own colour bar.

    Args:
        originals, pictures: float (n, size, size) or (n, size, size, 1) in [0, 1].
        labels: one for each pair, written above it.
        title: of the whole figure.
        names: of the first two rows.
    """
    count = len(originals)
    figure, axes = _figure(3, count, WIDTH / max(count + 0.7, 5) * 3 + 1.5)
    differences = pictures - originals
    rows = (names[0], originals), (names[1], pictures), ("difference", differences)
    for line, (name, row) in zip(axes, rows):
        for axis, picture in zip(line, row):
            signed = {"cmap": "RdBu_r", "vmin": -0.4, "vmax": 0.4}
            grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
            drawn = axis.imshow(np.squeeze(picture), **(signed if name == "difference" else grey))
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=9)
    for axis, label in zip(axes[0], labels):
        axis.set_title(label, fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01)
    bar.set_label(f"{names[1]} − {names[0]} (intensity from 0 to 1)", fontsize=10)
    figure.suptitle(title)
    return figure


def lines(
    x: np.ndarray,
    panels: dict[str, dict[str, np.ndarray]],
    x_label: str,
    bands: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    log_x: bool = False,
) -> Figure:
    """Curves over the same x side by side: {panel's title with its unit: {curve's name: y}}.

    Args:
        x: float (n,).
        panels: {title: {name: float (n,)}}.
        x_label: with its unit.
        bands: {curve's name: (low, high)}, drawn as a shade behind the curve of that name.
        log_x: a logarithmic x axis.
    """
    figure, axes = _figure(1, len(panels), 3.3)
    for axis, (title, named) in zip(axes.flat, panels.items()):
        for name, y in named.items():
            drawn = axis.plot(x, y, label=name)
            if name in (bands or {}):
                axis.fill_between(x, *bands[name], color=drawn[0].get_color(), alpha=0.18)
        axis.set(title=title, xlabel=x_label)
        if log_x:
            axis.set_xscale("log")
            axis.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            axis.minorticks_off()
    if len(panels) > 1 and len({tuple(named) for named in panels.values()}) == 1:
        handles, names = axis.get_legend_handles_labels()  # the same in every panel
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    else:
        for axis in axes.flat:
            axis.legend()
    return figure


def distributions(
    panels: dict[str, dict[str, np.ndarray]], x_label: str, marks: dict[str, float] | None = None
) -> Figure:
    """Densities side by side: {panel's title: {name: values}}, with marked values as lines.

    Of values on a grid, shares of cells for example, a bin holds a whole number of steps.
    """
    figure, axes = _figure(1, len(panels), 3.2)
    for axis, (title, named) in zip(axes.flat, panels.items()):
        every = np.concatenate(list(named.values()))
        distinct = np.unique(np.round(every, 6))
        if len(distinct) < len(every) / 4:
            step = np.diff(distinct).min()
            width = max(1, round(np.ptp(every) / step / 30)) * step
            edges = np.arange(every.min() - step / 2, every.max() + width, width)
        else:
            edges = np.linspace(every.min(), every.max(), 31)
        for name, values in named.items():
            axis.hist(values, edges, alpha=0.6, label=name, density=True)
        for number, (name, value) in enumerate((marks or {}).items()):
            axis.axvline(value, color=COLOURS[-1 - number], linestyle="--", label=name)
        axis.set(title=title, xlabel=x_label, ylabel="density")
        axis.locator_params(axis="x", nbins=6)  # of more, long labels touch
        axis.legend(fontsize=9)
    return figure


def bar_columns(
    names: list[str], columns: dict[str, list[float]], highlight: str | None = None, split=None
) -> Figure:
    """One row of bars for each name, several quantities side by side: {title: values}.

    Args:
        names: of the rows, the first at the top.
        columns: {title with its unit: a value for each name}.
        highlight: the row drawn in orange.
        split: a line is drawn above the row of this number.
    """
    figure, axes = _figure(1, len(columns), 0.27 * len(names) + 1.0, sharey=True)
    colours = [COLOURS[1] if name == highlight else COLOURS[0] for name in names]
    for axis, (title, values) in zip(axes.flat, columns.items()):
        drawn = axis.barh(range(len(names)), values, color=colours)
        fmt = "%.3f" if max(values) < 2 else "%.1f"
        axis.bar_label(drawn, fmt=fmt, padding=3, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.22)
        if split:
            axis.axhline(split - 0.5, color="black", lw=0.8)
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0, 0].invert_yaxis()
    return figure


def estimates(
    panels: dict[str, dict[str, tuple[float, float, float]]], widening: tuple[str, ...] = ()
) -> Figure:
    """Means with intervals, side by side: {panel's title: {row's name: (mean, low, high)}}.

    Args:
        panels: the same rows in each.
        widening: titles of panels whose axis is logarithmic beyond 1, for values far apart.
    """
    names = list(next(iter(panels.values())))
    figure, axes = _figure(1, len(panels), 0.42 * len(names) + 0.8, sharey=True)
    for axis, (title, values) in zip(axes.flat, panels.items()):
        for place, name in enumerate(names):
            mean, low, high = values[name]
            axis.plot([low, high], [place, place], lw=3, alpha=0.4, color=COLOURS[place])
            axis.plot(mean, place, "o", color=COLOURS[place])
        axis.set_title(title, fontsize=11)
        axis.set_yticks(range(len(names)), names)
        if title in widening:
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xticks([0, 1, 10], ["0", "1", "10"])
            axis.margins(x=0.12)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def own_x_curves(
    panels: dict[str, dict[str, tuple[list, list]]], x_label: str, ticks: list[float]
) -> Figure:
    """Curves with points of their own x each: {panel's title: {curve's name: (x, y)}}.

    The x axis is logarithmic, with the given ticks; curves whose name begins with "ours" are
    drawn solid.
    """
    figure, axes = _figure(1, len(panels), 3.4)
    for axis, (title, curves) in zip(axes.flat, panels.items()):
        for name, (x, y) in curves.items():
            solid = name.startswith("ours")
            axis.plot(x, y, "o-" if solid else "s--", ms=5 if solid else 4, label=name)
        axis.set(title=title, xlabel=x_label, xscale="log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axis.minorticks_off()
    axes[0, -1].legend(fontsize=9)
    return figure


def grouped_bars(values: dict[str, dict[str, float]], title: str, unit: str) -> Figure:
    """Horizontal bars in groups, {group: {bar's name: value}}, the values written beside them."""
    names = list(next(iter(values.values())))
    width = 0.8 / len(names)
    figure, axes = _figure(1, 1, 0.28 * len(names) * len(values) + 1.3)
    axis = axes[0, 0]
    for number, name in enumerate(names):
        heights = np.arange(len(values)) + width * (number - (len(names) - 1) / 2)
        drawn = axis.barh(heights, [group[name] for group in values.values()], width, label=name)
        axis.bar_label(drawn, fmt="%.2f", padding=4, fontsize=9)
    axis.set_yticks(range(len(values)), list(values))
    axis.invert_yaxis()
    axis.set(title=title, xlabel=unit)
    axis.margins(x=0.12)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def maps(
    panels: dict[str, np.ndarray],
    label: str,
    columns: int,
    background: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
    colours: str = "viridis",
    axis_labels: tuple[str, str] | None = None,
) -> Figure:
    """Tables of numbers as pictures with one colour bar: {title: float (height, width)}.

    Args:
        panels: NaN where there is nothing to show.
        label: of the colour bar, with its unit.
        columns: panels in a row.
        background: float (height, width) in [0, 1], drawn in grey where a panel has nothing to
            show, its outlines in white on top of every panel.
        limits: of the colours; the lowest and the highest value where not given.
        colours: the colour map.
        axis_labels: of the x and the y axis, for panels that aren't pictures.
    """
    rows = -(-len(panels) // columns)
    figure, axes = _figure(rows, columns, WIDTH / (columns + 0.4) * rows + 0.3 * rows)
    low, high = limits or (
        min(np.nanmin(values) for values in panels.values()),
        max(np.nanmax(values) for values in panels.values()),
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, values) in zip(axes.flat, panels.items()):
        axis.grid(False)
        if background is not None:
            axis.imshow(np.squeeze(background), cmap="gray", vmin=0, vmax=1)
        drawn = axis.imshow(values, cmap=colours, vmin=low, vmax=high)
        if background is not None:
            outlines = {"colors": "white", "linewidths": 0.8, "alpha": 0.8}
            axis.contour(np.squeeze(background), [0.15, 0.4], **outlines)
        axis.set_title(title, fontsize=10)
        if axis_labels:
            axis.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
        else:
            axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
    return figure


def points(
    panels: dict[str, tuple[np.ndarray, np.ndarray]],
    axis_labels: tuple[str, str],
    cloud: np.ndarray | None = None,
) -> Figure:
    """Coloured points side by side: {title with unit: (float (n, 2), float (n,) for the colour)}.

    Args:
        panels: points whose colour is NaN are drawn as grey crosses.
        axis_labels: of the x and the y axis.
        cloud: float (m, 2), small dots behind the points of every panel.
    """
    figure, axes = _figure(1, len(panels), 3.9, sharex=True, sharey=True)
    for axis, (title, (places, values)) in zip(axes.flat, panels.items()):
        if cloud is not None:
            axis.scatter(*cloud.T, s=6, color="0.65")
        empty = np.isnan(values)
        axis.scatter(*places[empty].T, s=40, color="0.4", marker="x")
        drawn = axis.scatter(*places[~empty].T, s=45, c=values[~empty], edgecolor="black", lw=0.4)
        figure.colorbar(drawn, ax=axis)
        axis.set(title=title, xlabel=axis_labels[0], ylabel=axis_labels[1])
    return figure


def histograms(panels: dict[str, dict[str, np.ndarray]], x_label: str, width=5 / 255) -> Figure:
    """Histograms side by side: {panel's title: {name: values of any shape}}.

    The same bins everywhere; heights are shares on a logarithmic axis, so that a rare value
    stays visible beside a frequent one. A bin's width should be a whole number of grey levels,
    or some bins catch a level more than others.
    """
    every = [values for named in panels.values() for values in named.values()]
    low, high = min(values.min() for values in every), max(values.max() for values in every)
    edges = np.arange(low - width / 20, high + width, width)
    figure, axes = _figure(1, len(panels), 3.2, sharey=True)
    for axis, (title, named) in zip(axes.flat, panels.items()):
        for name, values in named.items():
            shares = np.histogram(values, edges)[0] / np.size(values)
            axis.stairs(np.where(shares > 0, shares, np.nan), edges, label=name, linewidth=1.6)
        axis.set(title=title, xlabel=x_label, yscale="log")
        axis.legend(fontsize=9)
    axes[0, 0].set_ylabel("share of pixels")
    return figure


def boxes(
    pictures: dict[str, np.ndarray], rectangles: list[list[tuple]], title: str = ""
) -> Figure:
    """Pictures with rectangles drawn over them, e.g. a crop or the cells of a code grid.

    Args:
        pictures: {title: (height, width)}, grey from 0 to 1.
        rectangles: for each picture a list of (top, left, height, width) in its pixels.
        title: of the whole figure.
    """
    figure, axes = _figure(1, len(pictures), 0.95 * WIDTH / max(len(pictures), 2) + 0.5)
    for axis, (name, picture), outlines in zip(axes.flat, pictures.items(), rectangles):
        axis.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=1)
        axis.set(title=name, xlabel="column (pixels)", ylabel="row (pixels)")
        axis.grid(False)
        for top, left, height, width in outlines:
            axis.add_patch(
                plt.Rectangle(
                    (left - 0.5, top - 0.5), width, height, fill=False, color=COLOURS[4], lw=1.2
                )
            )
    figure.suptitle(title)
    return figure


def pipeline(stages: list[tuple[str, str, np.ndarray | None]], codebook: tuple[int, str]) -> Figure:
    """A model as boxes joined by arrows, read from left to right, with its codebook below.

    Args:
        stages: (name, shape, picture), one for each box; without a picture (None) it is drawn as
            a network that narrows before the codebook's stage and widens after it.
        codebook: the number of the stage that looks entries up, and the text of the codebook.
    """
    figure, axes = _figure(1, 1, 3.1)
    axis, (place, text) = axes[0, 0], codebook
    half, narrow = 0.37, 0.15
    for number, (name, shape, picture) in enumerate(stages):
        left, right = number - half, number + half
        ends = (half, half) if picture is not None else (half, narrow)
        ends = ends if number <= place else ends[::-1]
        corners = [(left, -ends[0]), (right, -ends[1]), (right, ends[1]), (left, ends[0])]
        if picture is not None:
            colours = "gray" if picture.dtype.kind == "f" else "viridis"
            axis.imshow(np.squeeze(picture), cmap=colours, extent=(left, right, -half, half))
        edge = COLOURS[1] if number == place else COLOURS[0]
        axis.add_patch(plt.Polygon(corners, facecolor="none", edgecolor=edge, lw=2))
        axis.text(number, 0.43, name, ha="center", va="bottom", fontsize=10, weight="bold")
        axis.text(number, -0.43, shape, ha="center", va="top", fontsize=9)
        if number:
            _arrow(axis, (left - 1 + 2 * half, 0), (left, 0))
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": COLOURS[1], "linewidth": 2}
    axis.text(place, -1.05, text, ha="center", va="center", fontsize=10, bbox=box)
    _arrow(axis, (place, -0.92), (place, -0.6))
    axis.axis("off")
    axis.set(xlim=(-0.5, len(stages) - 0.5), ylim=(-1.25, 0.7), aspect="equal")
    return figure


def _arrow(axis, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.4})


def codebook_plane(
    panels: dict[str, tuple[np.ndarray, np.ndarray]], links_below: int = 50
) -> Figure:
    """Vectors and codebook entries in the plane: {title: (vectors (n, 2), entries (K, 2))}.

    The background shows the part of the plane that belongs to each entry; thin lines lead from
    each vector to its entry where there are fewer than `links_below` vectors. Entries that no
    vector chooses are hollow.
    """
    everything = np.concatenate([np.concatenate(panel) for panel in panels.values()])
    low, high = everything.min(0), everything.max(0)
    margin = 0.08 * (high - low).max()
    x, y = (np.linspace(low[i] - margin, high[i] + margin, 200) for i in (0, 1))
    plane = np.stack(np.meshgrid(x, y), -1)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = _figure(rows, columns, 4.2 * rows, sharex=True, sharey=True)
    for axis, (title, (vectors, entries)) in zip(axes.flat, panels.items()):
        owner = ((plane[:, :, None] - entries) ** 2).sum(-1).argmin(-1)
        axis.pcolormesh(x, y, owner % 10, cmap="tab10", vmin=0, vmax=9, alpha=0.18)
        chosen = ((vectors[:, None] - entries) ** 2).sum(-1).argmin(-1)
        if len(vectors) < links_below:
            for vector, code in zip(vectors, chosen):
                axis.plot(*zip(vector, entries[code]), color="grey", lw=0.8)
        axis.plot(*vectors.T, ".", color="black", ms=7 if len(vectors) < links_below else 2)
        used = np.isin(np.arange(len(entries)), chosen)
        axis.plot(*entries[used].T, "D", color=COLOURS[1], ms=8, label="entry in use")
        axis.plot(*entries[~used].T, "D", color=COLOURS[1], mfc="none", ms=8, label="dead entry")
        axis.set(title=title, aspect="equal", xlim=x[[0, -1]], ylim=y[[0, -1]])
        axis.grid(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for axis in axes[-1]:
        axis.set_xlabel("first component")
    for line in axes:
        line[0].set_ylabel("second component")
    return figure


def cell_kinds(
    panels: dict[str, np.ndarray],
    kinds: list[str],
    columns: int,
    mark: tuple[int, int] | None = None,
    texts: dict[str, np.ndarray] | None = None,
) -> Figure:
    """Grids of cells, coloured by kind, with one legend: {title: int (rows, columns)}.

    Args:
        panels: numbers of kinds, 0 ... len(kinds) - 1.
        kinds: the names of up to five kinds, written into the legend.
        columns: panels in a row.
        mark: (row, column) of a cell that gets a star in every panel.
        texts: {title: (rows, columns)}, what is written into the cells of that panel.
    """
    colours = ("#E6E6E6", COLOURS[5], COLOURS[4], COLOURS[1], COLOURS[2])[: len(kinds)]
    rows = -(-len(panels) // columns)
    side = WIDTH / max(columns, 3)
    figure, axes = _figure(rows, columns, rows * (side + 0.2) + 0.5)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, cells) in zip(axes.flat, panels.items()):
        style = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": len(kinds) - 1}
        axis.pcolormesh(cells, edgecolors="white", linewidth=0.8, **style)
        axis.set(aspect="equal")
        axis.axis("off")
        axis.set_title(title, fontsize=10)
        axis.invert_yaxis()
        for (row, column), text in np.ndenumerate((texts or {}).get(title, np.empty((0, 0)))):
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9)
        if mark:
            axis.plot(mark[1] + 0.5, mark[0] + 0.5, "*", color="black", ms=11)
    swatches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    style = {"loc": "outside lower center", "ncols": len(kinds), "frameon": False}
    figure.legend(swatches, kinds, **style)
    return figure
