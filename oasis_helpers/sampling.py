"""Drawing code maps from a prior, one code after another, fast and exactly.

The usual loop asks the whole network about the whole grid at every position and keeps one
number of it. A `*Cache` here computes only what the new position needs and remembers the rest
(Ramachandran et al. 2017, "Fast Generation for Convolutional Autoregressive Models",
arXiv 1704.06001). `FullPass` is the usual loop with the same two methods, kept to compare.
"""

from __future__ import annotations

import numpy as np
from keras import ops
from tqdm import tqdm

from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN, Prior, checked_slice_index


def sample_codes(
    prior: Prior,
    n: int,
    slice_index=None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 64,
    cached: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """Draws `n` code maps; the same seed draws the same maps whatever the batch size.

    Args:
        prior: a `GatedPixelCNN` or `MaskedPixelCNN`.
        n: number of maps.
        slice_index: int 0 ... 31 for all maps, or int (n,), one for each; None spreads the
            maps evenly over all indices, lowest first.
        temperature: above 0; below 1 favours likely codes, 1 is the model's own distribution.
        top_k: keep only the k likeliest codes at each position.
        top_p: keep the likeliest codes that together hold this probability (nucleus sampling,
            Holtzman et al. 2019, arXiv 1904.09751).
        known: int (n, h, w) of given codes, -1 where a code is to be drawn.
        seed: of the draws.
        batch_size: maps drawn side by side; bounds the memory.
        cached: False asks the whole network at every position, as slow as it is usual.
        progress: shows a bar over positions.

    Returns:
        int32 (n, h, w).

    Raises:
        ValueError: for a setting out of its range, with what was expected.
    """
    _refuse_bad_settings(prior, n, temperature, top_k, top_p, known)
    if slice_index is None:
        slice_index = np.arange(n) * 32 // max(n, 1)
    slice_index = checked_slice_index(slice_index, n)
    height, width = prior.grid
    uniform = np.random.default_rng(seed).random((n, height * width))
    codes = np.full((n, height * width), -1, "int32")
    if known is not None:
        codes[:] = np.asarray(known).reshape(n, -1)
    starts = range(0, n, batch_size)
    with tqdm(total=len(starts) * height * width, unit="code", disable=not progress) as bar:
        for start in starts:
            batch = slice(start, start + batch_size)
            state = start_drawing(prior, slice_index[batch], cached)
            for position in range(height * width):
                given = codes[batch, position]
                logits = truncated(state.next_logits() / temperature, top_k, top_p)
                drawn = inverse_cdf(logits, uniform[batch, position])
                codes[batch, position] = np.where(given >= 0, given, drawn)
                state.append(codes[batch, position])
                bar.update()
    return codes.reshape(n, height, width)


def start_drawing(prior: Prior, slice_index: np.ndarray, cached: bool = True):
    """An object with `next_logits() -> float (n, K)` and `append(codes)`, at the first position."""
    if not cached:
        return FullPass(prior, slice_index)
    caches = {GatedPixelCNN: GatedCache, MaskedPixelCNN: MaskedCache}
    return caches[type(prior)](prior, slice_index)


def truncated(logits: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """Logits (n, K) with all but the likeliest codes at minus infinity."""
    order = np.argsort(-logits, axis=-1)
    ranked = np.take_along_axis(logits, order, -1)
    keep = np.ones(ranked.shape, bool)
    if top_k is not None:
        keep[:, top_k:] = False
    if top_p is not None:
        share = np.exp(ranked - ranked[:, :1])
        share /= share.sum(-1, keepdims=True)
        keep &= np.cumsum(share, -1) - share < top_p  # the code that crosses the line stays
    np.put_along_axis(logits, order, np.where(keep, ranked, -np.inf), -1)
    return logits


def inverse_cdf(logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The codes int (n,) at which the cumulative probability of logits (n, K) passes uniform (n,)."""
    cumulative = np.cumsum(np.exp(logits - logits.max(-1, keepdims=True)), axis=-1)
    return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)


def _refuse_bad_settings(prior, n, temperature, top_k, top_p, known):
    if n < 0:
        raise ValueError(f"n = {n}: the number of maps can't be negative.")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: expected a number above 0.")
    if top_k is not None and not 1 <= top_k <= prior.num_embeddings:
        raise ValueError(f"top_k = {top_k}: expected 1 to {prior.num_embeddings}, the codes.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: expected a probability above 0, at most 1.")
    if known is None:
        return
    known = np.asarray(known)
    if known.shape != (n, *prior.grid):
        raise ValueError(f"known has shape {known.shape}; expected {(n, *prior.grid)}.")
    if known.size and not -1 <= known.min() <= known.max() < prior.num_embeddings:
        raise ValueError(
            f"known holds codes from {known.min()} to {known.max()}; expected 0 to "
            f"{prior.num_embeddings - 1}, and -1 where a code is to be drawn."
        )


# ------------------------------------------------------------------------- the usual slow loop


class FullPass:
    """Asks the whole network about the whole grid at every position."""

    def __init__(self, prior: Prior, slice_index: np.ndarray):
        self.prior, self.slice_index = prior, slice_index
        self.codes = np.zeros((len(slice_index), prior.grid[0] * prior.grid[1]), "int32")
        self.position = 0

    def next_logits(self) -> np.ndarray:
        maps = self.codes.reshape(-1, *self.prior.grid)
        logits = np.asarray(self.prior.predict_on_batch((maps, self.slice_index)))
        return logits.reshape(len(maps), -1, logits.shape[-1])[:, self.position]

    def append(self, codes: np.ndarray) -> None:
        self.codes[:, self.position] = codes
        self.position += 1


# -------------------------------------------------------------------------------------- caches


def _numpy(variable) -> np.ndarray:
    return ops.convert_to_numpy(variable)


def _dense(layer, x: np.ndarray) -> np.ndarray:
    """What a Dense or 1 x 1 convolution layer computes, without its activation."""
    kernel = _numpy(layer.kernel)
    y = x @ kernel.reshape(kernel.shape[-2:])
    return y + _numpy(layer.bias) if layer.use_bias else y


def _gate(features: np.ndarray) -> np.ndarray:
    values, switches = np.split(features, 2, axis=-1)
    return np.tanh(values) / (1 + np.exp(-switches))


class MaskedCache:
    """Remembers the features of every layer of a `MaskedPixelCNN` at all earlier positions."""

    def __init__(self, prior: MaskedPixelCNN, slice_index: np.ndarray):
        self.prior, self.position = prior, 0
        self.count = len(slice_index)
        height, width = prior.grid
        # The first convolution over one-hot codes is a sum of rows of its kernel: a table.
        self.table = _numpy(prior.first.kernel)
        self.reach = self.table.shape[0] // 2
        frame = (self.count, height + self.reach, width + 2 * self.reach)
        self.codes = np.full(frame, -1)
        self.inner = [
            np.zeros((self.count, height + 1, width + 2, prior.filters // 2), "float32")
            for _ in prior.residuals
        ]

    def next_logits(self) -> np.ndarray:
        row, column = divmod(self.position, self.prior.grid[1])
        x = np.maximum(self._look_up(row, column), 0)
        for (narrow, look, widen), kept in zip(self.prior.residuals, self.inner):
            kept[:, row + 1, column + 1] = np.maximum(_dense(narrow, x), 0)
            patch = kept[:, row : row + 2, column : column + 3].reshape(self.count, -1)
            kernel = _numpy(look.kernel)[:2].reshape(-1, look.filters)
            seen = np.maximum(patch @ kernel + _numpy(look.bias), 0)
            x = x + np.maximum(_dense(widen, seen), 0)
        for layer in self.prior.head:
            x = np.maximum(_dense(layer, x), 0)
        return _dense(self.prior.logits, x)

    def _look_up(self, row: int, column: int) -> np.ndarray:
        """The first layer's output (n, filters) before its activation."""
        total = np.tile(_numpy(self.prior.first.bias), (self.count, 1))
        for down, right in zip(*np.nonzero(self.prior.first.mask[:, :, 0, 0])):
            codes = self.codes[:, row + down, column + right]
            total += np.where(codes[:, None] >= 0, self.table[down, right, codes], 0)
        return total

    def append(self, codes: np.ndarray) -> None:
        row, column = divmod(self.position, self.prior.grid[1])
        self.codes[:, row + self.reach, column + self.reach] = codes
        self.position += 1


class GatedCache:
    """Remembers what later positions of a `GatedPixelCNN` need.

    The vertical stack is computed a row at a time, when the row is entered: it depends on
    earlier rows only. The horizontal stack is computed a position at a time from the features to
    the left, attention from the kept keys and values.
    """

    def __init__(self, prior: GatedPixelCNN, slice_index: np.ndarray):
        self.prior, self.position = prior, 0
        self.count = len(slice_index)
        height, width = prior.grid
        self.blocks = [prior.first, *prior.gated]
        condition = _numpy(prior.condition.embeddings)[slice_index]
        self.bias_above = [_dense(block.bias_above, condition) for block in self.blocks]
        self.bias_left = [_dense(block.bias_left, condition) for block in self.blocks]
        self.place = _numpy(prior.place.embeddings).reshape(height, width, -1)
        self.embedding = _numpy(prior.embed.embeddings)
        self.kernels = [
            tuple(_numpy(layer.kernel) for layer in (block.above, block.left))
            for block in self.blocks
        ]
        self.vertical, self.horizontal = [], []
        for block in self.blocks:
            (top, _), (side, _) = block.above.margins
            (_, _), (left, _) = block.left.margins
            shape = (self.count, height + top, width + 2 * side, prior.filters)
            self.vertical.append(np.zeros(shape, "float32"))
            self.horizontal.append(
                np.zeros((self.count, height, width + left, prior.filters), "float32")
            )
        self.attended = {name: ([], []) for name in prior.attention}
        self.previous = np.zeros((self.count, prior.filters), "float32")

    def next_logits(self) -> np.ndarray:
        row, column = divmod(self.position, self.prior.grid[1])
        if column == 0:
            self._enter_row(row)
        x = None
        for number, block in enumerate(self.blocks):
            kept, kernel = self.horizontal[number], self.kernels[number][1]
            (_, _), (left, _) = block.left.margins
            if x is not None:
                kept[:, row, column + left] = x
            patch = kept[:, row, column : column + kernel.shape[1]].reshape(self.count, -1)
            features = patch @ kernel.reshape(-1, kernel.shape[-1]) + _numpy(block.left.bias)
            features = features + self.down[number][:, column] + self.bias_left[number]
            new = _dense(block.out_left, _gate(features))
            x = new + self.place[row, column] + self.previous if block.shift else x + new
            if str(number - 1) in self.attended:
                x = x + self._attend(str(number - 1), x)
        x = np.maximum(x + self.top_of_vertical[:, column], 0)
        return _dense(self.prior.logits, np.maximum(_dense(self.prior.head, x), 0))

    def append(self, codes: np.ndarray) -> None:
        row, column = divmod(self.position, self.prior.grid[1])
        embedded = self.embedding[codes]
        (top, _), (side, _) = self.prior.first.above.margins
        (_, _), (left, _) = self.prior.first.left.margins
        self.vertical[0][:, row + top, column + side] = embedded
        self.horizontal[0][:, row, column + left] = embedded
        self.previous = embedded
        self.position += 1

    def _enter_row(self, row: int) -> None:
        """The vertical stack's features of one row, and what they hand to the horizontal one."""
        width = self.prior.grid[1]
        self.down, x = [], None
        for number, block in enumerate(self.blocks):
            kept, kernel = self.vertical[number], self.kernels[number][0]
            (top, _), (side, _) = block.above.margins
            if x is not None:
                kept[:, row + top, side : side + width] = x
            rows, columns = kernel.shape[:2]
            above = _numpy(block.above.bias) + sum(
                kept[:, row + down, right : right + width] @ kernel[down, right]
                for down in range(rows)
                for right in range(columns)
            )
            self.down.append(_dense(block.down, above))
            new = _dense(block.out_above, _gate(above + self.bias_above[number][:, None]))
            x = new + self.place[row] if block.shift else x + new
        self.top_of_vertical = x

    def _attend(self, name: str, x: np.ndarray) -> np.ndarray:
        layer = self.prior.attention[name]
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + layer.norm.epsilon)
        normed = centred / scale * _numpy(layer.norm.gamma) + _numpy(layer.norm.beta)
        query, key, value = np.moveaxis(
            _dense(layer.project, normed).reshape(self.count, 3, layer.heads, -1), 1, 0
        )
        keys, values = self.attended[name]
        keys.append(key)
        values.append(value)
        scores = np.einsum("nhd,pnhd->nhp", query, np.stack(keys)) / layer.head_dim**0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        seen = np.einsum("nhp,pnhd->nhd", weights, np.stack(values))
        return _dense(layer.out, seen.reshape(self.count, -1))
