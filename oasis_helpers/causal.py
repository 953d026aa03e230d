"""Layers of the PixelCNN: masked, causal and gated convolutions, and causal attention.

Reading order is row by row, from left to right. Every layer here computes the features of a
position from positions that come before it, or from the position itself where that is safe.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

_register = keras.saving.register_keras_serializable("oasis_helpers")


@_register
class MaskedConv2D(keras.layers.Conv2D):
    """A convolution that sees only positions before its own in reading order.

    van den Oord et al. 2016, "Pixel Recurrent Neural Networks" (arXiv 1601.06759). Every call
    multiplies the kernel by a mask of zeros and ones; the weights themselves never change.

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
        """float32 (height, width, 1, 1): 1 where the kernel has its weights."""
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
        return {**super().get_config(), "mask_type": self.mask_type}


@_register
class CausalConv2D(keras.layers.Conv2D):
    """A convolution over the rows above, or over the columns to the left, without a mask.

    The input is padded at the top or the left and cropped at the other end, so that the last row
    (or column) of the kernel lies on the position itself, or, with `shift`, just before it. Both
    stacks of a gated PixelCNN use it (van den Oord et al. 2016, arXiv 1606.05328): the vertical
    stack, with a kernel of (rows, odd columns), sees whole rows; the horizontal stack, with a
    kernel of (1, columns), sees its own row to the left.

    Args:
        filters, kernel_size: as for `keras.layers.Conv2D`.
        shift: True in the first layer, which sees codes: it hides the position's own row
            (vertical) or own column (horizontal).
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
        return {**super().get_config(), "shift": self.shift}


@_register
class GatedBlock(keras.layers.Layer):
    """One layer of both stacks of a gated PixelCNN, with the gate tanh(a) x sigmoid(b).

    The vertical stack reads all rows above. The horizontal stack reads its own row to the left
    and, through a 1 x 1 convolution, the vertical stack. Together they see every earlier position
    and nothing else, so there is no blind spot (van den Oord et al. 2016, arXiv 1606.05328). The
    condition enters as a bias before each gate.

    Args:
        filters: C, the channels of both stacks.
        radius: columns to either side (vertical) and to the left (horizontal) that it reads.
        shift: True in the first layer, whose input shows the codes themselves.
        dropout: fraction of the gated features dropped in training.

    Call arguments:
        vertical, horizontal: float (N, h, w, C).
        condition: float (N, E).

    Returns:
        The new (vertical, horizontal), float (N, h, w, C) each.
    """

    def __init__(self, filters: int, radius: int = 1, shift=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.radius, self.shift, self.dropout = filters, radius, shift, dropout
        self.conv_vertical = CausalConv2D(2 * filters, (radius + 1, 2 * radius + 1), shift)
        self.conv_horizontal = CausalConv2D(2 * filters, (1, radius + 1), shift)
        self.vertical_to_horizontal = keras.layers.Dense(2 * filters)
        self.condition_vertical = keras.layers.Dense(2 * filters, use_bias=False)
        self.condition_horizontal = keras.layers.Dense(2 * filters, use_bias=False)
        self.project_vertical = keras.layers.Dense(filters)
        self.project_horizontal = keras.layers.Dense(filters)
        self.drop = keras.layers.Dropout(dropout)

    def call(self, vertical, horizontal, condition, training=False):
        v = self.conv_vertical(vertical)
        h = self.conv_horizontal(horizontal) + self.vertical_to_horizontal(v)
        v = gate(v + self.condition_vertical(condition)[:, None, None])
        h = gate(h + self.condition_horizontal(condition)[:, None, None])
        v = self.project_vertical(self.drop(v, training=training))
        h = self.project_horizontal(self.drop(h, training=training))
        if self.shift:  # the inputs show the codes themselves: no residual may carry them on
            return v, h
        return vertical + v, horizontal + h


def gate(features):
    """tanh of the first half of the channels times the sigmoid of the second half."""
    values, gates = ops.split(features, 2, axis=-1)
    return ops.tanh(values) * ops.sigmoid(gates)


@_register
class CausalAttention(keras.layers.Layer):
    """Self-attention in reading order, added to its input (PixelSNAIL, arXiv 1712.09763).

    A position attends to itself and to every earlier one. Its features already exclude its own
    code, so attending to itself leaks nothing.

    Args:
        num_heads: number of attention heads.
        head_dim: channels of each head.
        dropout: fraction of the output dropped in training.
    """

    def __init__(self, num_heads: int, head_dim: int, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.head_dim, self.dropout = num_heads, head_dim, dropout
        self.norm = keras.layers.LayerNormalization()
        self.project = keras.layers.Dense(3 * num_heads * head_dim, use_bias=False)
        self.drop = keras.layers.Dropout(dropout)

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.project.build(input_shape)
        self.out = keras.layers.Dense(input_shape[-1])
        self.out.build((*input_shape[:-1], self.num_heads * self.head_dim))

    def call(self, features, training=False):
        _, height, width, _ = features.shape
        projected = ops.reshape(
            self.project(self.norm(features)),
            (-1, height * width, 3, self.num_heads, self.head_dim),
        )
        # In float32 whatever the policy is: JAX multiplies no float16 here on a processor.
        query, key, value = (ops.cast(projected[:, :, part], "float32") for part in range(3))
        attended = ops.dot_product_attention(query, key, value, is_causal=True)
        attended = ops.reshape(attended, (-1, height, width, self.num_heads * self.head_dim))
        attended = ops.cast(attended, projected.dtype)
        return features + self.drop(self.out(attended), training=training)
