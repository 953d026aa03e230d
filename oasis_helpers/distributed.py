"""Beyond one laptop: slices streamed from the disk, larger sizes, and each worker's part.

Keras's `fit` trains with several workers under `keras.distribution.DataParallel` on the JAX
backend; `tools/train_together.py` is the command, `tools/mirrored.py` serves `tf.distribute`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oasis_helpers import data, sampling
from oasis_helpers.pixelcnn import Prior
from oasis_helpers.recipes import WHOLE_FRAME, Recipe, Schedule


def sample_shard(prior: Prior, n: int, shard: tuple[int, int], slice_index=None, seed: int = 0):
    """One worker's part, int32 (about n / workers, h, w), of what `sample_codes` returns.

    `shard` is (rank, workers), as for `training.Batches`.
    """
    rank, workers = shard
    state = sampling.initial_state(prior, n, slice_index, None, seed)
    codes, uniform, *inputs = (np.array_split(part, workers)[rank] for part in state)
    sampling.fill(codes, uniform, sampling.start(prior, inputs))
    return codes.reshape(-1, *prior.grid)


@dataclass(frozen=True)
class SliceStream:
    """The slices of one split, left on the disk and read a batch at a time.

    Attributes:
        paths: the files, sorted by subject and slice index.
        subjects, slices: int32 (N,), as in `SliceSet`.
        size, crop: the frame that `read` returns.
    """

    paths: tuple[Path, ...]
    subjects: np.ndarray
    slices: np.ndarray
    size: int
    crop: data.Box | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices) -> np.ndarray:
        """Slices of these indices, float32 (n, size, size, 1) in [0, 1]; or SliceDataError."""
        paths = [self.paths[index] for index in indices]
        return data.read_images(paths, self.size, self.crop).astype("float32")[..., None] / 255


def stream_slices(
    root: str | Path, split: str, size: int = 80, crop: str | data.Box | None = None
) -> SliceStream:
    """Finds the slices of one split without reading them; arguments as for `load_slices`."""
    files = data.checked_files(root, split)
    keys = np.array(list(files), dtype="int32")
    box = data.brain_box(root) if crop == "brain" else crop
    return SliceStream(tuple(files.values()), keys[:, 0], keys[:, 1], size, box)


# The whole frame, and the part of it that holds brain, at three sizes. Twice the size with one more
# stage is the same grid of codes: a code for 16 x 16 pixels instead of 8 x 8. Without that stage
# there are four times as many codes and bits.
_PRIOR = {"filters": 64, "dropout": 0.15, "condition_dropout": 0.1}
_EIGHTHS = {"patch": (4, 4), "merge": (2, 2)}
SIZES = {
    name: Recipe(
        "oasis1", size, vqvae=networks, prior=_PRIOR, prior_schedule=Schedule(2000, 64, 2e-3)
    )
    for name, size, networks in (
        ("80", 80, WHOLE_FRAME),
        ("128", 128, {"region": (16, 24, 96, 80), **_EIGHTHS}),
        ("256", 256, {"region": (32, 48, 192, 160), "widths": (32, 64, 128), **_EIGHTHS}),
        ("256, fine", 256, {"region": (32, 48, 192, 160), **_EIGHTHS}),
    )
}
