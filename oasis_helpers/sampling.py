"""Sampling code maps from a prior, one code after another, fast and exactly.

The usual loop (`FullPass`) recomputes the whole network for the whole grid at every position.
`GatedCache` computes only what the new position needs and remembers the rest (Ramachandran et al.
2017, "Fast Generation for Convolutional Autoregressive Models", arXiv 1704.06001).
"""

from __future__ import annotations

import threading

import numpy as np
from keras import ops
from scipy import special
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from oasis_helpers.data import SLICES_PER_SUBJECT
from oasis_helpers.layers import checked_codes, refuse_nan
from oasis_helpers.pixelcnn import UNKNOWN, GatedPixelCNN, Prior

# The products have few rows: a second thread of BLAS costs time. Threads of Python take turns,
# because each would restore the number of BLAS threads that another one set.
_ONE_BY_ONE = threading.RLock()


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
    below: np.ndarray | None = None,
) -> np.ndarray:
    """Samples `n` code maps; the same seed gives the same maps whatever the batch size.

    Args:
        prior: a `GatedPixelCNN` or `MaskedPixelCNN`.
        n: number of maps.
        slice_index: int 0 ... 31 for all maps, or int (n,), one for each; None spreads the maps
            evenly over all indices; `pixelcnn.NO_CONDITION` samples without one where possible.
        temperature: above 0; below 1 favours likely codes, 1 is the model's own distribution.
        top_k: keep only the k likeliest codes at each position.
        top_p: keep the likeliest codes that together hold this probability (nucleus sampling,
            Holtzman et al. 2019, arXiv 1904.09751).
        known: int (n, h, w) of given codes, -1 where a code is to be sampled.
        seed: of the random numbers.
        batch_size: maps sampled side by side; bounds the memory.
        cached: False recomputes the full forward pass at every position, as for a `MaskedPixelCNN`.
        progress: shows a bar over positions.
        below: int (n, h, w), the code maps of the slices below; None, or -1, where unknown.

    Returns:
        int32 (n, h, w).

    Raises:
        ValueError: for a setting out of its range, and for weights that hold NaN.
    """
    refuse_bad_settings(prior, n, temperature, top_k, top_p, known, seed, batch_size)
    codes, uniform, *inputs = initial_state(prior, n, slice_index, known, seed, below)
    batches = [slice(start, start + batch_size) for start in range(0, n, batch_size)]
    total = len(batches) * codes[0:1].size
    with tqdm(total=total, unit="code", leave=False, disable=not progress) as bar:
        for rows in batches:
            state = start(prior, [values[rows] for values in inputs], cached)
            fill(codes[rows], uniform[rows], state, temperature, top_k, top_p, bar)
    return codes.reshape(n, *prior.grid)


def sample_heads(
    prior: Prior,
    n: int,
    temperature: float = 1.0,
    seed: int = 0,
    known: np.ndarray | None = None,
    ventricles=None,
    brightness=None,
    progress: bool = False,
) -> np.ndarray:
    """Samples `n` heads slice by slice from the lowest, each slice given the one below it.

    Args:
        prior: a `GatedPixelCNN` that takes the slice below.
        n: number of heads.
        temperature, seed: as for `sample_codes`.
        known: int (n, 32, h, w) of given codes, -1 where a code is to be sampled. A sampled slice
            does not see known slices above it.
        ventricles, brightness: bins 0 (small, dark) ... B - 1 (large, bright), an int for all heads
            or int (n,). None samples as training heads are; heads with `known` slices get no
            condition unless asked for.
        progress: shows a bar over slices.

    Returns:
        int32 (n, 32, h, w).

    Raises:
        ValueError: for a setting out of its range, and a prior trained without the slice below.
    """
    stack = (SLICES_PER_SUBJECT,)
    refuse_bad_settings(prior, n, temperature, None, None, known, seed, 1, stack)
    if not prior.takes_below:
        raise ValueError("This prior was trained without the slice below; expected one with it.")
    codes, conditions, below = np.full((n, *stack, *prior.grid), UNKNOWN, "int32"), None, None
    if known is not None:
        codes[:] = known
    if prior.head_bins and (known is None or ventricles is not None or brightness is not None):
        conditions = head_conditions(prior, n, ventricles, brightness, seed)
    for index in tqdm(range(SLICES_PER_SUBJECT), unit="slice", disable=not progress):
        given = index, codes[:, index], (seed, index), below, conditions
        sampled, uniform, *inputs = initial_state(prior, n, *given)
        if (sampled < 0).any():
            fill(sampled, uniform, start(prior, inputs), temperature)
        codes[:, index] = below = sampled.reshape(n, *prior.grid)
    return codes


