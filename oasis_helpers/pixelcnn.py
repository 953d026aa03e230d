"""The prior: a PixelCNN over code maps, one code after another in reading order.

p(map | slice index) is the product over positions of p(code | earlier codes, slice index). Both
priors share one interface: `fit((codes, slice_index), codes)`, `log_prob`, and
`oasis_helpers.sample_codes` for new maps.
"""

from __future__ import annotations

import inspect

import keras
import numpy as np
from keras import layers, ops

from oasis_helpers.causal import CausalAttention, GatedBlock, MaskedConv2D
from oasis_helpers.data import SLICES_PER_SUBJECT
from oasis_helpers.layers import (
    checked_codes,
    refuse_below_one,
    refuse_nan,
    refuse_targets,
)

NO_CONDITION = SLICES_PER_SUBJECT  # in place of a slice index: sample or score without one
UNKNOWN = -1  # in place of a code of the neighbour, or of the bin of a head's condition
BATCH = 64  # maps in one pass of `log_prob`; bounds the memory
HEAD_CONDITIONS = 4  # of a head: as many as `head_measures` has columns
# Fraction of maps whose head's conditions are hidden in training, without the slice below and with.
HEAD_DROPOUT = 0.6, 0.3

_register = keras.saving.register_keras_serializable("oasis_helpers")


class Prior(keras.Model):
    """What every prior has: logits of each code given the earlier ones, and the likelihood.

    Args:
        num_embeddings: K, the number of codes.
        grid: height and width of the code maps.

    Call arguments:
        inputs: (codes, slice_index), int (N, h, w) in 0 ... K-1 and int (N,) in 0 ... 31; followed
            by (below, conditions), where known, for a prior that takes them, see `inputs_for`.

    Returns:
        float (N, h, w, K): logits; those at a position depend on earlier positions only.
    """

    allows_no_condition = True  # whether `NO_CONDITION` may replace a slice index
    takes_below = False  # whether the slice below, and a head's conditions, are inputs
    head_bins = 0  # of each condition of a head

    def __init__(self, num_embeddings: int, grid: tuple[int, int], **kwargs):
        super().__init__(**kwargs)
        sides = {"height of the grid": grid[0], "width of the grid": grid[1]}
        refuse_below_one(num_embeddings=num_embeddings, **sides)
        self.num_embeddings, self.grid = num_embeddings, tuple(grid)

    def log_prob(
        self,
        codes: np.ndarray,
        slice_index: np.ndarray,
        below: np.ndarray | None = None,
        conditions: np.ndarray | None = None,
    ) -> np.ndarray:
        """Natural logarithm of the probability of whole code maps, float32 (N,).

        Args:
            codes: int (N, h, w) in 0 ... K-1.
            slice_index: int (N,), or one int for all, in 0 ... 31, or `NO_CONDITION`.
            below, conditions: as for `inputs_for`.

        Raises:
            ValueError: for arguments out of their range, and for weights that hold NaN.
        """
        codes = np.asarray(codes)
        if codes.ndim != 3 or codes.shape[1:] != self.grid:
            raise ValueError(
                f"log_prob got code maps of shape {codes.shape}; this prior was trained on "
                f"(N, {self.grid[0]}, {self.grid[1]})."
            )
        codes = checked_codes("log_prob got", codes, self.num_embeddings)
        refuse_nan("The prior's weights hold", *self.get_weights())
        inputs = self.inputs_for(codes, slice_index, below, conditions)
        parts = [np.zeros(0, "float32")]
        for start in range(0, len(codes), BATCH):
            batch = tuple(values[start : start + BATCH] for values in inputs)
            logits = ops.cast(self.predict_on_batch(batch), "float32")
            log_p = ops.convert_to_numpy(ops.log_softmax(logits, axis=-1))
            refuse_nan("log_prob's logits hold", log_p.max(-1))
            parts.append(np.take_along_axis(log_p, batch[0][..., None], -1).sum((1, 2, 3)))
        return np.concatenate(parts)

    def inputs_for(self, codes, slice_index, below=None, conditions=None) -> tuple:
        """What a call takes: (codes, slice_index), and (below, conditions) where it takes them.

        Args:
            codes, slice_index: as for `log_prob`.
            below: int (N, h, w), the code maps of the slices below; None, or -1, where unknown.
            conditions: int (N, 4), the head's bins of `head_measures`; None, or -1 where unknown.

        Raises:
            ValueError: for values out of their range, or that this prior was trained without.
        """
        inputs = codes, checked_slice_index(slice_index, len(codes), self.allows_no_condition)
        if not self.takes_below:
            if below is not None or conditions is not None:
                raise ValueError("This prior was trained without the slice below; leave it out.")
            return inputs
        shapes = {
            "below": (len(codes), *self.grid),
            "conditions": (len(codes), HEAD_CONDITIONS),
        }
        limits = self.num_embeddings, self.head_bins
        for (name, shape), limit, value in zip(shapes.items(), limits, (below, conditions)):
            value = np.full(shape, UNKNOWN) if value is None else np.asarray(value)
            if value.shape != shape or not np.isin(value, np.arange(UNKNOWN, limit)).all():
                raise ValueError(
                    f"{name} has shape {value.shape} and values {np.unique(value)[:5]} ...; "
                    f"expected {shape}, and 0 to {limit - 1}, or -1 where unknown."
                )
            inputs += (value.astype("int32"),)
        return inputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        refuse_targets("fit((codes, slice_index), codes)", y)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def _build(self) -> None:
        """Builds every layer by one symbolic pass, so that weights exist from the start."""
        others = [self.grid, (HEAD_CONDITIONS,)] if self.takes_below else []
        self(tuple(keras.Input(shape, dtype="int32") for shape in (self.grid, (), *others)))

    def build(self, input_shape):
        """Does nothing: `_build` has built every layer."""

    def get_config(self):
        arguments = inspect.signature(self.__init__).parameters  # each is an attribute, too
        config = {name: getattr(self, name) for name in arguments if name != "kwargs"}
        return config | {"grid": list(self.grid), "name": self.name}


