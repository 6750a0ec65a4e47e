"""Whole models: parallel against recurrent form, fused against portable blocks, and against other libraries.

Shape suffixes: B batch, L sequence length, V vocabulary.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parity_rows import Row, compared, dtype_name
from models import MODELS, SequenceModel, build_model, family
from models.mamba2 import Mamba2
from models.mamba3 import Mamba3
from models.ops.context import observing
from models.pretrained import load_pretrained
from models.pretrained.transformers_import import import_transformers
from models.wirings import Mamba

VOCAB = 64
LENGTH, PROMPT = 300, 200
FUSED = ("mamba", "mamba2")
TF32_LOGITS = 5e-4
# Its operator keeps angles in bfloat16; gradients of decays are differences of sums of numbers rounded to it.
MAMBA3_TOLERANCE = {"output": 2e-2, "ddt_bias": 1e-1}
# Float32 on a GPU is not float32 everywhere: mamba-ssm's Triton state space dual (Mamba-2 and -3, linear attention,
# RetNet) multiplies in TF32, and so does cuDNN's LSTM by PyTorch's default. Hyena's sines amplify what is left of
# rounding.
GPU_TOLERANCE = dict.fromkeys(("mamba2", "mamba3", "linear_attention", "retnet", "lstm", "hyena"), 1e-3)


def _tiny_models() -> list[str]:
    return [name for name in MODELS if name.endswith("-tiny")]


def _ids(batch: int, seq_len: int, device: torch.device, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (batch, seq_len), generator=torch.Generator().manual_seed(0)).to(device)


@torch.no_grad()
def recurrent_forms(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """Prefill of 200 and 100 steps against one forward pass, float64; convolution, attention and scan alike."""
    del lengths
    for name in _tiny_models():
        model = build_model(name, vocab_size=VOCAB, device=str(device), dtype=torch.float64)
        ids_BL = _ids(2, LENGTH, device)
        states = model.init_state(2, LENGTH)
        stepped = [model.prefill(ids_BL[:, :PROMPT], states)]
        stepped += [model.step(ids_BL[:, t], states) for t in range(PROMPT, LENGTH)]
        wanted_BLV = model(ids_BL)[:, PROMPT - 1 :]
        yield from compared(
            f"{name}, prefill and steps", "its parallel form", {"logits": (torch.stack(stepped, 1), wanted_BLV)},
            seq_len=LENGTH, tolerance=1e-9,
        )  # fmt: skip


def fused_blocks(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """A block with mamba-ssm's fused kernel against the portable one: output and all gradients, float32."""
    for name in FUSED:
        for seq_len in (n for n in lengths if n <= 2**16):
            pairs, _ = _fused_and_portable(name, seq_len, device, torch.float32)
            # TF32 is off; what is left are float32 sums over the length in another order.
            yield from compared(f"{name} fused block", "portable block", pairs, seq_len=seq_len, tolerance=1e-3)


