"""Trains the feature network of the active data set: `python -m tools.features`.

It scores sets of generated slices (`oasis_helpers.set_metrics`), so train it before the weights
that it scores, and do not change it afterwards: `data/features/README.md`.
"""

from __future__ import annotations

import json
from dataclasses import replace

import keras
import numpy as np
from keras import layers

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import SLICES_PER_SUBJECT, SliceSet, shifted_and_mirrored, write_json
from oasis_helpers.pretrained import FEATURES, data_name, load_feature_networks, save_model
from oasis_helpers.set_metrics import (
    CORRUPTIONS,
    INDEX_TOLERANCE,
    FeatureSet,
    between_subjects,
    corrupted,
    feature_layers,
    kid,
    standardised,
)
from tools.score import splits_for

HELD_OUT_CORRUPTION = "half resolution"  # the networks are tested on it, not trained


def train_features() -> dict:
    """Trains and saves the feature network; returns what it shows on validation subjects."""
    name = data_name()
    splits = splits_for(name)
    train, validate = splits["train"], splits["validate"]
    FEATURES.mkdir(parents=True, exist_ok=True)
    save_model(feature_network(train), FEATURES / f"{name}.keras")
    networks = load_feature_networks(name, train)
    facts = {
        "train_subjects": len(np.unique(train.subjects)),
        "validate_subjects": len(np.unique(validate.subjects)),
        "neighbour_index_accuracy": {
            kind: round(neighbour_index_accuracy(network, validate), 4)
            for kind, network in networks.items()
        },
        "sensitivity": {
            kind: sensitivity(network, train, validate) for kind, network in networks.items()
        },
    }
    write_json(FEATURES / f"{name}.json", facts, indent=1)
    return facts


def feature_network(train: SliceSet, epochs: int = 6, seed: int = 0) -> keras.Model:
    """A network whose features encode slice index, subject and corruption of a slice.

    `set_metrics.feature_layers`, trained with three classification heads on training slices: the
    slice index, the subject, and the kind of corruption, which is none for half of them. The heads
    are discarded. Predicting the slice index requires the ventricles, predicting the subject
    requires the folds, and predicting the corruption requires sharpness.

    Args:
        train: real training slices.
        epochs: of training.
        seed: of weights, corruptions and batches.

    Returns:
        A model from float (N, size, size, 1) in [0, 1] to float (N, 64), each feature with mean 0
        and deviation 1 over the training slices.
    """
    keras.utils.set_random_seed(seed)
    network = feature_layers(train.images.shape[1:], seed)
    x = layers.Dropout(0.2)(layers.Activation("relu")(network.output))
    subjects, subject = np.unique(train.subjects, return_inverse=True)
    classes = {
        "slice_index": SLICES_PER_SUBJECT,
        "subject": len(subjects),
        "corruption": len(CORRUPTIONS),
    }
    heads = [
        layers.Dense(count, activation="softmax", name=name)(x) for name, count in classes.items()
    ]
    corruption = np.zeros(4 * len(train), int)  # half of the slices have "none"
    corruption[2 * len(train) :] = np.tile(
        np.random.default_rng(seed).integers(1, len(CORRUPTIONS), len(train)), 2
    )
    kinds = [CORRUPTIONS[kind] for kind in corruption[-len(train) :]]
    moved = replace(train, images=shifted_and_mirrored(train.images, seed))
    images = [train.images, moved.images]
    images += [corrupted(part, kinds, seed) for part in (train, moved)]
    classifier = keras.Model(network.input, heads)
    classifier.compile("adam", ["sparse_categorical_crossentropy"] * len(heads))
    all_slices = np.ones(len(corruption), "float32")
    one_subject = (corruption < CORRUPTIONS.index("two halves")).astype("float32")
    classifier.fit(
        np.concatenate(images),
        [np.tile(train.slices, 4), np.tile(subject, 4), corruption],
        sample_weight=[all_slices, one_subject, all_slices],
        batch_size=64,
        epochs=epochs,
        verbose=0,
    )
    return standardised(network, train)


def neighbour_index_accuracy(network: keras.Model, slices: SliceSet) -> float:
    """The fraction of slices whose nearest slice of another subject has their slice index, +- 3.

    Shows whether the features carry anatomy from one subject to another.
    """
    features = FeatureSet(network.predict(slices.images, verbose=0), slices.subjects)
    nearest = between_subjects(features).argmin(1)
    return float(np.mean(np.abs(slices.slices[nearest] - slices.slices) <= INDEX_TOLERANCE))


def sensitivity(network: keras.Model, train: SliceSet, slices: SliceSet) -> dict[str, float]:
    """KID to training slices, for slices of other subjects with each kind of corruption.

    A corruption that a feature network does not show here, it does not show in samples either.

    Args:
        network: a feature network.
        train: real slices.
        slices: real slices of other subjects, to be corrupted.

    Returns:
        {kind of `CORRUPTIONS`, or `HELD_OUT_CORRUPTION`: KID}; that of "none" is the baseline.
    """
    real = FeatureSet(network.predict(train.images, verbose=0), train.subjects)
    distances = {}
    for kind in (*CORRUPTIONS, HELD_OUT_CORRUPTION):
        if kind == HELD_OUT_CORRUPTION:
            images = slices.images[:, ::2, ::2].repeat(2, 1).repeat(2, 2)
        else:
            images = corrupted(slices, [kind] * len(slices), seed=1)
        others = FeatureSet(network.predict(images, verbose=0), slices.subjects)
        distances[kind] = round(kid(real, others).mean, 3)
    return distances


if __name__ == "__main__":
    ending_with_a_sentence(lambda: print(json.dumps(train_features(), indent=1)))
