"""Keras layers of the two stages: quantisers and residual blocks; masked and gated convolutions.

Everything here is written with `keras.ops`, so that it runs on any Keras backend, on one device
or on several. Under a mixed-precision policy convolutions and products are computed in half
precision; distances to the codebook, its running statistics and softmax stay in float32.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

_register = keras.saving.register_keras_serializable("oasis_helpers")


def refuse_other_codes(what: str, codes: np.ndarray, num_embeddings: int, lowest: int = 0) -> None:
    """Raises ValueError unless codes are whole numbers from `lowest` to K - 1."""
    whole = np.issubdtype(codes.dtype, np.integer)
    if whole and lowest <= codes.min(initial=lowest) <= codes.max(initial=lowest) < num_embeddings:
        return
    found = (
        f"from {codes.min()} to {codes.max()}" if whole else f"of type {codes.dtype}, not integers"
    )
    given = ", and -1 where a code is to be drawn" if lowest else ""
    raise ValueError(
        f"{what} codes {found}; expected 0 to {num_embeddings - 1}{given}: these codes belong to "
        "another codebook."
    )


# ---------------------------------------------------------------------------- stage 1: VQ-VAE


@_register
class GlobalBatch(keras.layers.Layer):
    """A value of the last batch that all devices agree on; no weight, and never saved.

    A quantiser has two uses for it. Its statistics must be over the whole batch, or devices would
    end up with codebooks of their own: under JAX a batch is one array, however many devices hold
    it; under `tf.distribute` each device computes on its part, and the variable joins them. And
    it tells the model's metrics what the call saw: a call can't update them itself, because under
    JAX `fit` hands it the weights alone.

    Args:
        shape: of the value.
        joined: "sum" adds up the devices' values; "only_first_replica" takes the first one's,
            for what is equal on all of them or drawn at random.

    Call arguments:
        value: float, this device's value.

    Returns:
        float, the value that all devices have now.
    """

    def __init__(self, shape: tuple[int, ...], joined: str = "sum", **kwargs):
        super().__init__(**kwargs)
        self.shape, self.joined = tuple(shape), joined
        self.value = self.add_weight(
            name="value", shape=self.shape, initializer="zeros", trainable=False, aggregation=joined
        )

    def call(self, value):
        self.value.assign(value)
        return ops.convert_to_tensor(self.value)

    @property
    def weights(self):
        return []

    def save_own_variables(self, store):
        """Nothing of a batch outlives it."""

    def load_own_variables(self, store):
        """Nothing was saved."""

    def get_config(self):
        return {**super().get_config(), "shape": list(self.shape), "joined": self.joined}


@_register
class VectorQuantizer(keras.layers.Layer):
    """Replaces every vector by its nearest codebook entry; the codebook learns by gradient.

    The plain quantiser of van den Oord et al. 2017, "Neural Discrete Representation Learning"
    (arXiv 1711.00937): a codebook loss pulls entries to the encoder's vectors, a commitment
    loss, weighted by beta, pulls the vectors to their entries, and the gradient passes straight
    through the choice of entry.

    Args:
        num_embeddings: K, the number of codebook entries.
        embedding_dim: D, the length of each entry.
        commitment_cost: beta, the weight of the commitment loss.
        gradient: how a gradient passes the choice of entry, a key of `GRADIENTS`.
        dtype: float32 whatever the global policy is: half precision can't tell near entries apart
            and can't count beyond 2048.

    Call arguments:
        vectors: float (..., D).

    Returns:
        float (..., D), each vector's nearest entry, with a gradient to the vector.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost=0.25,
        gradient="straight-through",
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.gradient = gradient
        self.usage = CodebookUsage(num_embeddings, name="usage")
        self.chosen = GlobalBatch((num_embeddings,), dtype=dtype)

    def build(self, input_shape):
        if input_shape[-1] != self.embedding_dim:
            raise ValueError(
                f"The encoder's vectors have {input_shape[-1]} components, the codebook's "
                f"entries {self.embedding_dim}: give both the same embedding_dim."
            )
        bound = 1 / self.num_embeddings
        self.codebook = self.add_weight(
            name="codebook",
            shape=(self.num_embeddings, self.embedding_dim),
            initializer=keras.initializers.RandomUniform(-bound, bound),
            trainable=self._codebook_has_gradient,
        )

    _codebook_has_gradient = True

    def call(self, vectors, training=False):
        codes = self.nearest(vectors)
        entries = self.lookup(codes)
        one_hot = ops.one_hot(ops.reshape(codes, (-1,)), self.num_embeddings, dtype=self.dtype)
        chosen = self.chosen(ops.sum(one_hot, axis=0))
        self.add_loss(self.commitment_cost * ops.mean((vectors - ops.stop_gradient(entries)) ** 2))
        self._learn(vectors, entries, one_hot, chosen, training)
        return GRADIENTS[self.gradient](vectors, entries)

    def _learn(self, vectors, entries, one_hot, chosen, training):
        self.add_loss(ops.mean((entries - ops.stop_gradient(vectors)) ** 2))

    def update_metrics(self):
        """Adds what the last call saw to the metrics; for the model's `compute_loss`."""
        self.usage.update_state(self.chosen.value)

    def squared_distances(self, vectors):
        """float (..., K): the squared Euclidean distance of each vector to each entry."""
        vectors = ops.cast(vectors, self.dtype)
        return (
            ops.sum(vectors**2, axis=-1, keepdims=True)
            - 2 * ops.matmul(vectors, ops.transpose(self.codebook))
            + ops.sum(self.codebook**2, axis=-1)
        )

    def nearest(self, vectors):
        """int32 (...): the code of each vector (..., D), the index of its nearest entry."""
        return ops.cast(ops.argmin(self.squared_distances(vectors), axis=-1), "int32")

    def lookup(self, codes):
        """float (..., D): the codebook entries of integer codes (...) in 0 ... K-1."""
        return ops.take(self.codebook, codes, axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "commitment_cost": self.commitment_cost,
            "gradient": self.gradient,
        }


