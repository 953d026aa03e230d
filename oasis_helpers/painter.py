"""The code painter: click positions of a code map and see the decoded slice change at once."""

from __future__ import annotations

import base64
import io

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from oasis_helpers.plotting import code_colours
from oasis_helpers.vqvae import VQVAE

SIDE = 24  # pixels of the screen for a grid position; three maps side by side fit a laptop


class CodePainter:
    """A notebook widget that paints with codes; show its `widget`.

    Choose a code on the palette, which shows a patch of each above its colour, dark to bright. A
    click on the code map writes the code there; in the mode "pick up", it takes the code from
    there. The decoded original map is on the left, the decoded edited map on the right, both
    cropped to the region of the grid. Tab and the space bar can replace the mouse.

    Args:
        vqvae: a tokenizer.
        images: float (n, size, size, 1) in [0, 1], the slices to choose from.
        names: one for each slice.
        patches: float (K, height, width) in [0, 1], what each code paints.

    Raises:
        ValueError: if the number of names differs, or as `VQVAE.encode`.
    """

    def __init__(self, vqvae: VQVAE, images: np.ndarray, names: list[str], patches: np.ndarray):
        self.vqvae, self.code_maps = vqvae, vqvae.encode(images)
        colours = np.resize(code_colours(self.code_maps)[0].colors, (vqvae.num_embeddings, 3))
        self.colours = [to_hex(colour) for colour in colours]
        rows, columns = vqvae.code_shape
        options = list(zip(names, range(len(images)), strict=True))
        self.slice = widgets.Dropdown(options=options, description="slice")
        self.mode = widgets.ToggleButtons(options=["paint", "pick up"])
        self.reset_button = widgets.Button(description="reset")
        self.label = widgets.Label()
        self.slice.layout.width, self.slice.style.description_width = "230px", "4em"
        self.mode.style.button_width = self.reset_button.layout.width = "7em"
        self.buttons = [[_button(self.click, i, j) for j in range(columns)] for i in range(rows)]
        self.original, self.edited = (
            widgets.Image(width=columns * SIDE, height=rows * SIDE) for _ in range(2)
        )
        dark_to_bright = patches.mean(axis=(1, 2)).argsort().tolist()
        self.palette = {code: _button(self.choose, code) for code in dark_to_bright}
        styles = ""  # CSS that shows the patches on the buttons
        for code, button in self.palette.items():
            button.tooltip, name = f"code {code}", f"code-{id(self)}-{code}"
            button.layout.border_bottom = f"6px solid {self.colours[code]}"
            button.add_class(name)
            data = base64.b64encode(_png(patches[code], (SIDE, SIDE))).decode()
            styles += f".{name} {{background: url(data:image/png;base64,{data})}}\n"
        self.choose(dark_to_bright[0])
        self.slice.observe(lambda _: self.reset(), names="value")
        self.reset_button.on_click(lambda _: self.reset())
        self.reset()
        grid = _grid([button for line in self.buttons for button in line], columns)
        controls = [self.slice, self.mode, self.reset_button, self.label]
        lines = [controls, [self.original, grid, self.edited], [_grid(self.palette.values(), 32)]]
        # A narrow window wraps the parts; without that it would cut off the last columns.
        boxes = [widgets.HBox(parts, layout={"flex_flow": "row wrap"}) for parts in lines]
        self.widget = widgets.VBox([*boxes, widgets.HTML(f"<style>{styles}</style>")])

    def choose(self, code: int) -> None:
        """Makes this the code that a click writes."""
        self.code, self.label.value = code, f"code {code}"
        for other, button in self.palette.items():
            button.layout.border_top = "4px solid red" if other == code else None

    def reset(self) -> None:
        """Shows the chosen slice's own code map."""
        self.codes = self.code_maps[self.slice.value].copy()
        for position in np.ndindex(self.codes.shape):
            self._colour(*position)
        self.original.value = self.edited.value = self._decoded()

    def click(self, row: int, column: int) -> None:
        """Writes the chosen code at a grid position, or picks up the code from there."""
        if self.mode.value == "pick up":
            return self.choose(int(self.codes[row, column]))
        self.codes[row, column] = self.code
        self._colour(row, column)
        self.edited.value = self._decoded()

    def _colour(self, row: int, column: int) -> None:
        button, code = self.buttons[row][column], self.codes[row, column]
        button.style.button_color = self.colours[code]
        button.tooltip = f"row {row}, column {column}: code {code}"

    def _decoded(self) -> bytes:
        top, left, height, width = self.vqvae.region
        picture = self.vqvae.decode(self.codes[None])[0, top : top + height, left : left + width, 0]
        return _png(picture, SIDE * np.array(self.codes.shape))


def _png(picture: np.ndarray, shape: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    grey = Image.fromarray(np.rint(255 * picture).astype("uint8"))
    grey.resize(shape[::-1], Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _button(action, *arguments: int) -> widgets.Button:
    layout = {"width": f"{SIDE}px", "height": f"{SIDE}px", "margin": "0", "padding": "0"}
    button = widgets.Button(layout=layout)
    button.on_click(lambda _: action(*arguments))
    return button


def _grid(buttons, columns: int) -> widgets.GridBox:
    layout = {"grid_template_columns": f"repeat({columns}, {SIDE}px)", "grid_gap": "0"}
    layout |= {"margin": "2px", "flex": "none"}  # as a picture's, so that positions line up
    return widgets.GridBox(list(buttons), layout=layout)
