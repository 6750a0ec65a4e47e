"""Where a checkpoint is: a folder, or a name on the Hugging Face hub, cached or downloaded."""

import re
from pathlib import Path
from typing import Any

from models.checkpoint import CONFIG_FILE, CheckpointError
from models.pretrained.files import INDEX_SUFFIX

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZER = ["tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
_COMMON = [CONFIG_FILE, *_TOKENIZER, "generation_config.json"]
_KINDS = (
    ["*.safetensors", f"*.safetensors{INDEX_SUFFIX}"],
    ["pytorch_model*.bin", f"pytorch_model*.bin{INDEX_SUFFIX}"],
)
ETAG_TIMEOUT_S = 5.0


def find_folder(name_or_folder: str | Path, *, revision: str | None, with_code: bool) -> tuple[Path, str | None]:
    """The checkpoint's folder, and the commit that it is of where it came from the hub.

    What the cache (``HF_HOME``) holds is used without asking the hub; ``revision`` says which commit, branch or tag.
    Weights in safetensors are preferred; pickled ones are downloaded only where there are none.

    Raises :class:`CheckpointError`, naming what was tried, where neither folder, cache nor hub has it.
    """
    if (folder := _local_folder(name_or_folder)) is not None:
        return folder, None
    name = str(name_or_folder)
    code = ["*.py"] if with_code else []
    for kind in _KINDS:
        snapshot = _snapshot(name, revision, [*_COMMON, *code, *kind])
        if any(any(snapshot.glob(pattern)) for pattern in kind):
            break
    return snapshot, snapshot.name


def find_tokenizer_folder(name_or_folder: str | Path, *, with_code: bool) -> Path:
    """The folder of a tokenizer, found as :func:`find_folder` does it; no weights are downloaded."""
    if (folder := _local_folder(name_or_folder)) is not None:
        return folder
    # transformers asks the model's configuration which tokenizer it has, where the tokenizer's own does not say.
    return _snapshot(str(name_or_folder), None, [CONFIG_FILE, *_TOKENIZER, *(["*.py"] if with_code else [])])


def _local_folder(name_or_folder: str | Path) -> Path | None:
    """The folder, or None for a name on the hub. Raises :class:`CheckpointError` for what is neither."""
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; pass the folder that holds it and its {CONFIG_FILE}")
    if not HUB_NAME.fullmatch(str(name_or_folder)):
        raise CheckpointError(
            f"{name_or_folder}: no such folder, and no name on the Hugging Face hub, which is owner/name, such as "
            "state-spaces/mamba-130m"
        )
    return None


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The cache's folder of a revision, downloaded where the cache has no complete one."""
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{name}: no such folder, and huggingface_hub, which would download it, is not installed; "
            "pip install huggingface_hub, or pass a folder"
        ) from error
    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "etag_timeout": ETAG_TIMEOUT_S}
    problem: Exception
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except (OSError, ValueError) as error:
        problem = error
    failures: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *_http_errors())
    if not constants.HF_HUB_OFFLINE:
        try:
            return Path(snapshot_download(name, **options))
        except failures as error:
            problem = error
    at = f" at revision {revision}" if revision else ""
    hub = (
        "HF_HUB_OFFLINE forbids to ask the hub" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} did not give it"
    )
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    raise CheckpointError(
        f"{name}{at}: no such folder, not (complete) in the cache {constants.HF_HUB_CACHE}, and {hub} ({reason}); "
        "download it where there is a network (`hf download " + name + " --local-dir FOLDER`) and pass the folder"
    ) from problem


def _http_errors() -> tuple[type[Exception], ...]:
    """Of the HTTP client that this version of huggingface_hub uses; its errors are no OSError."""
    found: list[type[Exception]] = []
    for module in ("httpx2", "httpx"):
        try:
            found.append(__import__(module).HTTPError)
        except ImportError:
            continue
    return tuple(found)
