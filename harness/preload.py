"""What the forkserver imports before any trial: PyTorch, and what its optimizers import on first use.

Without the second line every trial would spend seconds on imports. Nothing here starts a thread of
PyTorch's or touches CUDA.
"""

import torch
import torch._dynamo

assert not torch.cuda.is_initialized()
