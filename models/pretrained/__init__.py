"""Published weights: mamba-ssm's and Hugging Face's checkpoints as models of the suite."""

from models.checkpoint import CheckpointError
from models.pretrained.load import load_pretrained

__all__ = ["CheckpointError", "load_pretrained"]
