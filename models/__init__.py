"""What is compared: sequence models with one interface. See ``models.base`` for it."""

from models.base import Mixer
from models.model import Description, Model, SequenceModel
from models.registry import MODELS, build_fake_model, build_model, family, find_factory, model_names

__all__ = [
    "MODELS",
    "Description",
    "Mixer",
    "Model",
    "SequenceModel",
    "build_fake_model",
    "build_model",
    "family",
    "find_factory",
    "model_names",
]
