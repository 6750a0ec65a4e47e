"""Imported by the forkserver of a CUDA run: mamba-ssm takes seconds to import, and every trial needs it.

Importing it does not start CUDA; a fork after that could not use the GPU.
"""

import torch

from models.wirings import import_fused_block

import_fused_block()
assert not torch.cuda.is_initialized()
