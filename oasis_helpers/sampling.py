"""Drawing code maps from a prior, one code after another, fast and exactly.

The usual loop asks the whole network about the whole grid at every position and keeps one
number of it. A `*Cache` here computes only what the new position needs and remembers the rest
(Ramachandran et al. 2017, "Fast Generation for Convolutional Autoregressive Models",
arXiv 1704.06001). `FullPass` is the usual loop with the same two methods, kept to compare.
"""

from __future__ import annotations

import numpy as np
from keras import ops
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from oasis_helpers.layers import refuse_other_codes
from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN, Prior, checked_slice_index


# The products here have few rows: a second thread costs more time than it saves.
@threadpool_limits.wrap(limits=1, user_api="blas")
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
    part: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """Draws `n` code maps; the same seed draws the same maps whatever the batch size.

    Args:
        prior: a `GatedPixelCNN` or `MaskedPixelCNN`.
        n: number of maps.
        slice_index: int 0 ... 31 for all maps, or int (n,), one for each; None spreads the
            maps evenly over all indices, lowest first; `pixelcnn.ANY_SLICE` leaves the choice
            to a prior that knows it.
        temperature: above 0; below 1 favours likely codes, 1 is the model's own distribution.
        top_k: keep only the k likeliest codes at each position.
        top_p: keep the likeliest codes that together hold this probability (nucleus sampling,
            Holtzman et al. 2019, arXiv 1904.09751).
        known: int (n, h, w) of given codes, -1 where a code is to be drawn.
        seed: of the draws.
        batch_size: maps drawn side by side; bounds the memory.
        cached: False asks the whole network at every position, as slow as it is usual.
        progress: shows a bar over positions.
        part: (rank, workers): draws only this worker's share of the maps; all shares, one after
            the other, are what one worker would draw.

    Returns:
        int32 (n, h, w), or that share of it.

    Raises:
        ValueError: for a setting out of its range, with what was expected.
    """
    refuse_bad_settings(prior, n, temperature, top_k, top_p, known, seed, batch_size)
    slice_index, uniform, codes = start_of_draws(prior, n, slice_index, known, seed)
    height, width = prior.grid
    rank, workers = part
    slice_index, uniform, codes = (
        np.array_split(whole, workers)[rank] for whole in (slice_index, uniform, codes)
    )
    n = len(codes)
    starts = range(0, n, batch_size)
    with tqdm(total=len(starts) * height * width, unit="code", disable=not progress) as bar:
        for start in starts:
            batch = slice(start, start + batch_size)
            state = start_drawing(prior, slice_index[batch], cached)
            for position in range(height * width):
                given = codes[batch, position]
                logits = state.next_logits() / temperature
                if top_k is not None or top_p is not None:
                    logits = truncated(logits, top_k, top_p)
                drawn = inverse_cdf(logits, uniform[batch, position])
                codes[batch, position] = np.where(given >= 0, given, drawn)
                state.append(codes[batch, position])
                bar.update()
    return codes.reshape(n, height, width)


def start_of_draws(prior: Prior, n: int, slice_index, known: np.ndarray | None, seed: int) -> tuple:
    """What `n` draws start from; the arguments are those of `sample_codes`.

    Returns:
        (slice_index, uniform, codes): int32 (n,); float64 (n, cells) in [0, 1), the random
        numbers; int32 (n, cells), the known codes and -1.
    """
    if slice_index is None:
        slice_index = np.arange(n) * 32 // max(n, 1)
    slice_index = checked_slice_index(slice_index, n, prior.knows_any_slice)
    uniform = np.random.default_rng(seed).random((n, prior.grid[0] * prior.grid[1]))
    codes = np.full(uniform.shape, -1, "int32")
    if known is not None:
        codes[:] = np.reshape(known, codes.shape)
    return slice_index, uniform, codes


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
    """Codes, int (n,), where the cumulative probability of logits (n, K) passes uniform (n,)."""
    cumulative = np.cumsum(np.exp(logits - logits.max(-1, keepdims=True)), axis=-1)
    return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)


