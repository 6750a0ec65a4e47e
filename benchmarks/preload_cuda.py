"""Imported by the forkserver of a CUDA run: mamba-ssm takes seconds to import, and every trial needs it.

Importing it does not start CUDA; a fork after that could not use the GPU.
"""

import contextlib
import importlib

import torch

from models.ops import autotuning
from models.wirings import import_fused_block

import_fused_block()
for module in ("ssd_combined", "mamba3.mamba3_siso_combined"):  # their choices are taken over where they are imported
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module(f"{autotuning.PACKAGE}.{module}")
assert not torch.cuda.is_initialized()
