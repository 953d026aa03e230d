"""Drawing many code maps from one prior by one compiled function.

`sampling.GatedCache` has NumPy compute each of its many small steps on its own. Here the same
computation, with the loop over positions, is one function that XLA compiles, the compiler of
TensorFlow and JAX: small steps become one. Compiling takes seconds, so that it pays where many
maps are drawn; `ladders.sampling` times both.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from keras import ops

from oasis_helpers.layers import gate
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.sampling import affine, refuse_bad_settings, start_of_draws


class CompiledSampler:
    """Draws `n` code maps at a time from a `GatedPixelCNN`; the first call compiles.

    It keeps the weights that the prior has when it is made. `top_k` and `top_p` only
    `sample_codes` has.

    Args:
        prior: a `GatedPixelCNN`.
        n: number of maps in every call.

    Call arguments:
        slice_index, temperature, known, seed: as for `sample_codes`.

    Returns:
        int32 (n, h, w): the maps that `sample_codes` draws with the same seed, but where
        rounding tips a draw from one code to the next.

    Raises:
        ValueError: for another prior, another Keras backend, or a setting out of its range.
    """

    def __init__(self, prior: GatedPixelCNN, n: int):
        if not isinstance(prior, GatedPixelCNN):
            raise ValueError(
                f"prior is a {type(prior).__name__}; expected a GatedPixelCNN: any other is for "
                "`sample_codes`."
            )
        refuse_bad_settings(prior, n, 1.0, None, None, None, 0, 1)
        self.prior, self.n = prior, n
        # XLA leaves products this small on one core; two halves of a batch keep two cores busy.
        self.workers = max(1, min(2, os.cpu_count() or 1, n))
        self.draw = with_xla(_Drawing(prior))

    def __call__(self, slice_index=None, temperature=1.0, known=None, seed=0) -> np.ndarray:
        refuse_bad_settings(self.prior, self.n, temperature, None, None, known, seed, 1)
        batch = start_of_draws(self.prior, self.n, slice_index, known, seed)
        # Every share has as many maps, a copy among them if need be: one compilation does for all.
        rows = np.arange(-(-self.n // self.workers) * self.workers) % self.n
        shares = zip(*(np.split(part[rows], self.workers) for part in batch))
        with ThreadPoolExecutor(self.workers) as threads:
            drawn = list(threads.map(lambda share: self._draw(temperature, *share), shares))
        return np.concatenate(drawn)[: self.n]

    def _draw(self, temperature, slice_index, uniform, codes) -> np.ndarray:
        """int32 (m, h, w): one share, from int32 (m,), float (m, cells) and int32 (m, cells)."""
        uniform, codes = (
            part.T.reshape(*self.prior.grid, -1) for part in (np.float32(uniform), codes)
        )
        drawn = self.draw(np.float32([temperature]), slice_index, uniform, codes)
        return ops.convert_to_numpy(drawn).transpose(2, 0, 1)


def with_xla(function):
    """A function of arrays as one that XLA compiles in its first call with arrays of a shape."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        return tensorflow.function(function, jit_compile=True, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    raise ValueError(f"Keras runs on {backend}, without XLA: use `sample_codes`.")


class _Drawing:
    """What `GatedCache` computes, as one function of arrays: random numbers in, codes out.

    Maps are the last axis but that of channels, so that what belongs to a place lies together: a
    row's features are float32 (w, m, C), a position's (m, C), for m maps.
    """

    def __init__(self, prior: GatedPixelCNN):
        self.grid = prior.grid
        self.embedding = ops.convert_to_numpy(prior.embed.embeddings)
        self.place = ops.convert_to_numpy(prior.place.embeddings).reshape(*prior.grid, 1, -1)
        condition = ops.convert_to_numpy(prior.condition.embeddings)
        self.first, *self.gated = (_Block(b, condition) for b in (prior.first, *prior.gated))
        self.attention = {int(after): _Attention(at) for after, at in prior.attention.items()}
        self.head, self.logits = affine(prior.head), affine(prior.logits)
        # XLA sums up K numbers faster by a product with ones than one after the other.
        self.up_to = np.triu(np.ones((prior.num_embeddings,) * 2, "float32"))

    def __call__(self, temperature, slice_index, uniform, codes):
        """int32 (h, w, m) from float32 (1,), int32 (m,), float32 (h, w, m) and int32 (h, w, m).

        The codes given are the known ones and -1.
        """
        (height, width), (maps,), channels = self.grid, slice_index.shape, self.place.shape[-1]
        remembered = [block.remembered for block in (self.first, *self.gated)]
        place = ops.convert_to_tensor(self.place)

        def draw_row(row, state):
            codes, previous, above, seen = state
            top, downs, above = self._vertical(above, place[row], slice_index)

            def draw_code(column, state):
                codes, previous, left, seen = state
                x = self.first.step(left[0], downs[0][column]) + place[row, column] + previous
                told = [down[column] for down in downs[1:]]
                x, left, seen = self._horizontal(x, told, left, seen, row * width + column)
                logits = self.logits(ops.relu(self.head(ops.relu(x + top[column]))))
                drawn = self._inverse_cdf(logits / temperature, uniform[row, column])
                code = ops.where(codes[row, column] < 0, drawn, codes[row, column])
                previous = ops.take(self.embedding, code, axis=0)
                left = (_moved_on(left[0], previous), *left[1:])
                codes = ops.slice_update(codes, (row, column, 0), code[None, None])
                return codes, previous, left, seen

            left = tuple(ops.zeros((columns, maps, channels)) for columns in remembered)
            start = (codes, previous, left, seen)
            codes, previous, _, seen = ops.fori_loop(0, width, draw_code, start)
            above = (_moved_on(above[0], ops.take(self.embedding, codes[row], axis=0)), *above[1:])
            return codes, previous, above, seen

        above = tuple(ops.zeros((rows, width, maps, channels)) for rows in remembered)
        seen = {after: at.none_seen(maps, height * width) for after, at in self.attention.items()}
        start = (codes, ops.zeros((maps, channels)), above, seen)
        return ops.fori_loop(0, height, draw_row, start)[0]

    def _vertical(self, above, place, slice_index):
        """A row's top (w, m, C), what it tells every block (w, m, 2 C), and the rows to keep."""
        x, down = self.first.enter_row(above[0], slice_index)
        x, downs, kept = x + place, [down], [above[0]]
        for block, rows in zip(self.gated, above[1:]):
            rows = ops.concatenate([rows, x[None]])
            new, down = block.enter_row(rows, slice_index)
            x, downs, kept = x + new, [*downs, down], [*kept, rows[1:]]
        return x, downs, tuple(kept)

    def _horizontal(self, x, told, left, seen, position):
        """A position's top (m, C), the columns to keep, and keys and values with its own."""
        kept, seen = [left[0]], dict(seen)
        for number, (block, columns) in enumerate(zip(self.gated, left[1:])):
            columns = ops.concatenate([columns, x[None]])
            x, kept = x + block.step(columns, told[number]), [*kept, columns[1:]]
            if number in seen:
                new, seen[number] = self.attention[number](x, *seen[number], position)
                x = x + new
        return x, tuple(kept), seen

    def _inverse_cdf(self, logits, uniform):
        """As `sampling.inverse_cdf`; in float32 a uniform number may round up to 1."""
        cumulative = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True)) @ self.up_to
        passed = cumulative <= uniform[:, None] * cumulative[:, -1:]
        return ops.minimum(ops.sum(ops.cast(passed, "int32"), axis=-1), len(self.up_to) - 1)