def checked_slice_index(slice_index, count: int, allows_no_condition: bool = False) -> np.ndarray:
    """int32 (count,), one index for each map; ValueError for another length or outside 0 ... 31."""
    indices = np.asarray(slice_index)
    if indices.ndim > 1 or (indices.ndim == 1 and len(indices) != count):
        raise ValueError(
            f"slice_index has shape {indices.shape} for {count} maps; give one integer for all "
            "of them or one for each."
        )
    if indices.size and not (
        np.issubdtype(indices.dtype, np.integer)
        and 0 <= indices.min() <= indices.max() < SLICES_PER_SUBJECT + allows_no_condition
    ):
        raise ValueError(
            f"slice_index {np.unique(indices)[:5]} ...: expected integers from 0 (midbrain) to "
            f"{SLICES_PER_SUBJECT - 1} (top of the ventricles)."
        )
    return np.broadcast_to(indices, (count,)).astype("int32")


@_register
class MaskedPixelCNN(Prior):
    """The reference prior that courses teach; it ignores the slice index.

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
        for reduce, conv, expand in self.residuals:
            x = x + expand(conv(reduce(x)))
        for layer in self.head:
            x = layer(x)
        return self.logits(x)


@_register
class GatedPixelCNN(Prior):
    """Gated stacks without a blind spot, with causal attention, conditioned on the slice index.

    van den Oord et al. 2016 (arXiv 1606.05328) with causal attention after PixelSNAIL (Chen et
    al. 2017, arXiv 1712.09763).

    Args:
        num_embeddings, grid: as for `Prior`.
        filters: C, channels of both stacks.
        blocks: gated blocks after the first; attention follows the middle one and the last.
        num_heads: heads of each attention layer.
        dropout: fraction of features dropped in training.
        condition_dropout: fraction of maps whose slice index is hidden in training; above 0 the
            prior also accepts `NO_CONDITION`, so that one network samples with and without an
            index (Ho and Salimans 2022, arXiv 2207.12598).
        below_dropout: fraction of maps trained on as single slices: their neighbour, the code map
            of the slice below, is hidden. None for a prior that takes no neighbour.
        head_bins: B, the number of bins of each condition of a head; 0 for none. The weight
            `head_counts`, float (B, B, B, B), counts how often training heads combine their bins.
    """

    def __init__(
        self,
        num_embeddings: int,
        grid,
        filters: int = 96,
        blocks: int = 6,
        num_heads: int = 4,
        dropout: float = 0.3,
        condition_dropout: float = 0.0,
        below_dropout: float | None = None,
        head_bins: int = 0,
        **kwargs,
    ):
        super().__init__(num_embeddings, grid, **kwargs)
        refuse_below_one(blocks=blocks, num_heads=num_heads)
        refuse_below_one(filters_per_head=filters // num_heads)
        self.filters, self.blocks, self.num_heads = filters, blocks, num_heads
        self.dropout, self.condition_dropout = dropout, condition_dropout
        self.allows_no_condition = condition_dropout > 0
        self.below_dropout, self.takes_below = below_dropout, below_dropout is not None
        self.head_bins = head_bins
        self.random = keras.random.SeedGenerator()
        self.code_embedding = layers.Embedding(num_embeddings, filters)
        self.position_embedding = layers.Embedding(self.grid[0] * self.grid[1], filters)
        self.slice_embedding = layers.Embedding(
            SLICES_PER_SUBJECT + self.allows_no_condition, filters
        )
        if self.takes_below:
            self.below_embedding = layers.Embedding(num_embeddings + 1, filters)
            same = {"padding": "same", "activation": "relu"}
            self.below_convs = [layers.Conv2D(filters, 3, **same) for _ in range(3)]
            self.below_drop = layers.Dropout(dropout)
        if head_bins:
            shape = (head_bins,) * HEAD_CONDITIONS
            self.head_embeddings = [layers.Embedding(bins + 1, filters) for bins in shape]
            self.head_counts = self.add_weight(shape, "ones", trainable=False)
        self.first = GatedBlock(filters, radius=2, shift=True, dropout=0.0)
        self.gated = [GatedBlock(filters, dropout=dropout) for _ in range(blocks)]
        self.attention = {
            str(after): CausalAttention(num_heads, filters // num_heads, dropout)
            for after in sorted({max(blocks // 2 - 1, 0), blocks - 1})
        }
        self.drop = layers.Dropout(dropout)
        self.head = layers.Dense(2 * filters, activation="relu")
        self.logits = layers.Dense(num_embeddings)
        self._build()

    def call(self, inputs, training=False):
        codes, slice_index, *others = inputs
        if self.takes_below and not others:
            bins = ops.full((ops.shape(codes)[0], HEAD_CONDITIONS), UNKNOWN, "int32")
            others = ops.full_like(codes, UNKNOWN), bins
        below, conditions = others or (None, None)
        if training and self.condition_dropout:
            random = keras.random.uniform(ops.shape(slice_index), seed=self.random)
            dropped = random < self.condition_dropout
            slice_index = ops.where(dropped, NO_CONDITION, slice_index)
        if training and self.takes_below:
            below, conditions = self._withheld(below, conditions)
        condition = self.condition_features(slice_index, conditions)
        position = self.position_features(below, training=training)
        embedded = self.code_embedding(codes)
        vertical, horizontal = self.first(embedded, embedded, condition, training=training)
        vertical = vertical + position
        horizontal = horizontal + position + self._previous(embedded)
        for number, block in enumerate(self.gated):
            vertical, horizontal = block(vertical, horizontal, condition, training=training)
            if str(number) in self.attention:
                horizontal = self.attention[str(number)](horizontal, training=training)
        features = self.drop(ops.relu(vertical + horizontal), training=training)
        return self.logits(self.head(features))

    def _withheld(self, below, conditions):
        """Both inputs, each hidden for some maps of the batch."""
        random = keras.random.uniform((2, ops.shape(below)[0]), seed=self.random)
        alone = random[0] < self.below_dropout
        no_condition = random[1] < ops.where(alone, *HEAD_DROPOUT)
        below = ops.where(alone[:, None, None], UNKNOWN, below)
        return below, ops.where(no_condition[:, None], UNKNOWN, conditions)

    def condition_features(self, slice_index, conditions):
        """What conditions a whole map, float (N, C): its slice index, and its head's bins."""
        features = self.slice_embedding(slice_index)
        for number, embedding in enumerate(self.head_embeddings if self.head_bins else ()):
            bins = conditions[:, number]
            features = features + embedding(ops.where(bins < 0, self.head_bins, bins))
        return features

    def position_features(self, below, training=False):
        """What every position knows beforehand, float (1 or N, h, w, C): itself, and `below`."""
        position = self.position_embedding(np.arange(self.grid[0] * self.grid[1]))
        position = ops.reshape(position, (1, *self.grid, -1))
        if not self.takes_below:
            return position
        embedded = self.below_embedding(ops.where(below < 0, self.num_embeddings, below))
        features = embedded
        for conv in self.below_convs:
            features = self.below_drop(conv(features), training=training)
        return position + embedded + features

    @staticmethod
    def _previous(embedded):
        """The embedded code just before each position in reading order, for attention to see."""
        _, height, width, filters = embedded.shape
        flat = ops.reshape(embedded, (-1, height * width, filters))
        shifted = ops.pad(flat, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return ops.reshape(shifted, (-1, height, width, filters))