def fused_mamba3(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """The same of Mamba-3 in bfloat16, the only dtype of its operator, against the portable block in float32."""
    for seq_len in (n for n in lengths if n <= 2**16):
        pairs, backends = _fused_and_portable("mamba3", seq_len, device, torch.bfloat16)
        if not (backend := backends["mamba3_block"]).startswith("mamba-ssm"):
            print(f"fused-mamba3: nothing to compare, it ran {backend}", file=sys.stderr)
            return
        for quantity, pair in pairs.items():
            yield from compared(
                "mamba3 fused block", "portable block in float32", {quantity: pair},
                seq_len=seq_len, tolerance=MAMBA3_TOLERANCE.get(quantity, 5e-2),
            )  # fmt: skip


def _fused_and_portable(
    name: str, seq_len: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """The first block's output and all gradients: as it runs, and as the portable form in float32; and what ran."""
    model = build_model(f"{name}-130m", vocab_size=VOCAB, device=str(device), dtype=dtype)
    assert isinstance(model, SequenceModel)
    fused = model.blocks[0].mixer
    assert isinstance(fused, Mamba | Mamba2 | Mamba3)
    portable = copy.deepcopy(fused).float()
    portable.fused = False
    generator = torch.Generator(device).manual_seed(seq_len)
    x_BLD, gradient = torch.randn(2, 1, seq_len, model.d_model, generator=generator, device=device).to(dtype)
    results = []
    for block, kind in ((fused, dtype), (portable, torch.float32)):
        leaf = x_BLD.detach().to(kind, copy=True).requires_grad_()
        with observing() as report:
            output = block(leaf)
        output.backward(gradient.to(kind))
        results.append(({"output": output.detach(), "dx": leaf.grad}, report.backends))
        results[-1][0].update({f"d{n}": p.grad for n, p in block.named_parameters()})
    (actual, backends), (wanted, _) = results
    return {quantity: (actual[quantity], wanted[quantity]) for quantity in actual}, backends


@torch.no_grad()
def captured_steps(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """A step replayed from a CUDA graph against the same step run eagerly, float32."""
    del lengths
    for name in _tiny_models():
        model = build_model(name, vocab_size=VOCAB, device=str(device))
        ids_BL = _ids(2, LENGTH, device)
        eager, captured = (model.init_state(2, LENGTH) for _ in range(2))
        for states in (eager, captured):
            model.prefill(ids_BL[:, :PROMPT], states)
        wanted = [model.step(ids_BL[:, t], eager) for t in range(PROMPT, PROMPT + 20)]
        before = [{key: tensor.clone() for key, tensor in state.items()} for state in captured]
        token_B = ids_BL[:, PROMPT].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm-up, as capturing asks for
            for _ in range(3):
                model.step(token_B, captured)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits_BV = model.step(token_B, captured)
        for state, saved in zip(captured, before, strict=True):
            for key, tensor in state.items():
                tensor.copy_(saved[key])
        replayed = []
        for t in range(PROMPT, PROMPT + 20):
            token_B.copy_(ids_BL[:, t])
            graph.replay()
            replayed.append(logits_BV.clone())
        yield from compared(
            f"{name}, step in a CUDA graph", "eager step", {"logits": (torch.stack(replayed), torch.stack(wanted))},
            seq_len=PROMPT + 20, tolerance=1e-5,
        )  # fmt: skip


@torch.no_grad()
def devices(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """The same weights on the GPU, with the kernels that run there, against the CPU's; float32."""
    for name in _tiny_models():
        reference = build_model(name, vocab_size=VOCAB)
        model = build_model(name, vocab_size=VOCAB, device=str(device))
        seq_len = min(2048, max(lengths))
        ids_BL = _ids(2, seq_len, torch.device("cpu"))
        pairs = {"logits": (model(ids_BL.to(device)).cpu(), reference(ids_BL))}
        tolerance = GPU_TOLERANCE.get(family(name), 1e-4)
        yield from compared(f"{name} on {device.type}", "on the CPU", pairs, seq_len=seq_len, tolerance=tolerance)


@torch.no_grad()
def transformers_models(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """Checkpoints that transformers writes, read by us: the largest difference of a logit."""
    del lengths
    transformers = import_transformers()
    small = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2}
    configs = [
        transformers.MambaConfig(**small, state_size=16),
        transformers.Mamba2Config(**small, state_size=32, num_heads=8, head_dim=16, n_groups=1, chunk_size=64),
        transformers.GPTNeoXConfig(**small, num_attention_heads=4, intermediate_size=128),
        transformers.LlamaConfig(**small, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128),
    ]
    for config in configs:
        torch.manual_seed(0)
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours, facts = load_pretrained(folder, device=str(device))
        theirs.to(device)
        for seq_len in (1, 100, 257):
            ids_BL = _ids(2, seq_len, device)
            yield _largest(
                f"{config.model_type} ({facts['implementation']})", "transformers", ours(ids_BL),
                theirs(ids_BL).logits, seq_len, tf32=device.type == "cuda" and config.model_type == "mamba2",
            )  # fmt: skip


@torch.no_grad()
def mamba_ssm_models(device: torch.device, lengths: Sequence[int]) -> Iterator[Row]:
    """Checkpoints that mamba-ssm writes, at the published 130M shape, read by us: the largest difference of a logit."""
    del lengths
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    for label, layer in (("mamba-130m", {}), ("mamba2-130m", {"layer": "Mamba2"})):
        multiple = 16 if layer else 8
        config = MambaConfig(d_model=768, n_layer=24, vocab_size=50277, ssm_cfg=layer, pad_vocab_size_multiple=multiple)
        torch.manual_seed(0)
        theirs = MambaLMHeadModel(config, device=device, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).mkdir(exist_ok=True)
            theirs.save_pretrained(folder)
            ours, _ = load_pretrained(folder, device=str(device))
        for seq_len in (100, 2048):
            ids_BL = _ids(1, seq_len, device, vocab=50277)
            yield _largest(
                f"{label} checkpoint", "mamba-ssm", ours(ids_BL), theirs(ids_BL).logits, seq_len, tf32=bool(layer)
            )
        del theirs, ours


def _largest(subject: str, reference: str, actual: Tensor, wanted: Tensor, seq_len: int, *, tf32: bool = False) -> Row:
    return Row(
        subject=subject,
        reference=reference,
        quantity="logits, largest difference",
        seq_len=seq_len,
        dtype=dtype_name(actual.dtype),
        error=float((actual - wanted).abs().max()),
        tolerance=TF32_LOGITS if tf32 else 1e-4,
    )
