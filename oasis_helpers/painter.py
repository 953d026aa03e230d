"""The code painter: click cells of a code map and see the decoded slice change at once."""

from __future__ import annotations

import io

import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from oasis_helpers.vqvae import VQVAE

CELL = 24  # pixels of the screen, the side of a cell; three maps side by side fit a laptop's


class CodePainter:
    """A notebook widget that paints with codes; show its `widget`.

    Choose a slice and a code; a click on a cell of the code map writes the code there, or, in the
    mode "pick up", takes the cell's code to paint with. The picture on the left is the decoded
    map as it was, the one on the right the map as it is now, both cut to the part that the map
    covers, so that a cell of the map and its pixels lie at the same place.

    Args:
        vqvae: a tokenizer.
        images: float (n, size, size, 1) in [0, 1], the slices to choose from.
        names: one for each slice.

    Raises:
        ValueError: for no slice, or another number of names; and as `VQVAE.encode` does.
    """

    def __init__(self, vqvae: VQVAE, images: np.ndarray, names: list[str]):
        if not len(images) == len(names) > 0:
            raise ValueError(
                f"{len(images)} images and {len(names)} names; expected a name for each image, "
                "and at least one."
            )
        self.vqvae, self.maps = vqvae, vqvae.encode(images)
        self.colours = [
            to_hex(c) for c in colormaps["viridis"](np.linspace(0, 1, vqvae.num_embeddings))
        ]
        height, width = vqvae.code_shape
        self.screen = (width * CELL, height * CELL)
        options = [(name, number) for number, name in enumerate(names)]
        self.slice = widgets.Dropdown(options=options, description="slice")
        self.code = widgets.IntSlider(max=vqvae.num_embeddings - 1, description="code")
        self.mode = widgets.ToggleButtons(options=["paint", "pick up"])
        self.anew = widgets.Button(description="start anew")
        self.slice.layout.width, self.code.layout.width = "230px", "250px"
        self.slice.style.description_width = self.code.style.description_width = "4em"
        self.mode.style.button_width = self.anew.layout.width = "7em"
        self.cells = [[self._cell(row, column) for column in range(width)] for row in range(height)]
        self.before, self.now = (
            widgets.Image(format="png", width=self.screen[0], height=self.screen[1])
            for _ in range(2)
        )
        self.slice.observe(lambda _: self.start_anew(), names="value")
        self.anew.on_click(lambda _: self.start_anew())
        self.start_anew()
        grid = widgets.GridBox(
            [cell for line in self.cells for cell in line],
            layout=widgets.Layout(
                grid_template_columns=f"repeat({width}, {CELL}px)",
                grid_template_rows=f"repeat({height}, {CELL}px)",
                grid_gap="0",
                margin="2px",  # as a picture's, so that cells and pixels line up
            ),
        )
        # A narrow window wraps what it has no room for; squeezed, a map would lose its last cells.
        wrapped = widgets.Layout(flex_flow="row wrap")
        for part in (self.before, grid, self.now):
            part.layout.flex = "none"
        self.widget = widgets.VBox(
            [
                widgets.HBox([self.slice, self.code, self.mode, self.anew], layout=wrapped),
                widgets.HBox([self.before, grid, self.now], layout=wrapped),
            ]
        )

    def _cell(self, row: int, column: int) -> widgets.Button:
        layout = widgets.Layout(width=f"{CELL}px", height=f"{CELL}px", margin="0", padding="0")
        button = widgets.Button(layout=layout)
        button.on_click(lambda _: self.click(row, column))
        return button

    def start_anew(self) -> None:
        """Shows the chosen slice's own code map."""
        self.codes = self.maps[self.slice.value].copy()
        for (row, column), code in np.ndenumerate(self.codes):
            self._colour(row, column, code)
        self.before.value = self.now.value = self._decoded()

    def click(self, row: int, column: int) -> None:
        """What a click on a cell does: writes the chosen code there, or takes the cell's code."""
        if self.mode.value == "pick up":
            self.code.value = int(self.codes[row, column])
            return
        self.codes[row, column] = self.code.value
        self._colour(row, column, self.code.value)
        self.now.value = self._decoded()

    def _colour(self, row: int, column: int, code: int) -> None:
        button = self.cells[row][column]
        button.style.button_color = self.colours[code]
        button.tooltip = f"row {row}, column {column}: code {code}"

    def _decoded(self) -> bytes:
        """The picture of the map as it is now, a PNG file."""
        top, left, height, width = self.vqvae.region
        picture = self.vqvae.decode(self.codes[None])[0, ..., 0]
        picture = picture[top : top + height, left : left + width]
        file = io.BytesIO()
        grey = Image.fromarray(np.rint(255 * picture).astype("uint8"))
        grey.resize(self.screen, Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue()
