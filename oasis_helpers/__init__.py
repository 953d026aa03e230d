"""Helpers of the course: a VQ-VAE and a PixelCNN that draw new brain slices."""

import logging
import os

# TensorFlow's chatter, at the start and whenever it meets a batch of a new size, would clutter
# every notebook.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)

from oasis_helpers.data import SliceSet, load_slices
from oasis_helpers.sampling import sample_codes
from oasis_helpers.series import load_pretrained

__all__ = ["SliceSet", "load_pretrained", "load_slices", "sample_codes"]
