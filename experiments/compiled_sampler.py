"""Sampling code maps by one function that XLA compiles.

`sampling.GatedCache` has NumPy run each of its many small products. Here the same computation, with
the loop over positions, is one function for XLA, the compiler of TensorFlow and JAX. It samples in
half the time, but compiling takes seconds and the code is no shorter, so it does not replace the
cache. `experiments.sampling` times both.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import keras
import numpy as np
from keras import ops

from oasis_helpers.causal import CausalAttention, CausalConv2D, GatedBlock, gate
from oasis_helpers.pixelcnn import HEAD_CONDITIONS, UNKNOWN, GatedPixelCNN
from oasis_helpers.sampling import initial_state, refuse_bad_settings


class CompiledSampler:
    """Samples `n` code maps at a time from a `GatedPixelCNN`; the first call compiles.

    Args:
        prior: a `GatedPixelCNN`.
        n: number of maps in every call.

    Call arguments:
        slice_index, temperature, known, seed: as for `sample_codes`.

    Returns:
        int32 (n, h, w): the maps that `sample_codes` samples with the same seed, except where
        rounding moves a sample from one code to the next.

    Raises:
        ValueError: for another prior, another Keras backend, or a setting out of its range.
    """

    def __init__(self, prior: GatedPixelCNN, n: int):
        if not isinstance(prior, GatedPixelCNN):
            raise ValueError(
                f"prior is a {type(prior).__name__}; expected a GatedPixelCNN: use `sample_codes` "
                "for any other."
            )
        refuse_bad_settings(prior, n, 1.0, None, None, None, 0, 1)
        self.prior, self.n, self.sample = prior, n, with_xla(partial(sample_maps, prior))

    def __call__(self, slice_index=None, temperature=1.0, known=None, seed=0) -> np.ndarray:
        refuse_bad_settings(self.prior, self.n, temperature, None, None, known, seed, 1)
        state = initial_state(self.prior, self.n, slice_index, known, seed)
        codes, uniform, _, slice_index, *_ = state

        def sample(rows: np.ndarray) -> np.ndarray:
            maps = (x[rows].T.reshape(*self.prior.grid, -1) for x in (np.float32(uniform), codes))
            sampled = self.sample(np.float32(temperature), slice_index[rows], *maps)
            return ops.convert_to_numpy(sampled).transpose(2, 0, 1)

        # XLA leaves products this small on one core; two halves of a batch keep two cores busy.
        # Both have equally many maps, if need be a copy among them: one compilation is enough.
        workers = max(1, min(2, os.cpu_count() or 1, self.n))
        rows = np.arange(-(-self.n // workers) * workers) % self.n
        with ThreadPoolExecutor(workers) as threads:
            sampled = list(threads.map(sample, np.split(rows, workers)))
        return np.concatenate(sampled)[: self.n]


def with_xla(function):
    """A function of arrays that XLA compiles at the first call with arrays of a shape."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        return tensorflow.function(function, jit_compile=True, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    raise ValueError(f"Keras runs on {backend}, without XLA: use `sample_codes`.")


