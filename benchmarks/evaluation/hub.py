"""A task's items from the Hugging Face hub, where downloads are allowed."""

from dataclasses import dataclass

from benchmarks.evaluation.catalogue import ZERO_SHOT
from benchmarks.evaluation.lines import Document


class HubError(Exception):
    """The hub did not deliver. The caller goes on with the next source and says so."""


@dataclass(frozen=True, kw_only=True)
class HubItems:
    name: str
    """Data set, configuration and split."""
    documents: tuple[Document, ...]


def hub_items(task: str) -> HubItems:
    """The items that lm-eval's own task would ask, from the data set that it names.

    Raises:
        HubError: no network, or no such data set there.
    """
    from benchmarks.evaluation.lm_harness import TASK_FILES, datasets, load_yaml

    wanted = ZERO_SHOT[task]
    config = load_yaml(TASK_FILES / wanted.yaml)
    path, subset = config["dataset_path"], config.get("dataset_name")
    split = config.get("test_split") or config["validation_split"]
    name = " ".join(part for part in (path, subset, split) if part)
    try:
        rows = datasets.load_dataset(path, subset, split=split)
    # The libraries below raise their own kinds of ConnectionError (an OSError), FileNotFoundError and ValueError.
    except (OSError, ValueError, RuntimeError) as error:
        raise HubError(f"the hub gave no {name}: {' '.join(str(error).split())[:200]}") from error
    return HubItems(name=f"{name} (hub)", documents=tuple(dict(row) for row in rows))
