"""Checkpoints as transformers and mamba-ssm write them, made here: what two evaluations are compared on."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evaluation.lm_harness import quiet
from models.pretrained.transformers_import import import_transformers
from tasks.language import embedded

END_OF_TEXT = "<|endoftext|>"
VOCAB = 512
ARCHITECTURES = ("gpt_neox", "llama", "mamba")
SIZES = {"tiny": {"hidden_size": 64, "num_hidden_layers": 2}, "base": {"hidden_size": 768, "num_hidden_layers": 12}}
HEAD_DIM = 32
MAX_POSITIONS = 512
SPREAD = 0.05
"""Added to every parameter of a random model, so that none is at a value that would hide it."""
_BATCH, _LENGTH, _LEARNING_RATE = 8, 64, 3e-3


def embedded_text() -> str:
    """The training text that every Python brings along."""
    found = {document.group: document.tokens for document in embedded.documents()}
    return np.asarray(found["topics (train)"]).tobytes().decode()


def make_tokenizer(texts: Iterable[str], *, vocab_size: int = VOCAB, adds_bos: bool = False) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``, as a tokenizer of transformers.

    Args:
        adds_bos: whether it puts a begin-of-text token in front of every text, as Llama's does.
    """
    transformers = import_transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    begin = "<s>" if adds_bos else END_OF_TEXT
    special = list(dict.fromkeys([END_OF_TEXT, begin]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=END_OF_TEXT)


def make_network(architecture: str, tokenizer: Any, *, size: str = "tiny", seed: int = 0) -> Any:
    """A causal language model of transformers with random weights."""
    transformers = import_transformers()
    shape = SIZES[size]
    heads = shape["hidden_size"] // HEAD_DIM
    attention = {
        "num_attention_heads": heads,
        "intermediate_size": 4 * shape["hidden_size"],
        "max_position_embeddings": MAX_POSITIONS,
    }
    makers = {
        "gpt_neox": lambda common: transformers.GPTNeoXConfig(**common, **attention),
        "llama": lambda common: transformers.LlamaConfig(**common, **attention, num_key_value_heads=heads // 2),
        "mamba": lambda common: transformers.MambaConfig(**common, state_size=16),
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # transformers draws from the global generator; what it held is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Rounded up, as published vocabularies are.
        config = makers[architecture]({"vocab_size": -(-len(tokenizer) // 64) * 64, **shape, **ends})
        network = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(SPREAD * torch.randn_like(parameter))
    return network


def train(network: Any, tokenizer: Any, texts: Sequence[str], *, steps: int, seed: int = 0) -> float:
    """Next-token training on windows of the joined texts; returns the last step's loss in nats."""
    ids = torch.tensor(tokenizer.encode(END_OF_TEXT.join(texts), add_special_tokens=False, verbose=False))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE)
    network.train()
    loss = torch.tensor(torch.inf)
    for _ in range(steps):
        starts = torch.randint(len(ids) - _LENGTH, (_BATCH,), generator=generator)
        batch_BL = torch.stack([ids[start : start + _LENGTH] for start in starts])
        loss = network(batch_BL, labels=batch_BL).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    return float(loss.detach())


def save_as_transformers(network: Any, tokenizer: Any, folder: Path) -> Path:
    """A folder that transformers reads; returned."""
    with quiet():
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def save_as_mamba_ssm(network: Any, folder: Path) -> Path:
    """A Mamba of transformers as mamba-ssm's ``save_pretrained`` writes one, without a tokenizer; the folder."""
    c = network.config
    config = {
        "d_model": c.hidden_size,
        "d_intermediate": 0,
        "n_layer": c.num_hidden_layers,
        "vocab_size": c.vocab_size,
        "ssm_cfg": {"d_state": c.state_size, "dt_rank": c.time_step_rank},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        "tie_embeddings": c.tie_word_embeddings,
    }
    weights = {k.replace("backbone.embeddings.", "backbone.embedding."): v for k, v in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    return folder
