"""The one place that imports torchaudio.

torchaudio 2.11's compiled extension wants CUDA libraries: beside a CPU build of torch the import
raises OSError. Resampling, mu-law and the transforms are pure torch, so a stub stands in for the
extension there.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from tasks.base import TaskError


def import_torchaudio() -> Any:
    """The torchaudio module. Raises :class:`TaskError` where it is not installed."""
    try:
        return import_module("torchaudio")
    except OSError:
        return _import_without_extension()
    except ImportError as error:
        raise TaskError(f"resampling needs torchaudio ({error}); pip install torchaudio") from error


def _import_without_extension() -> ModuleType:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]  # the failed import left halves behind
    stub = ModuleType("torchaudio._extension")
    stub.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=lambda function: function
    )
    sys.modules["torchaudio._extension"] = stub
    return import_module("torchaudio")
