"""The one place of the models that imports transformers.

transformers imports torchaudio wherever that is installed. torchaudio's compiled extension wants CUDA libraries:
beside a CPU build of torch the import raises OSError, and transformers' models cannot be imported either. What is
used of torchaudio in this suite is pure torch, so a stub stands in for the extension there, and for good. The tasks
have the same few lines for their resampling: neither package may import the other.
"""

import functools
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from models.checkpoint import CheckpointError


@functools.cache
def import_transformers() -> Any:
    """The transformers module. Raises :class:`CheckpointError` where it is not installed."""
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise CheckpointError(f"this checkpoint needs transformers ({error}); pip install transformers") from error
    try:
        import_module("torchaudio")
    except ImportError:
        pass  # then transformers does without it
    except OSError:
        _import_torchaudio_without_extension()
    return transformers


def _import_torchaudio_without_extension() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]  # the failed import left halves behind
    stub = ModuleType("torchaudio._extension")
    stub.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=lambda function: function
    )
    sys.modules["torchaudio._extension"] = stub
    import_module("torchaudio")
