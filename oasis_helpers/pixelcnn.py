"""The prior: a PixelCNN over code maps, one code after another in reading order.

p(map | slice index) is the product over positions of p(code | earlier codes, slice index). Both
priors here share one interface: `fit((codes, slice_index), codes)`, `log_prob` and, through
`oasis_helpers.sampling`, drawing new maps.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from oasis_helpers.data import SLICES_PER_SUBJECT
from oasis_helpers.layers import CausalAttention, GatedBlock, MaskedConv2D, refuse_other_codes

ANY_SLICE = SLICES_PER_SUBJECT  # in place of a slice index: not told

_register = keras.saving.register_keras_serializable("oasis_helpers")


class Prior(keras.Model):
    """What every prior has: logits of each code given the earlier ones, and the likelihood.

    Args:
        num_embeddings: K, the number of codes.
        grid: height and width of the code maps.

    Call arguments:
        inputs: (codes, slice_index), int (N, h, w) in 0 ... K-1 and int (N,) in 0 ... 31.

    Returns:
        float (N, h, w, K): logits; those at a position depend on earlier positions only.
    """

    knows_any_slice = True  # whether `ANY_SLICE` may stand for a slice index

    def __init__(self, num_embeddings: int, grid: tuple[int, int], **kwargs):
        super().__init__(**kwargs)
        self.num_embeddings, self.grid = num_embeddings, tuple(grid)

    def log_prob(
        self, codes: np.ndarray, slice_index: np.ndarray, batch_size: int = 64
    ) -> np.ndarray:
        """Natural logarithm of the probability of whole code maps, float32 (N,).

        Args:
            codes: int (N, h, w) in 0 ... K-1.
            slice_index: int (N,), or one int for all, in 0 ... 31, or `ANY_SLICE`.
            batch_size: maps in one pass.

        Raises:
            ValueError: for another grid, codes outside 0 ... K-1, an index outside 0 ... 31.
        """
        codes = np.asarray(codes)
        if codes.ndim != 3 or codes.shape[1:] != self.grid:
            raise ValueError(
                f"log_prob got code maps of shape {codes.shape}; this prior was trained on "
                f"(N, {self.grid[0]}, {self.grid[1]})."
            )
        refuse_other_codes("log_prob got", codes, self.num_embeddings)
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected a whole number, 1 or more.")
        slice_index = checked_slice_index(slice_index, len(codes), self.knows_any_slice)
        parts = [np.zeros(0, "float32")]
        for start in range(0, len(codes), batch_size):
            batch = codes[start : start + batch_size]
            logits = self.predict_on_batch((batch, slice_index[start : start + batch_size]))
            log_p = ops.convert_to_numpy(ops.log_softmax(ops.cast(logits, "float32"), axis=-1))
            parts.append(np.take_along_axis(log_p, batch[..., None], -1).sum((1, 2, 3)))
        return np.concatenate(parts)

    def _build(self) -> None:
        """Builds every layer by one pass over symbols, so that weights exist from the start."""
        self((keras.Input(self.grid, dtype="int32"), keras.Input((), dtype="int32")))

    def build(self, input_shape):
        """Nothing is left to build when Keras asks for it: `_build` has done it."""

    def get_config(self):
        return {"num_embeddings": self.num_embeddings, "grid": list(self.grid), "name": self.name}


def checked_slice_index(slice_index, count: int, knows_any_slice: bool = False) -> np.ndarray:
    """int32 (count,): one index for each map; ValueError outside 0 ... 31 or of another length.

    `ANY_SLICE` passes where the prior knows it.
    """
    indices = np.asarray(slice_index)
    if indices.ndim > 1 or (indices.ndim == 1 and len(indices) != count):
        raise ValueError(
            f"slice_index has shape {indices.shape} for {count} maps; give one integer for all "
            "of them or one for each."
        )
    if indices.size and not (
        np.issubdtype(indices.dtype, np.integer)
        and 0 <= indices.min() <= indices.max() < SLICES_PER_SUBJECT + knows_any_slice
    ):
        raise ValueError(
            f"slice_index {np.unique(indices)[:5]} ...: expected integers from 0 (midbrain) to "
            f"{SLICES_PER_SUBJECT - 1} (top of the ventricles)."
        )
    return np.broadcast_to(indices, (count,)).astype("int32")


@_register
class MaskedPixelCNN(Prior):
    """The plain prior that courses teach, kept as the yardstick; it ignores the slice index.

    One-hot codes, a masked 7 x 7 convolution of type A, residual blocks of masked 3 x 3
    convolutions of type B, two 1 x 1 layers (van den Oord et al. 2016, arXiv 1601.06759). Its
    stacked square masks leave a blind spot to the upper right.

    Args:
        num_embeddings, grid: as for `Prior`.
        filters: channels between the blocks; half of them inside.
        blocks: number of residual blocks.
    """

    def __init__(self, num_embeddings: int, grid, filters: int = 128, blocks: int = 2, **kwargs):
        super().__init__(num_embeddings, grid, **kwargs)
        self.filters, self.blocks = filters, blocks
        self.first = MaskedConv2D(filters, 7, "A", activation="relu")
        self.residuals = [
            (
                layers.Conv2D(filters // 2, 1, activation="relu"),
                MaskedConv2D(filters // 2, 3, "B", activation="relu"),
                layers.Conv2D(filters, 1, activation="relu"),
            )
            for _ in range(blocks)
        ]
        self.head = [MaskedConv2D(filters, 1, "B", activation="relu") for _ in range(2)]
        self.logits = layers.Conv2D(num_embeddings, 1)
        self._build()

    def call(self, inputs, training=False):
        codes, _ = inputs
        x = self.first(ops.one_hot(codes, self.num_embeddings))
        for narrow, look, widen in self.residuals:
            x = x + widen(look(narrow(x)))
        for layer in self.head:
            x = layer(x)
        return self.logits(x)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "blocks": self.blocks}


@_register
class GatedPixelCNN(Prior):
    """Gated stacks without a blind spot, causal attention, conditioned on the slice index.

    van den Oord et al. 2016 (arXiv 1606.05328) with one attention layer after PixelSNAIL (Chen
    et al. 2017, arXiv 1712.09763).

    Args:
        num_embeddings, grid: as for `Prior`.
        filters: C, channels of both stacks.
        blocks: gated blocks after the first; attention follows the middle one and the last.
        heads: heads of each attention layer.
        dropout: share of features dropped in training.
        untold: share of maps whose slice index is withheld in training; above 0 the prior also
            knows `ANY_SLICE`, so that one network draws with and without an index (Ho and
            Salimans 2022, arXiv 2207.12598, train so).
    """

    def __init__(
        self,
        num_embeddings: int,
        grid,
        filters: int = 96,
        blocks: int = 6,
        heads: int = 4,
        dropout: float = 0.3,
        untold: float = 0.0,
        **kwargs,
    ):
        super().__init__(num_embeddings, grid, **kwargs)
        self.filters, self.blocks, self.heads, self.dropout = filters, blocks, heads, dropout
        self.untold, self.knows_any_slice = untold, untold > 0
        self.random = keras.random.SeedGenerator()
        self.embed = layers.Embedding(num_embeddings, filters)
        self.place = layers.Embedding(self.grid[0] * self.grid[1], filters)
        self.condition = layers.Embedding(SLICES_PER_SUBJECT + self.knows_any_slice, filters)
        self.first = GatedBlock(filters, reach=2, shift=True, dropout=0.0)
        self.gated = [GatedBlock(filters, dropout=dropout) for _ in range(blocks)]
        self.attention = {
            str(after): CausalAttention(heads, filters // heads, dropout)
            for after in sorted({max(blocks // 2 - 1, 0), blocks - 1})
        }
        self.drop = layers.Dropout(dropout)
        self.head = layers.Dense(2 * filters, activation="relu")
        self.logits = layers.Dense(num_embeddings)
        self._build()

    def call(self, inputs, training=False):
        codes, slice_index = inputs
        if training and self.untold:
            lot = keras.random.uniform(ops.shape(slice_index), seed=self.random)
            slice_index = ops.where(lot < self.untold, ANY_SLICE, slice_index)
        condition = self.condition(slice_index)
        place = ops.reshape(self.place(np.arange(self.grid[0] * self.grid[1])), (1, *self.grid, -1))
        seen = self.embed(codes)
        vertical, horizontal = self.first(seen, seen, condition, training=training)
        vertical, horizontal = vertical + place, horizontal + place + self._previous(seen)
        for number, block in enumerate(self.gated):
            vertical, horizontal = block(vertical, horizontal, condition, training=training)
            if str(number) in self.attention:
                horizontal = self.attention[str(number)](horizontal, training=training)
        features = self.drop(ops.relu(vertical + horizontal), training=training)
        return self.logits(self.head(features))

    @staticmethod
    def _previous(seen):
        """The embedded code just before each position in reading order, across line ends.

        With it every position's features show the code before it, so that attention, which
        looks at the features of all positions up to its own, sees all earlier codes.
        """
        _, height, width, filters = seen.shape
        line = ops.reshape(seen, (-1, height * width, filters))
        shifted = ops.pad(line, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return ops.reshape(shifted, (-1, height, width, filters))

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "blocks": self.blocks,
            "heads": self.heads,
            "dropout": self.dropout,
            "untold": self.untold,
        }