def head_conditions(prior: Prior, n: int, ventricles=None, brightness=None, seed=0) -> np.ndarray:
    """int32 (n, 4): the bins asked for; the others are sampled as training heads combine them."""
    bins, counts = np.arange(prior.head_bins), ops.convert_to_numpy(prior.head_counts)
    logits = np.log(counts + 1e-6)[None]  # never seen together: hardly ever
    for axis, asked in enumerate((ventricles, brightness)):
        if asked is None:
            continue
        if np.shape(asked) not in ((), (n,)) or not np.isin(asked, bins).all():
            expected = f"a bin from 0 to {prior.head_bins - 1}, or one for each of {n} heads"
            raise ValueError(f"A condition is {asked!r}; expected {expected}.")
        other = np.broadcast_to(asked, n)[:, None] != bins
        axes = [1 + number for number in range(counts.ndim) if number != axis]
        logits = np.where(np.expand_dims(other, axes), -np.inf, logits)
    logits = np.broadcast_to(logits, (n, *counts.shape)).reshape(n, counts.size)
    sampled = inverse_cdf(logits, np.random.default_rng((seed, SLICES_PER_SUBJECT)).random(n))
    return np.stack(np.unravel_index(sampled, counts.shape), axis=1).astype("int32")


def fill(codes, uniform, state, temperature=1.0, top_k=None, top_p=None, bar=None) -> None:
    """Replaces every -1 in `codes`, int (n, positions), by a sampled code, in place.

    Args:
        uniform: float (n, positions) in [0, 1), the random numbers.
        state: from `start`.
        bar: its `update` is called after every position.
    """
    temperature = np.clip(float(temperature), 1e-30, 1e30)  # so that float32 can hold quotients
    with _ONE_BY_ONE, threadpool_limits(1, user_api="blas"):
        for position in range(codes.shape[1]):
            logits = state.next_logits()
            highest = logits.max(-1, keepdims=True)
            refuse_nan("sample_codes' logits hold", highest)
            logits = (np.float32(logits) - highest) / np.float32(temperature)
            if top_k is not None or top_p is not None:
                logits = truncate_logits(logits, top_k, top_p)
            sampled = inverse_cdf(logits, uniform[:, position])
            codes[:, position] = np.where(codes[:, position] >= 0, codes[:, position], sampled)
            state.append(codes[:, position])
            if bar is not None:
                bar.update()


def initial_state(prior: Prior, n: int, slice_index, known, seed, below=None, conditions=None):
    """What `n` maps start from; the arguments are those of `sample_codes` and `Prior.inputs_for`.

    Returns:
        int32 (n, positions), the known codes and -1; float64 (n, positions) in [0, 1), random
        numbers; and one by one the inputs of the prior, with codes of 0.
    """
    if slice_index is None:
        slice_index = np.arange(n) * 32 // max(n, 1)
    uniform = np.random.default_rng(seed).random((n, prior.grid[0] * prior.grid[1]))
    codes = np.full(uniform.shape, UNKNOWN, "int32")
    if known is not None:
        codes[:] = np.reshape(known, codes.shape)
    zeros = np.zeros((n, *prior.grid), "int32")
    return codes, uniform, *prior.inputs_for(zeros, slice_index, below, conditions)


def start(prior: Prior, inputs, cached: bool = True):
    """An object with `next_logits() -> float (n, K)` and `append(codes)`, at the first position."""
    cached = cached and isinstance(prior, GatedPixelCNN)
    return GatedCache(prior, *inputs[1:]) if cached else FullPass(prior, inputs)


