"""Layers of the VQ-VAE: two vector quantisers, how their codebook is used, a residual block.

Written with `keras.ops`, for any Keras backend.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

_register = keras.saving.register_keras_serializable("oasis_helpers")


@_register
class VectorQuantizer(keras.layers.Layer):
    """Replaces every vector by its nearest codebook entry; the codebook learns by gradient.

    van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937). The
    codebook loss pulls entries to the encoder's vectors. The commitment loss, weighted by beta,
    pulls the vectors to their entries. The gradient passes straight through the choice of entry.

    Args:
        num_embeddings: K, the number of codebook entries.
        embedding_dim: D, the length of each entry.
        commitment_cost: beta, the weight of the commitment loss.
        dtype: float32 whatever the global policy is: half precision cannot separate near entries
            and cannot count beyond 2048.

    Call arguments:
        vectors: float (..., D).

    Returns:
        float (..., D), each vector's nearest entry, with the gradient of the vector; and
        int32 (...), the codes, which are the indices of these entries.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        refuse_below_one(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost

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
        )

    def call(self, vectors, training=False):
        codes = self.nearest(vectors)
        entries = self.lookup(codes)
        self.add_loss(ops.mean((entries - ops.stop_gradient(vectors)) ** 2))
        self.add_loss(self.commitment_cost * ops.mean((vectors - ops.stop_gradient(entries)) ** 2))
        return straight_through(vectors, entries), codes

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


def straight_through(vectors, entries):
    """The entries; the gradient passes to the vectors unchanged (Bengio et al. 2013)."""
    return vectors + ops.stop_gradient(entries - vectors)


