"""The one place that imports lm-eval, with what must be set before it is imported.

lm-eval 0.4.13 imports ``datasets`` but neither torch nor transformers on the paths used here, so that
a broken torchaudio (which transformers would import) does no harm.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("DISABLE_MULTIPROC", "1")  # the bootstrap would start a pool of processes

import datasets  # type: ignore[import-untyped]
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml  # (no public loader resolves includes)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

# Its warnings are about data sets from the hub and default fewshot splits: there are none here.
logging.getLogger("lm_eval").setLevel(logging.ERROR)
datasets.disable_progress_bars()

LM_EVAL_VERSION: str = lm_eval.__version__
TASK_FILES = Path(lm_eval.__file__).resolve().parent / "tasks"

__all__ = [
    "LM_EVAL_VERSION",
    "TASK_FILES",
    "ConfigurableTask",
    "Instance",
    "TemplateLM",
    "datasets",
    "evaluate",
    "get_rolling_token_windows",
    "load_yaml",
    "make_disjoint_window",
    "quiet",
]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and notes that lm-eval and transformers print: a run has a line of progress of its own."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
