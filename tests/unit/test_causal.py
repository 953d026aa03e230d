"""Masked, causal and gated convolutions, and causal attention: who sees whom."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from oasis_helpers.causal import CausalAttention, CausalConv2D, GatedBlock, MaskedConv2D, gate


def sees(function, grid, channels):
    """bool (positions, positions): whether an output position depends on an input position."""
    positions = grid[0] * grid[1]
    inputs = tf.random.stateless_normal((1, *grid, channels), seed=(1, 2))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        energy = tf.reshape(tf.reduce_sum(function(inputs) ** 2, axis=-1), (positions,))
    jacobian = tape.jacobian(energy, inputs).numpy().reshape(positions, positions, channels)
    return np.abs(jacobian).sum(-1) > 0


def test_masks():
    a, b = (MaskedConv2D(1, 3, kind).mask[:, :, 0, 0].tolist() for kind in "AB")
    assert a == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert b == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match='choose "A" or "B"'):
        MaskedConv2D(1, 3, "C")


def test_mask_leaves_the_weights_alone():
    layer = MaskedConv2D(2, 3, "A", kernel_initializer="ones")
    output = ops.convert_to_numpy(layer(np.ones((1, 3, 3, 1), "float32")))
    assert output[0, 1, 1, 0] == 4  # four earlier neighbours
    np.testing.assert_array_equal(layer.get_weights()[0], np.ones((3, 3, 1, 2)))


@pytest.mark.parametrize(
    ("kernel", "shift", "expected"),
    [((2, 3), False, 6), ((2, 3), True, 6), ((1, 2), False, 2), ((1, 2), True, 2)],
)
def test_causal_convolution_keeps_the_shape_and_wastes_no_weight(kernel, shift, expected):
    layer = CausalConv2D(1, kernel, shift, kernel_initializer="ones")
    output = ops.convert_to_numpy(layer(np.ones((1, 5, 5, 1), "float32")))
    assert output.shape == (1, 5, 5, 1) and output[0, 3, 3, 0] == expected


@pytest.mark.parametrize(("kernel", "shift"), [((2, 3), True), ((1, 2), False), ((1, 2), True)])
def test_causal_convolution_sees_no_later_position(kernel, shift):
    seen = sees(CausalConv2D(2, kernel, shift), (4, 4), 2)
    assert not np.triu(seen, 0 if shift else 1).any()
    assert seen[10, 5 if kernel[0] == 2 else 9]  # from row 2, column 2


@pytest.mark.parametrize("shift", [True, False])
def test_both_stacks_of_a_gated_block_see_earlier_positions_only(shift):
    block, condition = GatedBlock(2, radius=1, shift=shift), np.ones((1, 2), "float32")
    vertical, horizontal = (
        sees(lambda x, part=part: block(x, x, condition)[part], (4, 4), 2) for part in (0, 1)
    )
    row = np.arange(16) // 4
    hidden = np.less_equal.outer(row, row) if shift else np.less.outer(row, row)
    assert not vertical[hidden].any() and vertical[~hidden].any()
    if shift:  # only the first block reads codes; later ones read what hides them already
        assert not np.triu(horizontal).any() and horizontal[10, 9] and horizontal[10, 5]


def test_condition_moves_both_stacks():
    block, inputs = GatedBlock(2), np.ones((2, 3, 3, 2), "float32")
    for stack in block(inputs, inputs, np.float32([[1, 0], [0, 1]])):
        first, second = ops.convert_to_numpy(stack)
        assert not np.allclose(first, second)


def test_gate():
    np.testing.assert_allclose(gate(np.float32([[0.5, 0.0]])), [[np.tanh(0.5) / 2]], rtol=1e-6)


def test_attention_sees_every_earlier_position_and_no_later_one():
    seen = sees(CausalAttention(2, 2), (3, 4), 4)
    np.testing.assert_array_equal(seen, np.tril(np.ones((12, 12), bool)))
