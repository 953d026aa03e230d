"""What the page book/draw.md needs of a set of weights, as one script without any library.

    python -m tools.export_page cohort build/draw-weights.js

A script, because a browser lets a page read no other file of a folder that no server gives. It
holds the weights in float32, exactly as shipped. What the conditions add to each position is
computed here by the model's own layers, so the page needs no layer of them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from matplotlib.colors import to_hex
from PIL import Image

from oasis_helpers import load_pretrained, sample_codes
from oasis_helpers.causal import CausalAttention, CausalConv2D, GatedBlock
from oasis_helpers.data import SLICES_PER_SUBJECT, write_bytes
from oasis_helpers.layers import ResidualBlock
from oasis_helpers.plotting import code_colours


class Arrays:
    """Arrays one after another; calling it adds one and returns its place, {"from", "to"}."""

    def __init__(self):
        self.parts, self.length = [], 0

    def __call__(self, values) -> dict[str, int]:
        values = np.ravel(ops.convert_to_numpy(values)).astype("<f4")
        self.parts.append(values)
        self.length += values.size
        return {"from": self.length - values.size, "to": self.length}

    def affine(self, layer) -> dict:
        """The kernel, (..., inputs, outputs), and the bias."""
        return {"kernel": self(layer.kernel), "bias": self(layer.bias)}

    def convolution(self, layer: layers.Conv2D) -> dict:
        """The same with the size of the kernel, and how far it reads above and to the left."""
        rows, columns = layer.kernel_size
        causal = isinstance(layer, CausalConv2D)
        (top, _), (left, _) = layer.margins if causal else ((rows // 2, 0), (columns // 2, 0))
        size = {"rows": rows, "columns": columns, "top": top, "left": left}
        return size | self.affine(layer)


def script(name: str) -> str:
    """JavaScript that sets DRAW, {"model": JSON, "weights": float32 in base64}."""
    models, arrays = load_pretrained(name), Arrays()
    vqvae, prior = models.vqvae, models.prior
    black = vqvae.encode(np.zeros((1, vqvae.size, vqvae.size, 1), "float32"))
    patches = code_patches(vqvae, prior)
    colours = code_colours(black)[0].colors
    model = {
        "grid": vqvae.code_shape,
        "background": int(black[0, 0, 0]),
        "colours": [to_hex(colour) for colour in colours[: vqvae.num_embeddings]],
        "palette": [
            {"code": int(code), "patch": png(patches[code])}
            for code in patches.mean(axis=(1, 2)).argsort()  # dark to bright
        ],
        "prior": prior_weights(prior, arrays),
        "codebook": arrays(vqvae.quantizer.codebook),
        "decoder": [step for layer in vqvae.decoder.operations for step in steps_of(layer, arrays)],
    }
    weights = base64.b64encode(np.concatenate(arrays.parts).tobytes()).decode()
    return f"const DRAW = {json.dumps({'model': json.dumps(model), 'weights': weights})};\n"


def prior_weights(prior, arrays: Arrays) -> dict:
    """The weights of a `GatedPixelCNN`; its conditions as tables over slice indices."""
    condition, position = condition_features(prior)
    return {
        "code_embedding": arrays(prior.code_embedding.embeddings),
        "position_features": arrays(position),
        "blocks": [block_weights(b, condition, arrays) for b in (prior.first, *prior.gated)],
        "attention": {after: attention_weights(a, arrays) for after, a in prior.attention.items()},
        "head": arrays.affine(prior.head),
        "logits": arrays.affine(prior.logits),
    }


def condition_features(prior):
    """What is known before the first code: of maps, (32, C), and of positions, (1, h, w, C)."""
    indices = np.arange(SLICES_PER_SUBJECT)
    codes = np.zeros((SLICES_PER_SUBJECT, *prior.grid), "int32")
    below, conditions = prior.inputs_for(codes, indices)[2:] or (None, None)  # all unknown
    position = prior.position_features(below)[:1]  # so all maps have the same
    return prior.condition_features(indices, conditions), position


def block_weights(block: GatedBlock, condition, arrays: Arrays) -> dict:
    """The weights of a block; what the condition adds before its gates, for each slice index."""
    parts = ("vertical_to_horizontal", "project_vertical", "project_horizontal")
    stacks = ("vertical", "horizontal")
    return {
        "conditions": [arrays(getattr(block, f"condition_{s}")(condition)) for s in stacks],
        **{f"conv_{s}": arrays.convolution(getattr(block, f"conv_{s}")) for s in stacks},
        **{name: arrays.affine(getattr(block, name)) for name in parts},
    }


def attention_weights(layer: CausalAttention, arrays: Arrays) -> dict:
    """The norm's scale and shift and the scale of the scores become part of the product."""
    gamma, beta, kernel = map(
        ops.convert_to_numpy, (layer.norm.gamma, layer.norm.beta, layer.project.kernel)
    )
    scale = np.ones(kernel.shape[1], "float32")
    scale[: len(scale) // 3] = layer.head_dim**-0.5
    return {
        "heads": layer.num_heads,
        "epsilon": layer.norm.epsilon,
        "project": {
            "kernel": arrays(gamma[:, None] * kernel * scale),
            "bias": arrays(beta @ kernel * scale),
        },
        "out": arrays.affine(layer.out),
    }


def steps_of(layer: keras.layers.Layer, arrays: Arrays) -> list[dict]:
    """A layer of a decoder as steps of the page.

    Raises:
        ValueError: for a layer that the page cannot compute.
    """
    match layer:
        case layers.InputLayer() | layers.ZeroPadding2D():  # the page shows the region alone
            return []
        case ResidualBlock(conv3x3=conv3x3, conv1x1=conv1x1):
            parts = {"conv3x3": conv3x3, "conv1x1": conv1x1}
            parts = {name: arrays.convolution(part) for name, part in parts.items()}
            return [{"kind": "residual", **parts}]
        case layers.Conv2DTranspose() if layer.strides == layer.kernel_size:
            rows, columns = layer.strides
            kernel = ops.transpose(layer.kernel, (0, 1, 3, 2))  # outputs last
            weights = {"kernel": arrays(kernel), "bias": arrays(layer.bias)}
            end = [{"kind": "sigmoid"}] if layer.activation is keras.activations.sigmoid else []
            return [{"kind": "upsample", "rows": rows, "columns": columns, **weights}, *end]
        case layers.Conv2D() if layer.padding == "same" and layer.strides == (1, 1):
            return [{"kind": "convolve", **arrays.convolution(layer)}]
    if layer.name.startswith("relu"):
        return [{"kind": "relu"}]
    raise ValueError(
        f"The decoder's layer {layer.name!r} is a {type(layer).__name__}; book/static/draw.js "
        "computes decoders of `improved_vqvae` only: choose such weights."
    )


def code_patches(vqvae, prior) -> np.ndarray:
    """float32 (K, height, width) in [0, 1]: what each code paints in a slice of the prior."""
    rows, columns = vqvae.code_shape
    row, column = rows // 2, columns // 4  # in one half of the brain, as in notebook 04
    middle = sample_codes(prior, 1, slice_index=SLICES_PER_SUBJECT // 2)
    variants = np.repeat(middle, vqvae.num_embeddings, axis=0)
    variants[:, row, column] = np.arange(vqvae.num_embeddings)
    top, left, height, width = vqvae.region
    height, width = height // rows, width // columns
    top, left = top + row * height, left + column * width
    return vqvae.decode(variants)[:, top : top + height, left : left + width, 0]


def png(patch: np.ndarray) -> str:
    """A picture, float (height, width) in [0, 1], as an address."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * patch).astype("uint8")).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the weights, such as cohort")
    parser.add_argument("file", type=Path, help="to write")
    options = parser.parse_args()
    write_bytes(options.file, script(options.name).encode())
