"""A VQ-VAE for several devices of one machine under `tf.distribute`.

Keras and the strategy add up gradients; what remains is to update one codebook with sums over all
devices.
"""

from __future__ import annotations

import keras
from keras import ops

from oasis_helpers.layers import EMAVectorQuantizer
from oasis_helpers.vqvae import VQVAE

_register = keras.saving.register_keras_serializable("oasis_helpers")


def mirrored(vqvae: VQVAE) -> VQVAE:
    """The same model with one codebook for all devices; call it inside a strategy's scope."""
    quantizer = MirroredQuantizer.from_config(vqvae.quantizer.get_config())
    parts = vqvae.encoder, quantizer, vqvae.decoder
    copy = MirroredVQVAE(*parts, vqvae.variance, vqvae.ssim_weight, vqvae.region)
    quantizer.set_weights(vqvae.quantizer.get_weights())
    return copy


@_register
class MirroredQuantizer(EMAVectorQuantizer):
    """An `EMAVectorQuantizer` whose statistics are summed over the devices of a strategy."""

    statistics = None  # of this device's part of the batch, until they are summed

    def add_weight(self, *arguments, **options):
        return super().add_weight(*arguments, aggregation="only_first_replica", **options)

    def update(self, chosen, vector_sums, candidates):
        """Keeps the statistics for `update_together`."""
        self.statistics = chosen, vector_sums, candidates

    def update_together(self):
        """Updates the codebook with the sums over all devices, and the first one's candidates."""
        import tensorflow as tf

        (chosen, vector_sums, candidates), self.statistics = self.statistics, None
        replica = tf.distribute.get_replica_context()
        first = ops.cast(ops.equal(replica.replica_id_in_sync_group, 0), candidates.dtype)
        super().update(*replica.all_reduce("sum", [chosen, vector_sums, first * candidates]))


@_register
class MirroredVQVAE(VQVAE):
    """A `VQVAE` for `MirroredQuantizer`; a strategy adds up the gradients of its devices' losses.

    Devices take turns wherever they wait for a sum, and the list of losses that Keras keeps is one
    for all of them. So the codebook is updated when a device's loss is complete.
    """

    def compute_loss(self, *arguments, **options):
        import tensorflow as tf

        loss = super().compute_loss(*arguments, **options)
        if self.quantizer.statistics:
            self.quantizer.update_together()
        return loss / tf.distribute.get_strategy().num_replicas_in_sync
