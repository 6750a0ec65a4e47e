"""The models of the ``generation`` benchmark: the suite's own, and a plain Transformer of transformers.

Weights are random, since values do not change how long a product takes. A seeded generator on the CPU would need about
22 s for 1.4 billion of them (one EPYC core, scaled from 130 million), so the device draws them: one seed gives one
model on one kind of device, not the same model everywhere.
"""

from typing import Any

import torch

from benchmarks.workloads import DTYPES
from harness import Trial
from models import Model, build_fake_model, find_factory
from models.pretrained.huggingface import HuggingFaceModel
from models.pretrained.transformers_import import import_transformers

GENERATION_VOCAB = 50280
"""The released Mamba's, before padding: what its head costs belongs to generation."""

GPT_NEOX: dict[str, dict[str, int]] = {
    # Pythia-1.4B (Biderman et al., arXiv 2304.01373, table 1; its configuration on the hub).
    "gpt_neox-1.4b": {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "vocab_size": 50304,
    },
    "gpt_neox-tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "vocab_size": 512,
    },
}
ROTARY_SHARE = 0.25


def build_generation_model(trial: Trial) -> Model:
    """The model of a trial, on its device, in its dtype, with random weights of its seed, in evaluation mode.

    Raises ValueError for an unknown name.
    """
    device, dtype = torch.device(trial.device), DTYPES[trial.dtype]
    if trial.model in GPT_NEOX:
        return _gpt_neox(trial, device, dtype)
    with device:
        model = find_factory(trial.model)(vocab_size=GENERATION_VOCAB)
        model.init_weights(torch.Generator(device).manual_seed(trial.seed))
    return model.to(device).cast(dtype).eval()


def build_fake_generation_model(trial: Trial) -> Model:
    """The same shapes without data, for use inside a ``FakeTensorMode``. Raises as :func:`build_generation_model`."""
    dtype = DTYPES[trial.dtype]
    if trial.model in GPT_NEOX:
        return _gpt_neox(trial, torch.device(trial.device), dtype)
    return build_fake_model(trial.model, vocab_size=GENERATION_VOCAB, device=trial.device, dtype=dtype).eval()


def _gpt_neox(trial: Trial, device: torch.device, dtype: torch.dtype) -> HuggingFaceModel:
    """Made in ``dtype`` on ``device`` at once: no wider copy exists at any time."""
    transformers = import_transformers()
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": ROTARY_SHARE}
    config = transformers.GPTNeoXConfig(
        **GPT_NEOX[trial.model],
        max_position_embeddings=max(2048, trial.seq_len + trial.protocol["new_tokens"] + 1),
        rope_parameters=rope,
        use_parallel_residual=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    # transformers draws from the global generators; what they held is put back.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(trial.seed)
        with device:
            network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return HuggingFaceModel(network).eval()
