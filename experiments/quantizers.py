"""Three more quantisers, which the ablation compares with those of `oasis_helpers.layers`.

A VQ-VAE needs of a quantiser: `num_embeddings` (K), `embedding_dim` (D), a call that maps vectors,
float (..., D), to entries with a gradient and their codes, int32 (...), and adds its losses with
`add_loss`; `nearest` from vectors to codes; `lookup` from codes to entries.
"""

import keras
import numpy as np
from keras import ops

from oasis_helpers.layers import EMAVectorQuantizer, straight_through


class RotationQuantizer(EMAVectorQuantizer):
    """An `EMAVectorQuantizer` with the gradient of the rotation trick.

    Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick" (arXiv
    2410.06424).
    """

    def call(self, vectors, training=False):
        entries, codes = super().call(vectors, training)
        return rotated(vectors, entries), codes


def rotated(vectors, entries):
    """The entries, computed by a rotation and a scaling of each vector (D on the last axis).

    The gradient is rotated and scaled back in the same way. So it depends on where the vector lies
    among those that choose its entry, which the straight-through gradient ignores.
    """

    def length(x):
        return ops.sqrt(ops.sum(x**2, axis=-1, keepdims=True) + 1e-12)

    def along(direction, x):
        return ops.sum(direction * x, axis=-1, keepdims=True)

    from_direction = ops.stop_gradient(vectors / length(vectors))
    to_direction = ops.stop_gradient(entries / length(entries))
    halfway = from_direction + to_direction
    halfway /= length(halfway)
    scale = ops.stop_gradient(length(entries) / length(vectors))
    reflected = vectors - 2 * halfway * along(halfway, vectors)
    return scale * (reflected + 2 * to_direction * along(from_direction, vectors))


class FiniteScalarQuantizer(keras.layers.Layer):
    """Rounds each component of a vector to one of a few levels: a codebook that cannot collapse.

    Mentzer et al. 2023, "Finite Scalar Quantization" (arXiv 2309.15505). The codebook is the grid
    of all combinations of levels. Nothing in it is trained, and no extra loss is needed.

    Args:
        levels: the number of levels of each of the D components; K is their product.
    """

    def __init__(self, levels: tuple[int, ...], dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.levels = tuple(levels)
        self.num_embeddings, self.embedding_dim = int(np.prod(levels)), len(levels)
        self.place_values = np.cumprod([1, *self.levels[:-1]]).astype("int32")

    def call(self, vectors, training=False):
        bounded = self._bounded(vectors)
        digits = ops.round(bounded)
        return self._centred(straight_through(bounded, digits)), self._codes(digits)

    def nearest(self, vectors):
        """int32 (...): the code of each vector (..., D)."""
        return self._codes(ops.round(self._bounded(vectors)))

    def lookup(self, codes):
        """float (..., D) in [-1, 1]: the grid points of integer codes (...) in 0 ... K-1."""
        digits = ops.floor_divide(ops.expand_dims(codes, -1), self.place_values)
        return self._centred(ops.cast(ops.mod(digits, np.int32(self.levels)), self.dtype))

    def _bounded(self, vectors):
        """Components between -0.5 and levels - 0.5, so that rounding gives 0 ... levels - 1."""
        vectors = ops.cast(vectors, self.dtype)
        return ops.sigmoid(vectors) * (np.float32(self.levels) - 1e-3) - 0.4995

    def _codes(self, digits):
        return ops.cast(ops.sum(ops.cast(digits, "int32") * self.place_values, axis=-1), "int32")

    def _centred(self, digits):
        return 2 * digits / (np.float32(self.levels) - 1) - 1


class ResidualQuantizer(keras.layers.Layer):
    """Quantises in several passes; each pass quantises what the earlier ones left over.

    Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization" (arXiv
    2203.01941). The codes of all passes are read as the digits of one code.

    Args:
        sizes: number of entries of each pass's codebook; K is their product.
        embedding_dim: D.
        seed: of the codebooks' random samples.
    """

    def __init__(self, sizes: tuple[int, ...], embedding_dim: int, seed: int = 0, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.num_embeddings, self.embedding_dim = int(np.prod(sizes)), embedding_dim
        self.place_values = [int(np.prod(sizes[:number])) for number in range(len(sizes))]
        self.passes = [
            EMAVectorQuantizer(size, embedding_dim, seed=seed + number)
            for number, size in enumerate(sizes)
        ]

    def build(self, input_shape):
        for quantizer in self.passes:
            quantizer.build(input_shape)

    def call(self, vectors, training=False):
        rest, codes = vectors, 0
        for quantizer, place_value in zip(self.passes, self.place_values):
            entries, digits = quantizer(rest, training=training)  # adds its commitment loss
            rest, codes = rest - ops.stop_gradient(entries), codes + digits * place_value
        return straight_through(vectors, vectors - rest), codes

    def nearest(self, vectors):
        """int32 (...): the code of each vector (..., D)."""
        rest, codes = ops.cast(vectors, self.dtype), 0
        for quantizer, place_value in zip(self.passes, self.place_values):
            digits = quantizer.nearest(rest)
            rest, codes = rest - quantizer.lookup(digits), codes + digits * place_value
        return codes

    def lookup(self, codes):
        """float (..., D): the sums of the entries that codes (...) in 0 ... K-1 stand for."""
        codes = ops.convert_to_tensor(codes)
        return sum(
            quantizer.lookup(codes // place_value % quantizer.num_embeddings)
            for quantizer, place_value in zip(self.passes, self.place_values)
        )