def refuse_bad_settings(prior, n, temperature, top_k, top_p, known, seed, batch_size) -> None:
    """Raises ValueError for a setting of `sample_codes` out of its range."""
    if not isinstance(prior, Prior):
        raise ValueError(
            f"prior is a {type(prior).__name__}; expected a GatedPixelCNN or a MaskedPixelCNN: "
            "some weights, such as the *-faithful ones, have no prior."
        )
    whole_numbers = {"n": (n, 0), "seed": (seed, 0), "batch_size": (batch_size, 1)}
    for name, (value, least) in whole_numbers.items():
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} = {value!r}: expected a whole number, {least} or more.")
    if not (isinstance(temperature, (int, float, np.number)) and 0 < temperature < np.inf):
        raise ValueError(f"temperature = {temperature!r}: expected a number above 0.")
    if top_k is not None and not (
        isinstance(top_k, (int, np.integer)) and 1 <= top_k <= prior.num_embeddings
    ):
        raise ValueError(f"top_k = {top_k!r}: expected 1 to {prior.num_embeddings}, the codes.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p!r}: expected a probability above 0, at most 1.")
    if known is None:
        return
    known = np.asarray(known)
    if known.shape != (n, *prior.grid):
        raise ValueError(f"known has shape {known.shape}; expected {(n, *prior.grid)}.")
    refuse_other_codes("known holds", known, prior.num_embeddings, lowest=-1)


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


def affine(layer, rows=slice(None)):
    """A layer's product and bias as a function of rows (n, inputs), weights read once into NumPy.

    A convolution's kernel is flattened, so its input is a flattened patch; `rows` keeps some of
    the kernel's rows.
    """
    kernel = ops.convert_to_numpy(layer.kernel)
    if kernel.ndim == 4:
        kernel = kernel[rows].reshape(-1, kernel.shape[-1])
    bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else np.float32(0)
    return lambda x: x @ kernel + bias


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _gate(features: np.ndarray) -> np.ndarray:
    half = features.shape[-1] // 2
    return np.tanh(features[..., :half]) / (1 + np.exp(-features[..., half:]))