def straight_through(vectors, entries):
    """The entries; the gradient passes to the vectors unchanged (Bengio et al. 2013)."""
    return vectors + ops.stop_gradient(entries - vectors)


def rotated(vectors, entries):
    """The entries, reached by turning and stretching each vector (D on the last axis).

    The gradient is turned and stretched back the same way, so that it depends on where in its
    cell the vector lies: the rotation trick (Fifty et al. 2024, arXiv 2410.06424).
    """

    def length(x):
        return ops.sqrt(ops.sum(x**2, axis=-1, keepdims=True) + 1e-12)

    def along(direction, x):
        return direction * ops.sum(direction * x, axis=-1, keepdims=True)

    of_vector = ops.stop_gradient(vectors / length(vectors))
    of_entry = ops.stop_gradient(entries / length(entries))
    halfway = of_vector + of_entry
    halfway /= length(halfway)
    stretch = ops.stop_gradient(length(entries) / length(vectors))
    turned = of_entry * ops.sum(of_vector * vectors, axis=-1, keepdims=True)
    return stretch * (vectors - 2 * along(halfway, vectors) + 2 * turned)


GRADIENTS = {"straight-through": straight_through, "rotation": rotated}


@_register
class EMAVectorQuantizer(VectorQuantizer):
    """A quantiser whose entries follow the running mean of the vectors they were chosen for.

    Three remedies against a dying codebook: the exponential moving average of van den Oord et
    al. 2017 (appendix A.1); a data-dependent start, entries drawn from the first batch of
    encoder vectors; and the restart of entries that hardly any vector chooses (Lancucki et al.
    2020, arXiv 2005.08520; Dhariwal et al. 2020, Jukebox, arXiv 2005.00341). Start and restart
    draw vectors with probability proportional to their squared distance to the nearest entry,
    as k-means++ does (Arthur and Vassilvitskii 2007): with two thirds of a slice black, a
    uniform draw would mostly pick background.

    Args:
        num_embeddings, embedding_dim, commitment_cost, gradient: as for `VectorQuantizer`.
        decay: of the moving averages, in [0, 1).
        start_from_data: False keeps the uniform random start.
        restart_below: an entry whose averaged count of vectors per batch falls below this share
            of an even share (vectors in the batch / K) is restarted; 0 restarts none.
        seed: of the random draws.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost=0.25,
        gradient="straight-through",
        decay=0.95,
        start_from_data=True,
        restart_below=0.1,
        seed=0,
        **kwargs,
    ):
        super().__init__(num_embeddings, embedding_dim, commitment_cost, gradient, **kwargs)
        self.decay = decay
        self.start_from_data = start_from_data
        self.restart_below = restart_below
        self.seed = seed
        self.random = keras.random.SeedGenerator(seed)
        self.restarts = keras.metrics.Sum(name="restarts")
        shape, dtype = (num_embeddings, embedding_dim), self.dtype
        self.vector_sums = GlobalBatch(shape, dtype=dtype)
        self.drawn = GlobalBatch(shape, "only_first_replica", dtype=dtype)
        self.restarted = GlobalBatch((), "only_first_replica", dtype=dtype)

    _codebook_has_gradient = False

    def build(self, input_shape):
        super().build(input_shape)
        shared = {"initializer": "zeros", "trainable": False, "aggregation": "only_first_replica"}
        self.counts = self.add_weight(name="counts", shape=(self.num_embeddings,), **shared)
        self.sums = self.add_weight(name="sums", shape=self.codebook.shape, **shared)

    def _learn(self, vectors, entries, one_hot, chosen, training):
        if not training:
            return
        vectors = ops.reshape(ops.stop_gradient(vectors), (-1, self.embedding_dim))
        vector_sums = self.vector_sums(ops.matmul(ops.transpose(one_hot), vectors))
        counts = self.decay * self.counts + (1 - self.decay) * chosen
        sums = self.decay * self.sums + (1 - self.decay) * vector_sums
        even_share = ops.sum(chosen) / self.num_embeddings
        dead = counts < self.restart_below * even_share
        if self.start_from_data:  # in the first batch no entry has been chosen before
            dead = ops.logical_or(dead, ops.sum(self.counts) == 0)
        self.restarted(ops.sum(ops.cast(dead, self.dtype)))
        drawn = self.drawn(self._draw_far_vectors(vectors))
        counts = ops.where(dead, even_share, counts)
        sums = ops.where(dead[:, None], drawn * even_share, sums)
        means = sums / ops.maximum(counts, 1e-12)[:, None]
        kept = ops.convert_to_tensor(self.codebook)
        self.codebook.assign(ops.where(counts[:, None] > 0, means, kept))
        self.counts.assign(counts)
        self.sums.assign(sums)

    def update_metrics(self):
        super().update_metrics()
        self.restarts.update_state(self.restarted.value)

    def _draw_far_vectors(self, vectors):
        """(K, D): one vector for each entry, the worse it is quantised the likelier."""
        distance = ops.maximum(ops.min(self.squared_distances(vectors), axis=-1), 1e-12)
        chosen = keras.random.categorical(
            ops.log(distance)[None], self.num_embeddings, seed=self.random
        )
        return ops.take(vectors, chosen[0], axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "decay": self.decay,
            "start_from_data": self.start_from_data,
            "restart_below": self.restart_below,
            "seed": self.seed,
        }


@_register
class FiniteScalarQuantizer(keras.layers.Layer):
    """Rounds each component of a vector to one of a few levels: a codebook that can't die.

    Mentzer et al. 2023, "Finite Scalar Quantization" (arXiv 2309.15505). The codebook is the
    grid of all combinations of levels, nothing in it is learnt, and no extra loss is needed.
    It has the calls of `VectorQuantizer`.

    Args:
        levels: for each of the D components the number of levels; K is their product.
    """

    def __init__(self, levels: tuple[int, ...], dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.levels = tuple(levels)
        self.num_embeddings, self.embedding_dim = int(np.prod(levels)), len(levels)
        self.place_values = np.cumprod([1, *self.levels[:-1]]).astype("int32")
        self.usage = CodebookUsage(self.num_embeddings, name="usage")
        self.chosen = GlobalBatch((self.num_embeddings,), dtype=dtype)

    def call(self, vectors, training=False):
        bounded = self._bounded(vectors)
        rounded = straight_through(bounded, ops.round(bounded))
        codes = ops.reshape(self._codes(ops.round(bounded)), (-1,))
        self.chosen(ops.sum(ops.one_hot(codes, self.num_embeddings), axis=0))
        return self._centred(rounded)

    update_metrics = VectorQuantizer.update_metrics

    def nearest(self, vectors):
        """int32 (...): the code of each vector (..., D)."""
        return self._codes(ops.round(self._bounded(vectors)))

    def lookup(self, codes):
        """float (..., D) in [-1, 1]: the grid points of integer codes (...) in 0 ... K-1."""
        digits = ops.floor_divide(ops.expand_dims(codes, -1), self.place_values)
        return self._centred(ops.cast(ops.mod(digits, np.int32(self.levels)), "float32"))

    def _bounded(self, vectors):
        """Components between -0.5 and levels - 0.5, so that rounding gives 0 ... levels - 1."""
        vectors = ops.cast(vectors, self.dtype)
        return ops.multiply(ops.sigmoid(vectors), np.float32(self.levels) - 1e-3) - 0.4995

    def _codes(self, digits):
        digits = ops.multiply(ops.cast(digits, "int32"), self.place_values)
        return ops.cast(ops.sum(digits, axis=-1), "int32")

    def _centred(self, digits):
        return ops.divide(2 * digits, np.float32(self.levels) - 1) - 1

    def get_config(self):
        return {**super().get_config(), "levels": list(self.levels)}


@_register
class ResidualQuantizer(keras.layers.Layer):
    """Quantises in several passes, each one what the passes before it left over.

    Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization" (arXiv
    2203.01941). The numbers of all passes are read as the digits of one code, so that it has the
    calls of `VectorQuantizer`; in training logs, codebook health is that of the last pass.

    Args:
        sizes: number of entries of each pass's codebook; K is their product.
        embedding_dim: D.
        seed: of the codebooks' random draws.
    """

    def __init__(
        self, sizes: tuple[int, ...], embedding_dim: int, seed: int = 0, dtype="float32", **kwargs
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.sizes, self.embedding_dim, self.seed = tuple(sizes), embedding_dim, seed
        self.num_embeddings = int(np.prod(sizes))
        self.place_values = [int(np.prod(self.sizes[:number])) for number in range(len(sizes))]
        self.passes = [
            EMAVectorQuantizer(size, embedding_dim, seed=seed + number, dtype=dtype)
            for number, size in enumerate(sizes)
        ]

    def build(self, input_shape):
        for quantizer in self.passes:
            quantizer.build(input_shape)

    def call(self, vectors, training=False):
        rest = vectors
        for quantizer in self.passes:  # each adds its commitment loss on what is left
            rest = rest - ops.stop_gradient(quantizer(rest, training=training))
        return straight_through(vectors, vectors - rest)

    def update_metrics(self):
        """Adds what the last call saw to the metrics; for the model's `compute_loss`."""
        for quantizer in self.passes:
            quantizer.update_metrics()

    def nearest(self, vectors):
        """int32 (...): the code of each vector (..., D)."""
        codes, vectors = 0, ops.cast(vectors, self.dtype)
        for quantizer, place_value in zip(self.passes, self.place_values):
            digits = quantizer.nearest(vectors)
            vectors = vectors - quantizer.lookup(digits)
            codes = codes + digits * place_value
        return codes

    def lookup(self, codes):
        """float (..., D): the sums of the entries that integer codes (...) in 0 ... K-1 name."""
        codes = ops.convert_to_tensor(codes)
        return sum(
            quantizer.lookup(codes // place_value % quantizer.num_embeddings)
            for quantizer, place_value in zip(self.passes, self.place_values)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "sizes": list(self.sizes),
            "embedding_dim": self.embedding_dim,
            "seed": self.seed,
        }


@_register
class CodebookUsage(keras.metrics.Metric):
    """How the codes seen since the last reset are used: "perplexity" and "dead_codes".

    Perplexity, exp of the entropy of their shares, lies between 1 (one code does everything) and
    K (all codes equally often); dead codes were not seen at all. Keras resets the counts every
    epoch, so what `fit` reports is over a whole pass through the split, not over a batch.
    """

    def __init__(self, num_embeddings: int, **kwargs):
        super().__init__(**kwargs)
        self.num_embeddings = num_embeddings
        self.counts = self.add_variable((num_embeddings,), "zeros", name="counts")

    def update_state(self, chosen, sample_weight=None):
        """Adds `chosen`, float (K,): how many vectors chose each code."""
        self.counts.assign_add(ops.cast(chosen, self.counts.dtype))

    def result(self):
        share = self.counts / ops.maximum(ops.sum(self.counts), 1)
        return {
            "perplexity": ops.exp(-ops.sum(share * ops.log(ops.maximum(share, 1e-12)))),
            "dead_codes": ops.sum(ops.cast(self.counts == 0, "float32")),
        }

    def get_config(self):
        return {**super().get_config(), "num_embeddings": self.num_embeddings}


@_register
class ResidualBlock(keras.layers.Layer):
    """x + conv1x1(relu(conv3x3(relu(x)))): a light residual block (He et al. 2016).

    Args:
        filters: channels of the input and of the output.
        hidden: channels between the two convolutions.
    """

    def __init__(self, filters: int, hidden: int, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.hidden = filters, hidden
        self.look = keras.layers.Conv2D(hidden, 3, padding="same", kernel_initializer="he_normal")
        self.mix = keras.layers.Conv2D(filters, 1)

    def build(self, input_shape):
        self.look.build(input_shape)
        self.mix.build((*input_shape[:-1], self.hidden))

    def call(self, inputs):
        return inputs + self.mix(ops.relu(self.look(ops.relu(inputs))))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "hidden": self.hidden}


# --------------------------------------------------------------------------- stage 2: PixelCNN


@_register
class MaskedConv2D(keras.layers.Conv2D):
    """A convolution that sees only what comes before a position in reading order.

    van den Oord et al. 2016, "Pixel Recurrent Neural Networks" (arXiv 1601.06759). The kernel is
    multiplied by a mask of zeros and ones in every call; the weights themselves are never
    written to.

    Args:
        filters, kernel_size: as for `keras.layers.Conv2D`; the kernel's sides must be odd.
        mask_type: "A" hides the position itself (for the first layer, which sees codes), "B"
            lets it through (for later layers, whose features already exclude it).
    """

    def __init__(self, filters: int, kernel_size, mask_type: str, **kwargs):
        if mask_type not in ("A", "B"):
            raise ValueError(f'Mask type {mask_type!r}: choose "A" or "B".')
        kwargs["padding"] = "same"
        super().__init__(filters, kernel_size, **kwargs)
        self.mask_type = mask_type

    @property
    def mask(self) -> np.ndarray:
        """float32 (height, width, 1, 1): 1 where the kernel may look."""
        height, width = self.kernel_size
        mask = np.ones((height, width, 1, 1), "float32")
        mask[height // 2, width // 2 + (self.mask_type == "B") :] = 0
        mask[height // 2 + 1 :] = 0
        return mask

    @property
    def kernel(self):
        kernel = super().kernel
        return kernel * ops.cast(self.mask, kernel.dtype)

    def get_config(self):
        config = {**super().get_config(), "mask_type": self.mask_type}
        del config["padding"]
        return config


@_register
class CausalConv2D(keras.layers.Conv2D):
    """A convolution over the rows above and, or, the columns to the left; no weight is wasted.

    Instead of masking a square kernel, the input is padded at the top or the left and cut at the
    other end, so that the kernel's last row (or column) lies on the position itself, or, with
    `shift`, just before it. The two stacks of a gated PixelCNN are made of it (van den Oord et
    al. 2016, arXiv 1606.05328): a vertical one, kernel (rows, odd columns), sees whole rows; a
    horizontal one, kernel (1, columns), sees the own row to the left.

    Args:
        filters, kernel_size: as for `keras.layers.Conv2D`.
        shift: True where the position's own row (vertical) or own column (horizontal) must stay
            hidden: in the first layer, which sees codes.
    """

    def __init__(self, filters: int, kernel_size, shift=False, **kwargs):
        kwargs["padding"] = "valid"
        super().__init__(filters, kernel_size, **kwargs)
        self.shift = shift

    @property
    def margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows padded at the top and bottom, columns padded at the left and right."""
        rows, columns = self.kernel_size
        if rows == 1:
            return (0, 0), (columns - 1 + self.shift, -int(self.shift))
        return (rows - 1 + self.shift, -int(self.shift)), (columns // 2, columns // 2)

    def call(self, inputs):
        (top, bottom), (left, right) = self.margins
        padded = ops.pad(inputs, ((0, 0), (top, 0), (left, max(right, 0)), (0, 0)))
        height, width = ops.shape(padded)[1], ops.shape(padded)[2]
        return super().call(padded[:, : height + bottom, : width + min(right, 0)])

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        config = {**super().get_config(), "shift": self.shift}
        del config["padding"]
        return config


@_register
class GatedBlock(keras.layers.Layer):
    """One layer of the two stacks, with the gate tanh(a) x sigmoid(b).

    The vertical stack reads all rows above; the horizontal stack reads the own row to the left
    and, through a 1 x 1 convolution, the vertical stack: together every earlier position and
    nothing else, so there is no blind spot (van den Oord et al. 2016, arXiv 1606.05328). The
    condition enters as a bias before each gate.

    Args:
        filters: C, the channels of both stacks.
        reach: columns to either side (vertical) and to the left (horizontal) that it reads.
        shift: True in the first layer, whose input shows the codes themselves.
        dropout: share of the gated features dropped in training.

    Call arguments:
        vertical, horizontal: float (N, h, w, C).
        condition: float (N, E).

    Returns:
        The new (vertical, horizontal), float (N, h, w, C) each.
    """

    def __init__(self, filters: int, reach: int = 1, shift=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.reach, self.shift, self.dropout = filters, reach, shift, dropout
        self.above = CausalConv2D(2 * filters, (reach + 1, 2 * reach + 1), shift)
        self.left = CausalConv2D(2 * filters, (1, reach + 1), shift)
        self.down = keras.layers.Dense(2 * filters)
        self.bias_above = keras.layers.Dense(2 * filters, use_bias=False)
        self.bias_left = keras.layers.Dense(2 * filters, use_bias=False)
        self.out_above = keras.layers.Dense(filters)
        self.out_left = keras.layers.Dense(filters)
        self.drop = keras.layers.Dropout(dropout)

    def build(self, vertical_shape, horizontal_shape, condition_shape):
        self.above.build(vertical_shape)
        self.left.build(horizontal_shape)
        self.down.build((*vertical_shape[:-1], 2 * self.filters))
        for bias in (self.bias_above, self.bias_left):
            bias.build(condition_shape)
        for out in (self.out_above, self.out_left):
            out.build((*vertical_shape[:-1], self.filters))

    def call(self, vertical, horizontal, condition, training=False):
        above = self.above(vertical)
        left = self.left(horizontal) + self.down(above)
        above = gate(above + self.bias_above(condition)[:, None, None])
        left = gate(left + self.bias_left(condition)[:, None, None])
        above = self.out_above(self.drop(above, training=training))
        left = self.out_left(self.drop(left, training=training))
        if self.shift:  # the inputs show the codes themselves: no residual may carry them on
            return above, left
        return vertical + above, horizontal + left

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "reach": self.reach,
            "shift": self.shift,
            "dropout": self.dropout,
        }


def gate(features):
    """tanh of the first half of the channels times the sigmoid of the second half."""
    values, switches = ops.split(features, 2, axis=-1)
    return ops.tanh(values) * ops.sigmoid(switches)


@_register
class CausalAttention(keras.layers.Layer):
    """Self-attention in reading order, added to its input (PixelSNAIL, arXiv 1712.09763).

    A position looks at itself and at every earlier one. The features it gets exclude the
    position's own code already, so that looking at itself leaks nothing.

    Args:
        heads: number of attention heads.
        head_dim: channels of each head.
    """

    def __init__(self, heads: int, head_dim: int, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.head_dim, self.dropout = heads, head_dim, dropout
        self.norm = keras.layers.LayerNormalization()
        self.project = keras.layers.Dense(3 * heads * head_dim, use_bias=False)
        self.drop = keras.layers.Dropout(dropout)

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.project.build(input_shape)
        self.out = keras.layers.Dense(input_shape[-1])
        self.out.build((*input_shape[:-1], self.heads * self.head_dim))

    def call(self, features, training=False):
        _, height, width, _ = features.shape
        cells = height * width
        projected = ops.reshape(
            self.project(self.norm(features)), (-1, cells, 3, self.heads, self.head_dim)
        )
        query, key, value = (projected[:, :, part] for part in range(3))
        scores = ops.cast(ops.einsum("nqhd,nkhd->nhqk", query, key), "float32")
        earlier = np.tril(np.ones((cells, cells), "bool"))
        scores = ops.where(earlier, scores / self.head_dim**0.5, -1e9)
        weights = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
        seen = ops.einsum("nhqk,nkhd->nqhd", weights, value)
        seen = ops.reshape(seen, (-1, height, width, self.heads * self.head_dim))
        return features + self.drop(self.out(seen), training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "heads": self.heads,
            "head_dim": self.head_dim,
            "dropout": self.dropout,
        }
