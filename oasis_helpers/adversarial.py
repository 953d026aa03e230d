"""Adversarial fine-tuning: a decoder that adds the high-frequency detail that codes leave open.

A decoder trained on squared error and SSIM returns the *mean* of all slices that share a code map,
and the mean of many folds is blurred. Here encoder and codebook stay frozen, so code maps and any
prior over them stay valid. The detail that the decoder adds is plausible, not the subject's own:
such images are not for diagnosis.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from oasis_helpers.layers import refuse_targets
from oasis_helpers.recipes import border_of
from oasis_helpers.vqvae import VQVAE, Region, reconstruction_loss


class AdversarialDecoder(keras.Model):
    """Fine-tunes a VQ-VAE's decoder against a discriminator: `compile` and `fit(codes, images)`.

    One step has two losses. The discriminator's is the hinge loss (Lim and Ye 2017, arXiv
    1705.02894); generated images reach it without a gradient, so it moves the discriminator only.
    The decoder's is a weighted sum of its reconstruction loss, the discriminator's score, and the
    distance between the discriminator's features of original and decoded (feature matching,
    Salimans et al. 2016, arXiv 1606.03498); here the discriminator's weights are held fixed.
    Patch discriminators come from Isola et al. 2017 (arXiv 1611.07004), their use on a VQ-VAE from
    Esser et al. 2021 (VQGAN, arXiv 2012.09841).

    Args:
        vqvae: the model with the decoder to train; encoder and quantiser do not change.
        discriminator: from `patch_discriminator`.
        decoder: trained instead of the VQ-VAE's own; from `head_decoder`.
        reconstruction_weight, adversarial_weight, feature_weight: of the decoder's three terms.
    """

    def __init__(
        self,
        vqvae: VQVAE,
        discriminator: keras.Model,
        decoder: keras.Model | None = None,
        reconstruction_weight: float = 1.0,
        adversarial_weight: float = 0.1,
        feature_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.decoder, self.discriminator = decoder or vqvae.decoder, discriminator
        self.entries, self.blur = vqvae.entries, vqvae.blur
        self.variance, self.ssim_weight = vqvae.variance, vqvae.ssim_weight
        self.reconstruction_weight = reconstruction_weight
        self.adversarial_weight, self.feature_weight = adversarial_weight, feature_weight
        names = ("reconstruction_loss", "adversarial_loss", "feature_loss")
        names += ("discriminator_loss", "discriminator_accuracy")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self.built = True

    def build(self, input_shape):
        """Does nothing: decoder and discriminator are built from the start."""

    def call(self, codes, training=False):
        return self.decoder(self.entries(codes), training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        refuse_targets("fit(codes, images)", y, sample_weight)
        *real_features, real_score = self.discriminator(y)
        *_, fake_score = self.discriminator(ops.stop_gradient(y_pred))
        discriminator_loss = ops.mean(ops.relu(1 - real_score)) + ops.mean(ops.relu(1 + fake_score))

        *fake_features, score = self._fixed_discriminator(y_pred)
        pairs = zip(real_features, fake_features)
        distances = [ops.mean(ops.abs(ops.stop_gradient(real) - fake)) for real, fake in pairs]
        reconstruction = reconstruction_loss(y, y_pred, self.variance, self.ssim_weight, self.blur)
        losses = {
            "discriminator_loss": (discriminator_loss, 1.0),
            "reconstruction_loss": (reconstruction, self.reconstruction_weight),
            "adversarial_loss": (-ops.mean(score), self.adversarial_weight),
            "feature_loss": (sum(distances), self.feature_weight),
        }
        correct = ops.concatenate([real_score > 0, fake_score <= 0])
        self.trackers["discriminator_accuracy"].update_state(ops.cast(correct, "float32"))
        for name, (value, _) in losses.items():
            self.trackers[name].update_state(value)
        return sum(weight * value for value, weight in losses.values())

    def _fixed_discriminator(self, images):
        """The discriminator's outputs, with a gradient to the images but not to its weights."""
        model = self.discriminator
        weights = model.trainable_variables, model.non_trainable_variables
        fixed = (
            [ops.stop_gradient(ops.convert_to_tensor(one)) for one in group] for group in weights
        )
        return model.stateless_call(*fixed, images)[0]


def head_decoder(decoder: keras.Model) -> keras.Model:
    """The decoder of whole heads before training: it gives the same images as `decoder`.

    Slices that are decoded one by one flicker, because each is quantised alone. This decoder also
    sees the codes of the slices below and above, whose weights start at 0.

    Returns:
        A model from entries (N, h, w, 3 D), see `VQVAE.entries`, to images (N, size, size, 1).
    """
    *grid, depth = decoder.input_shape[1:]
    wide = keras.models.clone_model(decoder, input_tensors=keras.Input((*grid, 3 * depth)))
    kernel, *others = decoder.get_weights()
    wide.set_weights([np.pad(kernel, [(0, 0), (0, 0), (0, 2 * depth), (0, 0)]), *others])
    return wide


def patch_discriminator(size: int, region: Region, filters: int = 64) -> keras.Model:
    """A network that scores patches of an image: above 0 for real, below for generated.

    Its first layer has a stride of 4 pixels (space to depth), which is fast on a processor. A
    score sees 24 pixels of the region (top, left, height, width).

    Returns:
        A model from images (N, size, size, 1) in [0, 1] to a list: the features of two layers,
        float (N, height / 4, width / 4, filters), and the scores, (N, height / 4, width / 4, 1).
    """
    border = border_of(region, size)
    image = keras.Input((size, size, 1))
    x = layers.Rescaling(2.0, offset=-1.0)(layers.Cropping2D(border)(image))
    outputs = []
    for kernel, stride in ((8, 4), (3, 1)):
        x = layers.Conv2D(filters, kernel, strides=stride, padding="same")(x)
        x = layers.LeakyReLU(0.2)(x)
        outputs.append(x)
    x = layers.Conv2D(filters, 3, padding="same")(x)
    outputs.append(layers.Conv2D(1, 1)(layers.LeakyReLU(0.2)(x)))
    return keras.Model(image, outputs, name="discriminator")
