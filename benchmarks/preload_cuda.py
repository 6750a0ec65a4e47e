"""Imported by the forkserver of a CUDA run: mamba-ssm takes seconds to import, and every trial needs it.

So does Triton's key, which every process would work out before its first kernel: a hash of its library of 400 MB.
Nothing of this starts CUDA; a fork after that could not use the GPU.
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
with contextlib.suppress(ImportError, AttributeError, OSError):
    importlib.import_module("triton.runtime.cache").triton_key()  # it remembers what it returns
assert not torch.cuda.is_initialized()
