"""Weights of mamba-ssm, and of transformers' Mamba and Mamba-2, in the suite's own models.

Their parameters have the same names and shapes; only S6's own lie one level deeper here (``mixer.inner.``), and
transformers calls the embedding ``embeddings``.
"""

from pathlib import Path

import torch
from torch import Tensor

from models.base import Mixer
from models.checkpoint import CheckpointError
from models.mamba2 import Mamba2
from models.model import SequenceModel
from models.ops.context import without_data
from models.pretrained.configs import Architecture
from models.pretrained.files import check_keys
from models.s6 import S6
from models.wirings import Mamba

EMBEDDING, HEAD = "backbone.embedding.weight", "lm_head.weight"


def build(architecture: Architecture) -> SequenceModel:
    """The model of an architecture, uninitialised; on the meta device where called within it."""
    a = architecture
    return SequenceModel(
        vocab_size=a.vocab_size,
        d_model=a.d_model,
        mixers=[_mixer(a) for _ in range(a.num_layers)],
        tie_embeddings=a.tie,
        norm_eps=a.norm_eps,
    )


def _mixer(a: Architecture) -> Mixer:
    if a.kind == "mamba2":
        return Mamba2(a.d_model, d_state=a.d_state, expand=a.expand, head_dim=a.head_dim, num_groups=a.num_groups)
    d_inner = a.expand * a.d_model
    return Mamba(a.d_model, S6(d_inner, d_state=a.d_state, dt_rank=a.dt_rank), d_inner=d_inner)


def load_native(
    architecture: Architecture, weights: dict[str, Tensor], where: Path, *, device: torch.device, dtype: torch.dtype
) -> SequenceModel:
    """The model with these weights, which are taken out of ``weights`` one by one as they are copied.

    Args:
        weights: by the names of mamba-ssm or of transformers.
        where: the file that messages name.

    Raises :class:`CheckpointError` for names and shapes that do not fit the architecture.
    """
    try:
        with without_data():
            model = build(architecture).cast(dtype)
    except ValueError as error:
        raise CheckpointError(f"{where.parent}: {error}") from error
    for name in [name for name in weights if name.startswith("backbone.embeddings.")]:
        weights[name.replace("embeddings", "embedding", 1)] = weights.pop(name)
    if architecture.tie:
        _untie(weights, where)
    # By the names in the file, so that a message names what is there.
    expected = model.state_dict()
    if architecture.tie:
        del expected[HEAD]
    targets = {name.replace(".mixer.inner.", ".mixer."): name for name in expected}
    check_keys(set(weights), set(targets), where)
    own: dict[str, Tensor] = {}
    for name, target in targets.items():
        own[target] = _copied(weights.pop(name), expected[target], name, where, device)
    model.load_state_dict(own if not architecture.tie else {**own, HEAD: own[EMBEDDING]}, assign=True)
    if architecture.tie:  # what is assigned are parameters of their own
        model.lm_head.weight = model.backbone.embedding.weight
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    return model.eval()


def _untie(weights: dict[str, Tensor], where: Path) -> None:
    """A tied head may have been saved twice, or under either of its names: afterwards, as the embedding alone."""
    head = weights.pop(HEAD, None)
    if head is not None and not torch.equal(head, weights.setdefault(EMBEDDING, head)):
        raise CheckpointError(
            f"{where}: {HEAD} differs from {EMBEDDING}, but the configuration ties them; "
            "set tie_embeddings (transformers: tie_word_embeddings) to false in config.json"
        )


def _copied(source: Tensor, target: Tensor, name: str, where: Path, device: torch.device) -> Tensor:
    if source.shape != target.shape:
        raise CheckpointError(
            f"{where}: {name} has shape {tuple(source.shape)}, but the configuration asks for {tuple(target.shape)}; "
            "check that config.json and weights come from one place"
        )
    if not source.dtype.is_floating_point:
        raise CheckpointError(
            f"{where}: {name} is of type {str(source.dtype).removeprefix('torch.')}; "
            "quantized weights are not supported"
        )
    # A copy even where the type fits: the original may be a view of the file, which can change.
    return source.detach().to(device=device, dtype=target.dtype, copy=True)