class MaskedCache:
    """Remembers the features of every layer of a `MaskedPixelCNN` at all earlier positions."""

    def __init__(self, prior: MaskedPixelCNN, slice_index: np.ndarray):
        self.grid, self.count, self.position = prior.grid, len(slice_index), 0
        # The first convolution over one-hot codes is a sum of rows of its kernel: a table.
        self.table = ops.convert_to_numpy(prior.first.kernel)
        self.table_bias = ops.convert_to_numpy(prior.first.bias)
        self.visible = list(zip(*np.nonzero(prior.first.mask[:, :, 0, 0])))
        self.reach = len(self.table) // 2
        height, width = prior.grid
        self.codes = np.full((self.count, height + self.reach, width + 2 * self.reach), -1)
        # Of a 3 x 3 mask B the last row is all zeros.
        self.residuals = [
            (affine(narrow), affine(look, slice(2)), affine(widen))
            for narrow, look, widen in prior.residuals
        ]
        shape = (self.count, height + 1, width + 2, prior.filters // 2)
        self.inner = [np.zeros(shape, "float32") for _ in prior.residuals]
        self.head = [affine(layer) for layer in prior.head]
        self.logits = affine(prior.logits)

    def next_logits(self) -> np.ndarray:
        row, column = divmod(self.position, self.grid[1])
        x = _relu(self._look_up(row, column))
        for (narrow, look, widen), kept in zip(self.residuals, self.inner):
            kept[:, row + 1, column + 1] = _relu(narrow(x))
            patch = kept[:, row : row + 2, column : column + 3].reshape(self.count, -1)
            x = x + _relu(widen(_relu(look(patch))))
        for layer in self.head:
            x = _relu(layer(x))
        return self.logits(x)

    def _look_up(self, row: int, column: int) -> np.ndarray:
        """The first layer's output (n, filters) before its activation."""
        total = np.tile(self.table_bias, (self.count, 1))
        for down, right in self.visible:
            codes = self.codes[:, row + down, column + right]
            total += np.where(codes[:, None] >= 0, self.table[down, right, codes], 0)
        return total

    def append(self, codes: np.ndarray) -> None:
        row, column = divmod(self.position, self.grid[1])
        self.codes[:, row + self.reach, column + self.reach] = codes
        self.position += 1


class GatedCache:
    """Remembers what later positions of a `GatedPixelCNN` need.

    The vertical stack is computed a row at a time, when the row is entered: it depends on
    earlier rows only. The horizontal stack is computed a position at a time, and what a position
    means to those on its right is added to them at once. Attention keeps the keys and values of
    all earlier positions.
    """

    def __init__(self, prior: GatedPixelCNN, slice_index: np.ndarray):
        self.grid, self.count, self.position = prior.grid, len(slice_index), 0
        self.embedding = ops.convert_to_numpy(prior.embed.embeddings)
        self.place = ops.convert_to_numpy(prior.place.embeddings).reshape(*prior.grid, -1)
        condition = ops.convert_to_numpy(prior.condition.embeddings)[slice_index]
        self.first, *self.blocks = (
            _CachedBlock(block, condition, prior.grid) for block in (prior.first, *prior.gated)
        )
        cells = prior.grid[0] * prior.grid[1]
        self.attention = [
            _CachedAttention(prior.attention[str(number)], self.count, cells)
            if str(number) in prior.attention
            else None
            for number in range(len(self.blocks))
        ]
        self.previous = np.zeros((self.count, prior.filters), "float32")
        self.head, self.logits = affine(prior.head), affine(prior.logits)

    def next_logits(self) -> np.ndarray:
        row, column = divmod(self.position, self.grid[1])
        if column == 0:
            self._enter_row(row)
        x = self.first.step(column) + self.place[row, column] + self.previous
        for block, attention in zip(self.blocks, self.attention):
            block.tell_right(column, x)
            x = x + block.step(column)
            if attention:
                x = x + attention.step(x)
        x = _relu(x + self.top_of_vertical[:, column])
        return self.logits(_relu(self.head(x)))

    def _enter_row(self, row: int) -> None:
        """Carries the vertical stack through one row."""
        x = self.first.enter_row(row) + self.place[row]
        for block in self.blocks:
            block.keep_above(row, x)
            x = x + block.enter_row(row)
        self.top_of_vertical = x

    def append(self, codes: np.ndarray) -> None:
        row, column = divmod(self.position, self.grid[1])
        self.previous = self.embedding[codes]
        self.first.keep_above(row, self.previous[:, None], column)
        self.first.tell_right(column, self.previous)
        self.position += 1


class _CachedBlock:
    """A `GatedBlock` computed row by row (vertical) and position by position (horizontal).

    One tanh does both halves of a gate, because sigmoid(b) = (1 + tanh(b / 2)) / 2; the two
    halvings are part of the horizontal stack's weights as they are read here.
    """

    def __init__(self, block, condition: np.ndarray, grid: tuple[int, int]):
        (self.top, _), (self.side, _) = block.above.margins
        self.width, self.filters = grid[1], block.filters
        self.rows, self.columns = block.above.kernel_size
        self.above, self.down = affine(block.above), affine(block.down)
        self.out_above = affine(block.out_above)
        self.bias_above = affine(block.bias_above)(condition)[:, None]
        shape = (len(condition), grid[0] + self.top, grid[1] + 2 * self.side, block.filters)
        self.seen_above = np.zeros(shape, "float32")

        self.halved = np.repeat(np.float32([1, 0.5]), block.filters)
        left = ops.convert_to_numpy(block.left.kernel)[0] * self.halved  # (taps, C, 2 C)
        # The last tap reads the nearest column: what is told right starts with it.
        self.taps, self.shift = len(left), int(block.left.shift)
        self.told = np.concatenate(left[::-1], axis=1)
        bias = ops.convert_to_numpy(block.left.bias) + affine(block.bias_left)(condition)
        self.bias_left = (bias * self.halved)[:, None]
        self.out_left, self.bias_out = (
            ops.convert_to_numpy(weight) for weight in (block.out_left.kernel, block.out_left.bias)
        )
        self.out_left = self.out_left / 2
        # Before the gate: what every column of this row was told so far, (n, columns, 2 C).
        columns = grid[1] + self.taps + self.shift
        self.before_gate = np.zeros((len(condition), columns, 2 * block.filters), "float32")
        self.in_line = self.before_gate.reshape(len(condition), -1)

    def keep_above(self, row: int, features: np.ndarray, column: int = 0) -> None:
        start = self.side + column
        self.seen_above[:, row + self.top, start : start + features.shape[1]] = features

    def tell_right(self, column: int, features: np.ndarray) -> None:
        """Adds what features (n, C) at a column mean to it and to the columns on its right."""
        told = features @ self.told
        start = (column + self.shift) * 2 * self.filters
        self.in_line[:, start : start + told.shape[1]] += told

    def enter_row(self, row: int) -> np.ndarray:
        """The vertical stack's new features of a row, float32 (n, width, C)."""
        band = self.seen_above[:, row : row + self.rows]
        patches = np.stack(
            [band[:, :, start : start + self.columns] for start in range(self.width)], axis=1
        )
        above = self.above(patches.reshape(*patches.shape[:2], -1))
        self.before_gate[:, : self.width] = self.down(above) * self.halved + self.bias_left
        return self.out_above(_gate(above + self.bias_above))

    def step(self, column: int) -> np.ndarray:
        """The horizontal stack's new features of a position, float32 (n, C)."""
        both = np.tanh(self.before_gate[:, column])
        values, switches = both[:, : self.filters], both[:, self.filters :]
        return (values * (switches + 1)) @ self.out_left + self.bias_out


class _CachedAttention:
    """A `CausalAttention` that keeps the keys and values of earlier positions."""

    def __init__(self, layer, count: int, cells: int):
        norm, self.heads = layer.norm, layer.heads
        gamma, beta = map(ops.convert_to_numpy, (norm.gamma, norm.beta))
        kernel = ops.convert_to_numpy(layer.project.kernel)
        # The norm's scale and shift, and the scale of the scores, become part of the product.
        scaled = np.ones(kernel.shape[1], "float32")
        scaled[: len(scaled) // 3] = layer.head_dim**-0.5
        self.kernel, self.bias = gamma[:, None] * kernel * scaled, beta @ kernel * scaled
        self.epsilon, self.out = norm.epsilon, affine(layer.out)
        self.keys = np.empty((count, layer.heads, layer.head_dim, cells), "float32")
        self.values = np.empty((count, layer.heads, cells, layer.head_dim), "float32")
        self.seen = 0

    def step(self, x: np.ndarray) -> np.ndarray:
        count, channels = x.shape
        centred = x - x.sum(1, keepdims=True) / channels
        variance = np.einsum("nc,nc->n", centred, centred)[:, None] / channels
        projected = centred @ self.kernel / np.sqrt(variance + self.epsilon) + self.bias
        query, key, value = projected.reshape(count, 3, self.heads, -1).transpose(1, 0, 2, 3)
        self.keys[..., self.seen], self.values[:, :, self.seen] = key, value
        self.seen += 1
        scores = query[:, :, None] @ self.keys[..., : self.seen]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mean = (weights @ self.values[:, :, : self.seen]) / weights.sum(-1, keepdims=True)
        return self.out(mean.reshape(count, -1))
