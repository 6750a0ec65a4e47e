"""One recurrent step after a prompt."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.pieces import measure, micro_trial
from benchmarks.workloads import SPEED_VOCAB
from models import build_model
from models.ops.context import observing

MODELS = ["mamba-tiny", "mamba2-tiny", "transformer-tiny", "s4d-tiny"]
PROMPT = 512


@pytest.mark.parametrize("model_name", MODELS)
def test_step(benchmark: BenchmarkFixture, model_name: str) -> None:
    """Every call continues from the same state, so that attention's cache does not grow between rounds."""
    trial = micro_trial(model_name, seq_len=PROMPT, protocol={"call": "step"})
    model = build_model(model_name, vocab_size=SPEED_VOCAB)
    ids_BL = torch.randint(SPEED_VOCAB, (1, PROMPT), generator=torch.Generator().manual_seed(trial.seed))
    with torch.no_grad(), observing() as kernels:
        states = model.init_state(1, PROMPT + 1)
        model.prefill(ids_BL, states)
        before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]

        def step() -> None:
            for state, saved in zip(states, before, strict=True):
                for name, tensor in saved.items():
                    state[name].copy_(tensor)
            model.step(ids_BL[:, -1], states)

        measure(benchmark, trial, step, kernels.backends)
