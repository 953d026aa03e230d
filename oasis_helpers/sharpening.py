"""Stage 1b: a decoder that draws what the codes leave out, trained against a critic.

A decoder trained on squared error and SSIM draws the *mean* of all slices that share a code map,
and the mean of many folds is fog. Here encoder and codebook stay frozen, so that code maps and
any prior over them are untouched, and the decoder learns on against a small network that tells
real patches from decoded ones. What it adds is plausible, not the patient's own: realism is
bought with fidelity, and such pictures are not for diagnosis.
"""

from __future__ import annotations

import keras
from keras import layers, ops

from oasis_helpers.vqvae import VQVAE, Field, reconstruction_loss


class Sharpener(keras.Model):
    """Trains a VQ-VAE's decoder on, with `compile` and `fit(codes, images)`.

    Two losses in one step. The critic's is the hinge loss (Lim and Ye 2017, arXiv 1705.02894);
    pictures reach it without a gradient, so that it moves the critic only. The decoder's is a
    share of its faithful loss, plus what the critic thinks of its pictures, plus the distance
    between the critic's features of original and decoded (feature matching, Salimans et al.
    2016, arXiv 1606.03498); here the critic's weights are held fixed. Discriminators over
    patches come from Isola et al. 2017 (arXiv 1611.07004), their use on a VQ-VAE from Esser et
    al. 2021 (VQGAN, arXiv 2012.09841).

    Args:
        vqvae: whose decoder is trained; encoder and quantiser are not touched.
        critic: from `patch_critic`.
        faithful_weight, realism_weight, feature_weight: of the decoder's three terms.
    """

    def __init__(
        self,
        vqvae: VQVAE,
        critic: keras.Model,
        faithful_weight: float = 1.0,
        realism_weight: float = 0.1,
        feature_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.decoder, self.critic = vqvae.decoder, critic
        self.lookup, self.blur = vqvae.quantizer.lookup, vqvae.blur
        self.variance, self.ssim_weight = vqvae.variance, vqvae.ssim_weight
        self.faithful_weight = faithful_weight
        self.realism_weight, self.feature_weight = realism_weight, feature_weight
        self.shown = {
            name: keras.metrics.Mean(name=name)
            for name in ("faithful", "realism", "features", "critic", "told_apart")
        }
        self.built = True

    @property
    def metrics(self):
        return [*super().metrics, *self.shown.values()]

    def build(self, input_shape):
        """Nothing is left to build: decoder and critic are built from the start."""

    def call(self, codes, training=False):
        return self.decoder(self.lookup(codes), training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        *real_features, real_score = self.critic(y)
        *_, drawn_score = self.critic(ops.stop_gradient(y_pred))
        critic_loss = ops.mean(ops.relu(1 - real_score)) + ops.mean(ops.relu(1 + drawn_score))

        fixed = (
            [ops.stop_gradient(ops.convert_to_tensor(variable)) for variable in group]
            for group in (self.critic.trainable_variables, self.critic.non_trainable_variables)
        )
        (*drawn_features, judged), _ = self.critic.stateless_call(*fixed, y_pred)
        features = sum(
            ops.mean(ops.abs(ops.stop_gradient(real) - drawn))
            for real, drawn in zip(real_features, drawn_features)
        )
        faithful = reconstruction_loss(y, y_pred, self.variance, self.ssim_weight, self.blur)
        realism = -ops.mean(judged)
        for name, value in (
            ("faithful", faithful),
            ("realism", realism),
            ("features", features),
            ("critic", critic_loss),
            ("told_apart", ops.mean(ops.cast(real_score > 0, "float32"))),
        ):
            self.shown[name].update_state(value)
        loss = critic_loss + self.faithful_weight * faithful
        loss += self.realism_weight * realism + self.feature_weight * features
        return self._aggregate_additional_loss(loss)  # as in `VQVAE`


def patch_critic(size: int, field: Field, filters: int = 64) -> keras.Model:
    """A network that scores patches of a picture: above 0 for real, below for decoded.

    It works on 4 x 4 pixels at once (space to depth), where a processor is fast, and sees 24
    pixels around each.

    Args:
        size: side of the pictures.
        field: (top, left, height, width) of the part that is looked at.
        filters: channels.

    Returns:
        A model from pictures (N, size, size, 1) in [0, 1] to a list: the features of two layers,
        float (N, height / 4, width / 4, filters), and the scores, (N, height / 4, width / 4, 1).
    """
    top, left, height, width = field
    border = ((top, size - top - height), (left, size - left - width))
    image = keras.Input((size, size, 1))
    x = layers.Rescaling(2.0, offset=-1.0)(layers.Cropping2D(border)(image))
    outputs = []
    for kernel, stride in ((8, 4), (3, 1)):
        x = layers.Conv2D(filters, kernel, strides=stride, padding="same")(x)
        x = layers.LeakyReLU(0.2)(x)
        outputs.append(x)
    x = layers.Conv2D(filters, 3, padding="same")(x)
    outputs.append(layers.Conv2D(1, 1)(layers.LeakyReLU(0.2)(x)))
    return keras.Model(image, outputs, name="critic")
