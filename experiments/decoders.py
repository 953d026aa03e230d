"""Does a decoder need an adversary to become sharp?

One reconstruction-trained decoder is fine-tuned in three ways, for the same number of steps and
with the same codes: with its own loss; with a perceptual loss as well, the distance between the
features of original and decoded in a fixed network (Johnson et al. 2016, arXiv 1603.08155), here
the feature network that scores sets of slices; and against a discriminator. They are scored on
*validation* subjects.
"""

from collections.abc import Iterator
from pathlib import Path

import keras

from experiments.variants import ResultsCache, StopAfter
from oasis_helpers import metrics, pretrained, training
from oasis_helpers.adversarial import AdversarialDecoder, patch_discriminator
from oasis_helpers.data import with_mirrored

VARIANTS = {  # weights of `AdversarialDecoder`
    "reconstruction loss": {"adversarial_weight": 0.0, "feature_weight": 0.0},
    "perceptual loss": {"adversarial_weight": 0.0, "feature_weight": 1.0},
    "discriminator": {},
}
STEPS, BATCH_SIZE, LEARNING_RATE = 400, 32, 1e-3


def measure(root: str | Path, file: Path, weights: str, steps: int = STEPS) -> Iterator[dict]:
    """Fine-tunes the decoder of some weights in three ways.

    Yields:
        {"name", "steps", "seconds", "scores": as `metrics.reconstruction_table`}.
    """
    models, cache = pretrained.load_pretrained(weights), ResultsCache(file)
    train, validate = (models.load_slices(root, split) for split in ("train", "validate"))
    images = with_mirrored(train.images)
    codes = models.vqvae.encode(images)
    network = pretrained.load_feature_networks(models.scores["data"], train)["trained"]

    def trained(name: str) -> dict:
        keras.utils.set_random_seed(0)
        vqvae = pretrained.load_pretrained(weights).vqvae
        if name == "perceptual loss":
            discriminator = fixed_discriminator(network)
        else:
            discriminator = patch_discriminator(vqvae.size, vqvae.region)
        model, stop = AdversarialDecoder(vqvae, discriminator, **VARIANTS[name]), StopAfter(steps)
        rate = training.learning_rate(LEARNING_RATE, steps)
        model.compile(keras.optimizers.Adam(rate, beta_1=0.5))
        epochs = -(-steps * BATCH_SIZE // len(images))
        model.fit(codes, images, BATCH_SIZE, epochs, verbose=0, callbacks=[stop])
        facts = {"name": name, "steps": steps, "seconds": round(stop.ended[-1])}
        return facts | {"scores": metrics.reconstruction_table(vqvae, validate)}

    for name in VARIANTS:
        yield cache.get_or_compute("decoders", name, trained, name)


def fixed_discriminator(network: keras.Model) -> keras.Model:
    """The first three convolutions of a feature network, as a discriminator that is never trained.

    Its score means nothing; `AdversarialDecoder` expects one.
    """
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    features = [layer.output for layer in convolutions[:3]]
    score = keras.ops.mean(features[-1], axis=-1, keepdims=True)
    discriminator = keras.Model(network.input, [*features, score])
    discriminator.trainable = False
    return discriminator