def truncate_logits(logits: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """Logits (n, K) with all but the likeliest codes at minus infinity."""
    order = np.argsort(-logits, axis=-1)
    ranked = np.take_along_axis(logits, order, -1)
    allowed = np.ones(ranked.shape, bool)
    if top_k is not None:
        allowed[:, top_k:] = False
    if top_p is not None:
        probability = np.exp(ranked - ranked[:, :1])
        probability /= probability.sum(-1, keepdims=True)
        allowed &= np.cumsum(probability, -1) - probability < top_p  # keeps the one that crosses
    np.put_along_axis(logits, order, np.where(allowed, ranked, -np.inf), -1)
    return logits


def inverse_cdf(logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Codes, int (n,), where the cumulative probability of logits (n, K) passes uniform (n,)."""
    cumulative = np.cumsum(np.exp(logits - logits.max(-1, keepdims=True)), axis=-1)
    return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)


def refuse_bad_settings(prior, n, temperature, top_k, top_p, known, seed, batch_size, stack=()):
    """Raises ValueError for a setting of `sample_codes` or `sample_heads` out of its range."""
    if not isinstance(prior, Prior):
        raise ValueError(
            f"prior is a {type(prior).__name__}; expected a GatedPixelCNN or a MaskedPixelCNN: "
            "some weights, such as the *-faithful ones, have no prior."
        )
    refuse_nan("The prior's weights hold", *prior.get_weights())
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
    if known.shape != (n, *stack, *prior.grid):
        raise ValueError(f"known has shape {known.shape}; expected {(n, *stack, *prior.grid)}.")
    checked_codes("known holds", known, prior.num_embeddings, lowest=-1)


class FullPass:
    """Recomputes the whole network for the whole grid at every position."""

    def __init__(self, prior: Prior, inputs):
        self.prior, self.others = prior, inputs[1:]
        self.codes = inputs[0].reshape(len(inputs[0]), -1)
        self.position = 0

    def next_logits(self) -> np.ndarray:
        maps = self.codes.reshape(-1, *self.prior.grid)
        logits = np.asarray(self.prior.predict_on_batch((maps, *self.others)))
        return logits.reshape(len(maps), -1, logits.shape[-1])[:, self.position]

    def append(self, codes: np.ndarray) -> None:
        self.codes[:, self.position] = codes
        self.position += 1


class GatedCache:
    """Remembers what later positions of a `GatedPixelCNN` need.

    The vertical stack is computed once a row. The horizontal stack is computed once a position, and
    its contribution to the positions on the right is added there at once. Attention keeps the keys
    and values of all earlier positions.
    """

    def __init__(self, prior: GatedPixelCNN, slice_index: np.ndarray, below=None, conditions=None):
        self.grid, self.count, self.position = prior.grid, len(slice_index), 0
        positions = prior.grid[0] * prior.grid[1]
        self.code_embedding = ops.convert_to_numpy(prior.code_embedding.embeddings)
        # What the neighbour adds is computed once a map, by the layers themselves.
        features = prior.position_features(below), prior.condition_features(slice_index, conditions)
        self.position_features, condition = map(ops.convert_to_numpy, features)
        self.first, *self.blocks = (
            _CachedBlock(block, condition, prior.grid) for block in (prior.first, *prior.gated)
        )
        self.attention = {
            int(after): _CachedAttention(layer, self.count, positions)
            for after, layer in prior.attention.items()
        }
        self.previous = np.zeros((self.count, prior.filters), "float32")
        self.head, self.logits = _affine(prior.head), _affine(prior.logits)

    def next_logits(self) -> np.ndarray:
        row, column = divmod(self.position, self.grid[1])
        if column == 0:
            self._vertical_stack(row)
        x = self.first.horizontal(column) + self.position_features[:, row, column] + self.previous
        for number, block in enumerate(self.blocks):
            block.scatter_right(column, x)
            x = x + block.horizontal(column)
            if number in self.attention:
                x = x + self.attention[number].step(x)
        x = np.maximum(x + self.vertical[:, column], 0)
        return self.logits(np.maximum(self.head(x), 0))

    def _vertical_stack(self, row: int) -> None:
        """Computes the vertical stack for one row."""
        x = self.first.vertical(row) + self.position_features[:, row]
        for block in self.blocks:
            block.store(row, x)
            x = x + block.vertical(row)
        self.vertical = x

    def append(self, codes: np.ndarray) -> None:
        row, column = divmod(self.position, self.grid[1])
        self.previous = self.code_embedding[codes]
        self.first.store(row, self.previous[:, None], column)
        self.first.scatter_right(column, self.previous)
        self.position += 1


class _CachedBlock:
    """A `GatedBlock` computed row by row (vertical) and position by position (horizontal)."""

    def __init__(self, block, condition: np.ndarray, grid: tuple[int, int]):
        (self.top, _), (self.side, _) = block.conv_vertical.margins
        self.width, self.filters = grid[1], block.filters
        self.rows, self.columns = block.conv_vertical.kernel_size
        self.conv_vertical = _affine(block.conv_vertical)
        self.vertical_to_horizontal = _affine(block.vertical_to_horizontal)
        self.project_vertical = _affine(block.project_vertical)
        self.project_horizontal = _affine(block.project_horizontal)
        self.condition_vertical = _affine(block.condition_vertical)(condition)[:, None]
        shape = (len(condition), grid[0] + self.top, grid[1] + 2 * self.side, block.filters)
        self.vertical_inputs = np.zeros(shape, "float32")

        conv = block.conv_horizontal
        kernel = ops.convert_to_numpy(conv.kernel)[0]  # (taps, C, 2 C)
        # The last tap reads the nearest column, so a column's contributions start with it.
        self.shift, self.contribution = int(conv.shift), np.concatenate(kernel[::-1], axis=1)
        bias = ops.convert_to_numpy(conv.bias) + _affine(block.condition_horizontal)(condition)
        self.bias = bias[:, None]
        # Before the gate: what every column of this row received so far, (n, columns, 2 C).
        columns = grid[1] + len(kernel) + self.shift
        self.pre_activation = np.zeros((len(condition), columns, 2 * block.filters), "float32")
        self.flat = self.pre_activation.reshape(len(condition), -1)

    def store(self, row: int, features: np.ndarray, column: int = 0) -> None:
        """Stores features (n, columns, C) that the vertical stack reads in later rows."""
        first = self.side + column
        self.vertical_inputs[:, row + self.top, first : first + features.shape[1]] = features

    def scatter_right(self, column: int, features: np.ndarray) -> None:
        """Adds the contribution of features (n, C) at a column to it and to those on its right."""
        contribution = features @ self.contribution
        first = (column + self.shift) * 2 * self.filters
        self.flat[:, first : first + contribution.shape[1]] += contribution

    def vertical(self, row: int) -> np.ndarray:
        """The vertical stack's new features of a row, float32 (n, width, C)."""
        band = self.vertical_inputs[:, row : row + self.rows]
        patches = np.stack(
            [band[:, :, first : first + self.columns] for first in range(self.width)], axis=1
        )
        v = self.conv_vertical(patches.reshape(*patches.shape[:2], -1))
        self.pre_activation[:, : self.width] = self.vertical_to_horizontal(v) + self.bias
        return self.project_vertical(_gate(v + self.condition_vertical))

    def horizontal(self, column: int) -> np.ndarray:
        """The horizontal stack's new features of a position, float32 (n, C)."""
        return self.project_horizontal(_gate(self.pre_activation[:, column]))


class _CachedAttention:
    """A `CausalAttention` that keeps the keys and values of earlier positions."""

    def __init__(self, layer, count: int, positions: int):
        norm, self.num_heads = layer.norm, layer.num_heads
        gamma, beta = map(ops.convert_to_numpy, (norm.gamma, norm.beta))
        kernel = ops.convert_to_numpy(layer.project.kernel)
        # The norm's scale and shift, and the scale of the scores, become part of the product.
        scale = np.ones(kernel.shape[1], "float32")
        scale[: len(scale) // 3] = layer.head_dim**-0.5
        self.kernel, self.bias = gamma[:, None] * kernel * scale, beta @ kernel * scale
        self.epsilon, self.out = norm.epsilon, _affine(layer.out)
        self.keys = np.empty((count, layer.num_heads, layer.head_dim, positions), "float32")
        self.values = np.empty((count, layer.num_heads, positions, layer.head_dim), "float32")
        self.length = 0

    def step(self, x: np.ndarray) -> np.ndarray:
        """What attention adds to the features of the next position, float32 (n, C)."""
        count, channels = x.shape
        centred = x - x.sum(1, keepdims=True) / channels
        variance = np.einsum("nc,nc->n", centred, centred)[:, None] / channels
        projected = centred @ self.kernel / np.sqrt(variance + self.epsilon) + self.bias
        query, key, value = projected.reshape(count, 3, self.num_heads, -1).transpose(1, 0, 2, 3)
        self.keys[..., self.length], self.values[:, :, self.length] = key, value
        self.length += 1
        scores = query[:, :, None] @ self.keys[..., : self.length]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mean = (weights @ self.values[:, :, : self.length]) / weights.sum(-1, keepdims=True)
        return self.out(mean.reshape(count, -1))


def _affine(layer):
    """A layer's product and bias as a function of rows (n, inputs), or of flattened patches."""
    kernel = ops.convert_to_numpy(layer.kernel)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else np.float32(0)
    return lambda x: x @ kernel + bias


def _gate(features: np.ndarray) -> np.ndarray:
    values, gates = np.split(features, 2, axis=-1)
    return np.tanh(values) * special.expit(gates)