def sample_maps(prior: GatedPixelCNN, temperature, slice_index, uniform, codes):
    """What `GatedCache` computes, as one function: m maps of codes, int32 (h, w, m).

    From float32 (), int32 (m,), random numbers float32 (h, w, m) in [0, 1), and known codes and -1,
    int32 (h, w, m). The axis of maps stands just before that of channels, so that what belongs to a
    position is contiguous: a row's features are float32 (w, m, C), a position's (m, C).
    """
    (height, width), maps, filters = prior.grid, codes.shape[2], prior.filters
    condition = prior.condition_features(
        slice_index, ops.full((maps, HEAD_CONDITIONS), UNKNOWN, "int32")
    )
    positions = prior.position_features(ops.full((1, height, width), UNKNOWN, "int32"))
    positions = ops.reshape(positions, (height, width, 1, filters))
    # How many rows above, and columns to the left, each block remembers.
    spans = [block.radius + block.shift for block in (prior.first, *prior.gated)]

    def sample_row(row, state):
        codes, previous, upper, memory = state
        vertical, biases, upper = vertical_stack(prior, upper, positions[row], condition)

        def sample_code(column, state):
            codes, previous, left, memory = state
            x = positions[row, column] + previous
            bias = [every[column] for every in biases]
            x, left, memory = horizontal_stack(prior, x, left, bias, memory, row * width + column)
            logits = prior.logits(prior.head(ops.relu(x + vertical[column])))
            sampled = inverse_cdf(logits / temperature, uniform[row, column])
            code = ops.where(codes[row, column] < 0, sampled, codes[row, column])
            codes = ops.slice_update(codes, (row, column, 0), code[None, None])
            previous = prior.code_embedding(code)
            return codes, previous, (moved(left[0], previous), *left[1:]), memory

        left = tuple(ops.zeros((columns, maps, filters)) for columns in spans)
        start = (codes, previous, left, memory)
        codes, previous, _, memory = ops.fori_loop(0, width, sample_code, start)
        upper = (moved(upper[0], prior.code_embedding(codes[row])), *upper[1:])
        return codes, previous, upper, memory

    upper = tuple(ops.zeros((rows, width, maps, filters)) for rows in spans)
    keys = ops.zeros((maps, prior.num_heads, height * width, filters // prior.num_heads))
    memory = {after: (keys, keys) for after in prior.attention}
    start = (codes, ops.zeros((maps, filters)), upper, memory)
    return ops.fori_loop(0, height, sample_row, start)[0]


def vertical_stack(prior: GatedPixelCNN, upper, position, condition):
    """A row's features (w, m, C), each block's horizontal bias, and the rows to remember."""
    x, bias = vertical(prior.first, upper[0], condition)
    x, biases, windows = x + position, [bias], [upper[0]]
    for block, rows in zip(prior.gated, upper[1:]):
        rows = ops.concatenate([rows, x[None]])
        new, bias = vertical(block, rows, condition)
        x, biases, windows = x + new, [*biases, bias], [*windows, rows[1:]]
    return x, biases, tuple(windows)


def vertical(block: GatedBlock, rows, condition):
    """A row's new features (w, m, C) and horizontal bias (w, m, 2 C), from rows (r, w, m, C)."""
    height, width = block.conv_vertical.kernel_size
    padded = ops.pad(rows, ((0, 0), (width // 2, width // 2), (0, 0), (0, 0)))
    taps = (padded[row, at : at + rows.shape[1]] for row, at in np.ndindex(height, width))
    v = product(block.conv_vertical, ops.concatenate(list(taps), axis=-1))
    bias = block.vertical_to_horizontal(v) + block.condition_horizontal(condition)
    return block.project_vertical(gate(v + block.condition_vertical(condition))), bias


def horizontal_stack(prior: GatedPixelCNN, x, left, biases, memory, position):
    """A position's features (m, C), the columns to remember, and the attention's memory."""
    x, windows, memory = x + horizontal(prior.first, left[0], biases[0]), [left[0]], dict(memory)
    for number, block in enumerate(prior.gated):
        columns = ops.concatenate([left[number + 1], x[None]])
        x = x + horizontal(block, columns, biases[number + 1])
        windows.append(columns[1:])
        if layer := prior.attention.get(str(number)):
            new, memory[str(number)] = attend(layer, x, *memory[str(number)], position)
            x = x + new
    return x, tuple(windows), memory


def horizontal(block: GatedBlock, columns, bias):
    """A position's new features (m, C), from those of columns (c, m, C)."""
    features = product(block.conv_horizontal, ops.concatenate(ops.unstack(columns), axis=-1))
    return block.project_horizontal(gate(features + bias))


def attend(layer: CausalAttention, x, keys, values, position):
    """What attention adds to features (m, C); and all keys and values with those of x."""
    shape = (x.shape[0], layer.num_heads, 1, layer.head_dim)
    parts = ops.split(layer.project(layer.norm(x)), 3, axis=-1)
    query, key, value = (ops.reshape(part, shape) for part in parts)
    keys = ops.slice_update(keys, (0, 0, position, 0), key)
    values = ops.slice_update(values, (0, 0, position, 0), value)
    scores = query @ ops.swapaxes(keys, 2, 3) / layer.head_dim**0.5
    scores = ops.where(np.arange(keys.shape[2]) <= position, scores, -1e9)
    return layer.out(ops.reshape(ops.softmax(scores) @ values, x.shape)), (keys, values)


def product(convolution: CausalConv2D, patches):
    """A convolution's output from flattened patches (..., inputs)."""
    kernel = ops.reshape(convolution.kernel, (-1, convolution.filters))
    return ops.tensordot(patches, kernel, 1) + convolution.bias


def moved(window, new):
    """The rows or columns that are remembered, without the oldest and with a new one."""
    return ops.concatenate([window[1:], new[None]])


def inverse_cdf(logits, uniform):
    """As `sampling.inverse_cdf`, int32 (m,); XLA sums up faster by a product with ones."""
    count = logits.shape[-1]
    cumulative = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    cumulative = cumulative @ np.triu(np.ones((count, count), "float32"))
    passed = cumulative <= uniform[:, None] * cumulative[:, -1:]
    # In float32 a uniform number may have been rounded up to 1.
    return ops.minimum(ops.sum(ops.cast(passed, "int32"), axis=-1), count - 1)