def _moved_on(window, new):
    """The rows or columns that are remembered, without the oldest and with a new one."""
    return ops.concatenate([window[1:], new[None]])


def _each(affine, features):
    """A function of rows (n, C) for all features (w, m, C) at once."""
    flat = affine(ops.reshape(features, (-1, features.shape[-1])))
    return ops.reshape(flat, (*features.shape[:-1], flat.shape[-1]))


class _Block:
    """A `GatedBlock` a row (vertical) and a position (horizontal) at a time."""

    def __init__(self, block, condition: np.ndarray):
        self.rows, self.columns = block.above.kernel_size
        self.remembered = block.reach + block.shift  # rows above, and columns to the left
        self.above, self.left, self.down = map(affine, (block.above, block.left, block.down))
        self.out_above, self.out_left = affine(block.out_above), affine(block.out_left)
        # What each slice index adds before the gates, float32 (indices, 2 C).
        self.bias_above = affine(block.bias_above)(condition)
        self.bias_left = affine(block.bias_left)(condition)

    def enter_row(self, rows, slice_index):
        """New features (w, m, C) and what they tell the horizontal stack (w, m, 2 C)."""
        width, side = rows.shape[1], self.columns // 2
        padded = ops.pad(rows, ((0, 0), (side, side), (0, 0), (0, 0)))
        reached = [
            padded[row, start : start + width] for row, start in np.ndindex(self.rows, self.columns)
        ]
        above = _each(self.above, ops.concatenate(reached, axis=-1))
        new = gate(above + ops.take(self.bias_above, slice_index, axis=0))
        down = _each(self.down, above) + ops.take(self.bias_left, slice_index, axis=0)
        return _each(self.out_above, new), down

    def step(self, columns, down):
        """New features (m, C) from those of the columns up to here, (taps, m, C)."""
        columns = ops.concatenate(ops.unstack(columns), axis=-1)
        return self.out_left(gate(self.left(columns) + down))


class _Attention:
    """A `CausalAttention` a position at a time, over the keys and values of earlier ones."""

    def __init__(self, layer):
        self.shape = (layer.heads, layer.head_dim)
        self.gamma, self.beta = map(ops.convert_to_numpy, (layer.norm.gamma, layer.norm.beta))
        self.epsilon = layer.norm.epsilon
        self.project, self.out = affine(layer.project), affine(layer.out)

    def none_seen(self, maps: int, cells: int):
        """Room for all keys and values."""
        heads, depth = self.shape
        return ops.zeros((maps, heads, depth, cells)), ops.zeros((maps, heads, cells, depth))

    def __call__(self, x, keys, values, position):
        """New features (m, C), and (keys, values) with those of this position."""
        normal = ops.layer_normalization(x, self.gamma, self.beta, epsilon=self.epsilon)
        parts = ops.split(self.project(normal), 3, axis=-1)
        query, key, value = (ops.reshape(part, (x.shape[0], *self.shape)) for part in parts)
        keys = ops.slice_update(keys, (0, 0, 0, position), key[..., None])
        values = ops.slice_update(values, (0, 0, position, 0), value[:, :, None])
        scores = query[:, :, None] @ keys / self.shape[1] ** 0.5
        scores = ops.where(np.arange(keys.shape[-1]) <= position, scores, -1e9)
        mean = ops.softmax(scores, axis=-1) @ values
        return self.out(ops.reshape(mean, x.shape)), (keys, values)