@_register
class EMAVectorQuantizer(VectorQuantizer):
    """A quantiser whose entries follow the moving average of the vectors that choose them.

    Three remedies against a collapsing codebook: the exponential moving average of van den Oord et
    al. 2017 (appendix A.1); a data-dependent start, with entries sampled from the first batch of
    encoder vectors; and the restart of entries that hardly any vector chooses (Lancucki et al.
    2020, arXiv 2005.08520; Dhariwal et al. 2020, Jukebox, arXiv 2005.00341). Start and restart
    sample vectors with probability proportional to their quantisation error, as k-means++ does
    (Arthur and Vassilvitskii 2007): a uniform sample would mostly pick black background.

    Args:
        num_embeddings, embedding_dim, commitment_cost: as for `VectorQuantizer`.
        decay: of the moving averages, in [0, 1).
        start_from_data: False keeps the uniform random start.
        restart_below: an entry is restarted when its averaged count of vectors per batch falls
            below this fraction of the mean count (vectors in the batch / K); 0 restarts none.
        seed: of the random samples.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        decay: float = 0.95,
        start_from_data: bool = True,
        restart_below: float = 0.1,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(num_embeddings, embedding_dim, commitment_cost, **kwargs)
        self.decay = decay
        self.start_from_data = start_from_data
        self.restart_below = restart_below
        self.seed = seed
        self.random = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        super().build(input_shape)
        self.codebook.trainable = False  # moving averages move it, no gradient does
        statistics = {"initializer": "zeros", "trainable": False}
        self.counts = self.add_weight(name="counts", shape=(self.num_embeddings,), **statistics)
        self.sums = self.add_weight(name="sums", shape=self.codebook.shape, **statistics)
        self.restarts = self.add_weight(name="restarts", shape=(), **statistics)

    def call(self, vectors, training=False):
        codes = self.nearest(vectors)
        entries = self.lookup(codes)
        if training:
            self.update(*self.batch_statistics(vectors, codes))
        self.add_loss(self.commitment_cost * ops.mean((vectors - ops.stop_gradient(entries)) ** 2))
        return straight_through(vectors, entries), codes

    def batch_statistics(self, vectors, codes):
        """What `update` needs of a batch of vectors (..., D) and their codes (...).

        Returns how many vectors chose each entry, float (K,); their sums, float (K, D); and a
        vector sampled for each entry in case of a restart, float (K, D).
        """
        vectors = ops.stop_gradient(ops.reshape(vectors, (-1, self.embedding_dim)))
        codes = ops.reshape(codes, (-1,))
        one_hot = ops.one_hot(codes, self.num_embeddings, dtype=self.dtype)
        # Of NaN, TensorFlow would sample an index out of range, and its error would hide the cause.
        error = ops.nan_to_num(ops.sum((vectors - self.lookup(codes)) ** 2, axis=-1))
        sampled = keras.random.categorical(
            ops.log(ops.maximum(error, 1e-12))[None], self.num_embeddings, seed=self.random
        )
        return (
            ops.sum(one_hot, axis=0),
            ops.matmul(ops.transpose(one_hot), vectors),
            ops.take(vectors, sampled[0], axis=0),
        )

    def update(self, chosen, vector_sums, candidates):
        """Moves every entry to the moving average of its vectors, or restarts it."""
        counts = self.decay * self.counts + (1 - self.decay) * chosen
        sums = self.decay * self.sums + (1 - self.decay) * vector_sums
        mean_count = ops.sum(chosen) / self.num_embeddings
        dead = counts < self.restart_below * mean_count
        if self.start_from_data:  # before the first batch, no entry has been chosen
            dead = ops.logical_or(dead, ops.sum(self.counts) == 0)
        counts = ops.where(dead, mean_count, counts)
        sums = ops.where(dead[:, None], candidates * mean_count, sums)
        # An entry that no vector chose stays: its quotient is 0 / 0 at first, and after underflow.
        moved = ops.logical_or(chosen > 0, dead)
        means = sums / ops.where(moved, counts, 1)[:, None]
        entries = ops.convert_to_tensor(self.codebook)  # JAX's `where` accepts no variable
        self.codebook.assign(ops.where(moved[:, None], means, entries))
        self.counts.assign(counts)
        self.sums.assign(sums)
        self.restarts.assign_add(ops.sum(ops.cast(dead, self.dtype)))


@_register
class CodebookUsage(keras.metrics.Metric):
    """How the codes seen since the last reset are used: "perplexity" and "dead_codes".

    Perplexity, the exponential of the entropy of their frequencies, lies between 1 (one code does
    everything) and K (all codes equally often). Dead codes were not seen at all. Keras resets the
    counts every epoch, so `fit` reports them over a whole split, not over a batch.
    """

    def __init__(self, num_embeddings: int, **kwargs):
        super().__init__(**kwargs)
        self.num_embeddings = num_embeddings
        self.counts = self.add_variable((num_embeddings,), "zeros", name="counts")

    def update_state(self, codes, sample_weight=None):
        """Counts the codes, int (...)."""
        one_hot = ops.one_hot(ops.reshape(codes, (-1,)), self.num_embeddings, dtype="float32")
        self.counts.assign_add(ops.sum(one_hot, axis=0))

    def result(self):
        frequency = self.counts / ops.maximum(ops.sum(self.counts), 1)
        entropy = -ops.sum(frequency * ops.log(ops.maximum(frequency, 1e-12)))
        return {
            "perplexity": ops.exp(entropy),
            "dead_codes": ops.sum(ops.cast(self.counts == 0, "float32")),
        }

    def get_config(self):
        return {**super().get_config(), "num_embeddings": self.num_embeddings}


@_register
class ResidualBlock(keras.layers.Layer):
    """x + conv1x1(relu(conv3x3(relu(x)))): a light residual block (He et al. 2016).

    The input and the output have `filters` channels, between the convolutions there are `hidden`.
    """

    def __init__(self, filters: int, hidden: int, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.hidden = filters, hidden
        policy = {"dtype": self.dtype_policy}
        self.conv3x3 = keras.layers.Conv2D(
            hidden, 3, padding="same", kernel_initializer="he_normal", **policy
        )
        self.conv1x1 = keras.layers.Conv2D(filters, 1, **policy)

    def build(self, input_shape):
        self.conv3x3.build(input_shape)
        self.conv1x1.build((*input_shape[:-1], self.hidden))

    def call(self, inputs):
        return inputs + self.conv1x1(ops.relu(self.conv3x3(ops.relu(inputs))))


def checked_codes(what: str, codes, num_embeddings: int, lowest: int = 0) -> np.ndarray:
    """The codes as int32; ValueError unless they are integers from `lowest` to K - 1."""
    codes = np.asarray(codes)
    whole = np.issubdtype(codes.dtype, np.integer)
    if whole and (not codes.size or lowest <= codes.min() <= codes.max() < num_embeddings):
        return codes.astype("int32", copy=False)
    actual = (
        f"from {codes.min()} to {codes.max()}" if whole else f"of type {codes.dtype}, not integers"
    )
    unknown = ", and -1 where a code is to be sampled" if lowest else ""
    raise ValueError(
        f"{what} codes {actual}; expected 0 to {num_embeddings - 1}{unknown}: these codes belong "
        "to another codebook."
    )


def refuse_nan(what: str, *arrays: np.ndarray) -> None:
    """Raises ValueError unless all values are finite: NaN would become code 0."""
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError(
            f"{what} NaN or infinity: the weights are damaged, or their training diverged; "
            "restore the weights, or train again with a lower learning rate."
        )


def refuse_targets(call: str, y, sample_weight=None) -> None:
    """Raises ValueError for a `fit` without targets or with weights, which a loss would ignore."""
    if y is None:
        raise ValueError(f"fit needs targets: call {call}.")
    if sample_weight is not None:
        raise ValueError(
            f"The weights of samples or classes have no part in this loss; call {call}."
        )


def refuse_below_one(**numbers) -> None:
    """Raises ValueError unless all numbers are whole and at least 1."""
    for name, value in numbers.items():
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} = {value!r}: expected a whole number, 1 or more.")
