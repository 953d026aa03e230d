"""The code painter: click positions of a code map and see the decoded slice change at once."""

from __future__ import annotations

import io

import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from oasis_helpers.vqvae import VQVAE

SIDE = 24  # pixels of the screen for a grid position; three maps side by side fit a laptop


class CodePainter:
    """A notebook widget that paints with codes; show its `widget`.

    Choose a slice and a code. A click on the code map writes the code at that position; in the
    mode "pick up", it takes the code from there. The picture on the left is the decoded original
    map, the picture on the right the decoded edited map. Both are cropped to the region that the
    grid covers, so that a grid position and its pixels are at the same place.

    Args:
        vqvae: a tokenizer.
        images: float (n, size, size, 1) in [0, 1], the slices to choose from.
        names: one for each slice.

    Raises:
        ValueError: if there is no slice or the number of names differs; also as `VQVAE.encode`.
    """

    def __init__(self, vqvae: VQVAE, images: np.ndarray, names: list[str]):
        if not len(images) == len(names) > 0:
            raise ValueError(
                f"{len(images)} images and {len(names)} names; expected a name for each image, "
                "and at least one."
            )
        self.vqvae, self.code_maps = vqvae, vqvae.encode(images)
        self.colours = [
            to_hex(c) for c in colormaps["viridis"](np.linspace(0, 1, vqvae.num_embeddings))
        ]
        rows, columns = vqvae.code_shape
        self.screen = (columns * SIDE, rows * SIDE)
        options = [(name, number) for number, name in enumerate(names)]
        self.slice = widgets.Dropdown(options=options, description="slice")
        self.code = widgets.IntSlider(max=vqvae.num_embeddings - 1, description="code")
        self.mode = widgets.ToggleButtons(options=["paint", "pick up"])
        self.reset_button = widgets.Button(description="reset")
        self.slice.layout.width, self.code.layout.width = "230px", "250px"
        self.slice.style.description_width = self.code.style.description_width = "4em"
        self.mode.style.button_width = self.reset_button.layout.width = "7em"
        self.buttons = [[self._button(i, j) for j in range(columns)] for i in range(rows)]
        self.original, self.edited = (
            widgets.Image(format="png", width=self.screen[0], height=self.screen[1])
            for _ in range(2)
        )
        self.slice.observe(lambda _: self.reset(), names="value")
        self.reset_button.on_click(lambda _: self.reset())
        self.reset()
        grid = widgets.GridBox(
            [button for line in self.buttons for button in line],
            layout=widgets.Layout(
                grid_template_columns=f"repeat({columns}, {SIDE}px)",
                grid_template_rows=f"repeat({rows}, {SIDE}px)",
                grid_gap="0",
                margin="2px",  # as a picture's, so that positions and pixels line up
            ),
        )
        # A narrow window wraps the parts; without that it would cut off the last columns.
        wrapped = widgets.Layout(flex_flow="row wrap")
        for part in (self.original, grid, self.edited):
            part.layout.flex = "none"
        controls = [self.slice, self.code, self.mode, self.reset_button]
        self.widget = widgets.VBox(
            [
                widgets.HBox(controls, layout=wrapped),
                widgets.HBox([self.original, grid, self.edited], layout=wrapped),
            ]
        )

    def _button(self, row: int, column: int) -> widgets.Button:
        layout = widgets.Layout(width=f"{SIDE}px", height=f"{SIDE}px", margin="0", padding="0")
        button = widgets.Button(layout=layout)
        button.on_click(lambda _: self.click(row, column))
        return button

    def reset(self) -> None:
        """Shows the chosen slice's own code map."""
        self.codes = self.code_maps[self.slice.value].copy()
        for (row, column), code in np.ndenumerate(self.codes):
            self._colour(row, column, code)
        self.original.value = self.edited.value = self._decode_png()

    def click(self, row: int, column: int) -> None:
        """Writes the chosen code at a grid position, or picks up the code from there."""
        if self.mode.value == "pick up":
            self.code.value = int(self.codes[row, column])
            return
        self.codes[row, column] = self.code.value
        self._colour(row, column, self.code.value)
        self.edited.value = self._decode_png()

    def _colour(self, row: int, column: int, code: int) -> None:
        button = self.buttons[row][column]
        button.style.button_color = self.colours[code]
        button.tooltip = f"row {row}, column {column}: code {code}"

    def _decode_png(self) -> bytes:
        """The decoded code map as a PNG file."""
        top, left, height, width = self.vqvae.region
        picture = self.vqvae.decode(self.codes[None])[0, ..., 0]
        picture = picture[top : top + height, left : left + width]
        file = io.BytesIO()
        grey = Image.fromarray(np.rint(255 * picture).astype("uint8"))
        grey.resize(self.screen, Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue()
