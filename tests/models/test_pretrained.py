"""Published checkpoints: what transformers and mamba-ssm write, what comes of it, and what is refused.

Shape suffixes: B batch, L sequence length.
"""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import build_model
from models.checkpoint import CheckpointError, save_checkpoint
from models.ops.context import observing
from models.pretrained import load_pretrained
from models.pretrained.configs import from_mamba_ssm
from models.pretrained.native import build
from models.pretrained.transformers_import import import_transformers

transformers = import_transformers()

VOCAB = 61
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3}
CONFIGS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: transformers.MambaConfig(**SMALL, state_size=8, time_step_rank=5, layer_norm_epsilon=1e-3),
    "mamba-untied": lambda: transformers.MambaConfig(**SMALL, expand=3, tie_word_embeddings=False),
    "mamba2": lambda: transformers.Mamba2Config(**SMALL, num_heads=8, head_dim=8, n_groups=2, state_size=16),
    "mamba2-tied": lambda: transformers.Mamba2Config(
        **SMALL, num_heads=4, head_dim=16, n_groups=1, state_size=8, tie_word_embeddings=True
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, num_attention_heads=4, intermediate_size=48),
    "llama": lambda: transformers.LlamaConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=12, intermediate_size=48
    ),
}
NATIVE = [name for name in CONFIGS if name.startswith("mamba")]
LOADS = [(name, "auto") for name in CONFIGS] + [("mamba", "transformers"), ("mamba2", "transformers")]
loads = pytest.mark.parametrize(("name", "implementation"), LOADS, ids=["-".join(load) for load in LOADS])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def reference(name: str) -> Any:
    """A network of transformers; every parameter is moved, so that none is at a value that would hide it."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.set_rng_state(torch_state)
    return network


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A folder that transformers wrote, and its network, of every configuration."""
    found = {}
    for name in CONFIGS:
        network, folder = reference(name), tmp_path_factory.mktemp(name)
        network.save_pretrained(folder)
        found[name] = (folder, network)
    return found


@pytest.fixture
def mamba_folder(written: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(written["mamba"][0], tmp_path / "mamba")


def tokens(batch: int, seq_len: int, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (batch, seq_len), generator=torch.Generator().manual_seed(1))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path | str, *words: str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


# --------------------------------------------------------------------------------------------------
# What transformers writes


@loads
@torch.no_grad()
def test_logits_are_those_of_transformers(written, name, implementation):
    folder, network = written[name]
    model, facts = load_pretrained(folder, implementation=implementation)
    assert not model.training
    for seq_len in (1, 3, 64, 131, 300):
        ids_BL = tokens(2, seq_len)
        expected = network(ids_BL).logits
        assert expected.std() > 0.1
        assert (model(ids_BL) - expected).abs().max() < 1e-4, seq_len
    assert facts["architecture"] == name.split("-")[0] and facts["format"] == "transformers"
    assert facts["implementation"] == ("native" if name in NATIVE and implementation == "auto" else "transformers")
    assert facts["params"] == model.num_params == network.num_parameters()
    assert facts["vocab_size"] == VOCAB and facts["dtype_on_disk"] == ["float32"]
    assert facts["tie"] == network.config.tie_word_embeddings == (model.lm_head.weight is embedding_of(model))


def embedding_of(model: Any) -> Tensor:
    return model.network.get_input_embeddings().weight if hasattr(model, "network") else model.backbone.embedding.weight


@loads
@torch.no_grad()
def test_prefill_and_steps_equal_the_full_forward(written, name, implementation):
    model, _ = load_pretrained(written[name][0], implementation=implementation)
    ids_BL = tokens(2, 40)
    full = model(ids_BL)
    states = model.init_state(2, 48)
    addresses = [t.data_ptr() for state in states for t in state.values()]
    for prompt in (7, 1, 0):  # the second prompt meets the leftovers of the first
        if prompt:
            assert (model.prefill(ids_BL[:, :prompt], states) - full[:, prompt - 1]).abs().max() < 1e-4
        else:
            states = model.init_state(2, 48)
            addresses = [t.data_ptr() for state in states for t in state.values()]
        for t in range(prompt, 40):
            assert (model.step(ids_BL[:, t], states) - full[:, t]).abs().max() < 1e-4, (prompt, t)
    assert addresses == [t.data_ptr() for state in states for t in state.values()]


@loads
@torch.no_grad()
def test_a_step_reads_no_value(written, name, implementation):
    """What a captured CUDA graph replays cannot wait for one; a fake tensor has none to give."""
    model, _ = load_pretrained(written[name][0], implementation=implementation)
    with FakeTensorMode(allow_non_fake_inputs=True):
        states = model.init_state(2, 8)
        assert model.step(torch.zeros(2, dtype=torch.int64), states).shape == (2, VOCAB)
        if "length" in states[0]:
            with pytest.raises(DataDependentOutputException):
                states[0]["length"].item()


@loads
@torch.no_grad()
def test_a_prompt_reads_no_value(written, name, implementation):
    """A host that asks for one waits for the device, and no prediction can be made of what depends on it."""

    class Forbid(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    model, _ = load_pretrained(written[name][0], implementation=implementation)
    states = model.init_state(2, 24)
    with Forbid():
        logits = model.prefill(tokens(2, 16), states)
    assert (logits - model(tokens(2, 16))[:, -1]).abs().max() < 1e-4


@loads
@torch.no_grad()
def test_state_bytes_are_those_of_the_cache(written, name, implementation):
    folder, network = written[name]
    model, _ = load_pretrained(folder, implementation=implementation)
    held = sum(t.nbytes for state in model.init_state(3, 50) for t in state.values())
    assert model.state_bytes(50, batch=3) == held
    if name in NATIVE:
        cache = network(tokens(3, 50), use_cache=True).cache_params
        theirs = [t for layer in cache.layers for t in (layer.conv_states[0], layer.recurrent_states[0])]
    else:
        cache = transformers.StaticCache(config=network.config, max_cache_len=50)
        network(tokens(3, 9), past_key_values=cache, use_cache=True)
        theirs = [t for layer in cache.layers for t in (layer.keys, layer.values, layer.cumulative_length)]
    assert held == sum(t.nbytes for t in theirs)


@pytest.mark.parametrize(("name", "implementation"), [load for load in LOADS if load[0] in ("gpt_neox", "llama")])
@torch.no_grad()
def test_stated_flops_are_those_that_run(written, name, implementation):
    model, _ = load_pretrained(written[name][0], implementation=implementation)
    with observing() as report, FlopCounterMode(display=False) as counter:
        model(tokens(1, 64))
    # On a CPU PyTorch counts products and no attention.
    assert counter.get_total_flops() + report.forward_flops == model.describe(64).forward_flops


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@torch.no_grad()
def test_stated_flops_of_scans_are_about_those_that_run(written, name):
    model, _ = load_pretrained(written[name][0], implementation="transformers")
    with observing() as report, FlopCounterMode(display=False) as counter:
        model(tokens(1, 256))
    assert counter.get_total_flops() + report.forward_flops == pytest.approx(model.describe(256).forward_flops, rel=0.1)


@torch.no_grad()
def test_a_wrapped_model_reports_itself_and_runs_on_fake_tensors(written):
    model, _ = load_pretrained(written["llama"][0])
    with observing(verify=True) as report:
        model(tokens(2, 100))
    assert report.backends == {"attention": "transformers LlamaForCausalLM, sdpa attention"}
    assert report.errors["attention"] < 1e-5
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = model(torch.zeros(2, 33, dtype=torch.int64))
    assert logits.shape == (2, 33, VOCAB)


def test_a_wrapped_model_says_no_to_what_it_cannot_do(written):
    model, _ = load_pretrained(written["llama"][0])
    with pytest.raises(ValueError, match="not initialised"):
        model.init_weights(torch.Generator())
    with pytest.raises(ValueError, match="raise max_len"):
        model.prefill(tokens(1, 9), model.init_state(1, 8))
    with pytest.raises(ValueError, match="seq_len >= 1"):
        model.hidden(tokens(1, 9)[0])


@loads
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_dtypes(written, name, implementation, dtype):
    folder, network = written[name]
    model, facts = load_pretrained(folder, dtype=dtype, implementation=implementation)
    logits = model(tokens(2, 50))
    assert logits.dtype == dtype and facts["dtype_on_disk"] == ["float32"]
    expected = network(tokens(2, 50)).logits.double()
    assert (logits.double() - expected).norm() / expected.norm() < (5e-2 if dtype == torch.bfloat16 else 1e-5)
    states = model.init_state(2, 60)
    assert torch.allclose(model.prefill(tokens(2, 50), states), logits[:, -1], rtol=5e-2, atol=5e-2)
    assert model.step(tokens(2, 1)[:, 0], states).isfinite().all()


def test_decays_stay_wide_whatever_is_on_disk(mamba_folder):
    weights = {name: t.half() for name, t in load_file(mamba_folder / "model.safetensors").items()}
    save_file(weights, mamba_folder / "model.safetensors")
    model, facts = load_pretrained(mamba_folder, dtype=torch.bfloat16)
    wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {name.rsplit(".", 1)[1] for name in wide} == {"A_log", "D"} and facts["dtype_on_disk"] == ["float16"]


def test_every_weight_is_a_copy(mamba_folder):
    """A mapped file that changes under a loaded model would change the model, or crash it."""
    model, _ = load_pretrained(mamba_folder)
    before = {name: p.clone() for name, p in model.named_parameters()}
    path = mamba_folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", ["mamba", "llama"])
@pytest.mark.parametrize("pickled", [False, True])
@torch.no_grad()
def test_shards(written, tmp_path, name, pickled):
    network = written[name][1]
    network.save_pretrained(tmp_path, max_shard_size="9KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    if pickled:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        for shard in shards:
            torch.save(load_file(shard), tmp_path / f"pytorch_{shard.stem}.bin")
            shard.unlink()
        index["weight_map"] = {k: f"pytorch_{Path(v).stem}.bin" for k, v in index["weight_map"].items()}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (tmp_path / "model.safetensors.index.json").unlink()
    model, facts = load_pretrained(tmp_path)
    assert (model(tokens(2, 20)) - network(tokens(2, 20)).logits).abs().max() < 1e-4
    assert len(facts["files"]) == 1 + len(shards)
    missing = tmp_path / facts["files"][2]["name"]
    missing.unlink()
    refused(tmp_path, missing.name, "missing shard")


@torch.no_grad()
def test_pythias_old_pickles(written, tmp_path):
    """They hold buffers that are computed today, and spell the rotation's settings in another way."""
    network = written["gpt_neox"][1]
    state = dict(network.state_dict())
    for i in range(SMALL["num_hidden_layers"]):
        attention = f"gpt_neox.layers.{i}.attention"
        state[f"{attention}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        state[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        state[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = network.config.to_dict()
    rotation = config.pop("rope_parameters")
    config |= {"rotary_pct": rotation["partial_rotary_factor"], "rotary_emb_base": rotation["rope_theta"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load_pretrained(tmp_path)
    assert (model(tokens(2, 30)) - network(tokens(2, 30)).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "shard.py"])
def test_an_index_does_not_lead_out_of_its_folder(mamba_folder, name):
    (mamba_folder / "model.safetensors").unlink()
    (mamba_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(mamba_folder, repr(name), "index.json")


# --------------------------------------------------------------------------------------------------
# What mamba-ssm writes


def mamba_ssm_config(**changes: Any) -> dict[str, Any]:
    """The fields of mamba-ssm's MambaConfig, with its defaults where the test does not care."""
    return {
        "d_model": 32, "d_intermediate": 0, "n_layer": 3, "vocab_size": VOCAB, "ssm_cfg": {}, "attn_layer_idx": [],
        "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 8, "tie_embeddings": True, **changes,
    }  # fmt: skip


SSM = {
    "mamba": ({"d_state": 8, "dt_rank": 5}, {"state_size": 8, "time_step_rank": 5}),
    "mamba2": (
        {"layer": "Mamba2", "d_state": 16, "headdim": 8, "ngroups": 2},
        {"state_size": 16, "head_dim": 8, "num_heads": 8, "n_groups": 2, "tie_word_embeddings": True},
    ),
}


def write_mamba_ssm(folder: Path, kind: str) -> Any:
    """As ``MambaLMHeadModel.save_pretrained`` does, from a network of transformers of the same shape, returned."""
    ssm_cfg, options = SSM[kind]
    config_class = {"mamba": transformers.MambaConfig, "mamba2": transformers.Mamba2Config}[kind]
    CONFIGS["padded"] = lambda: config_class(**{**SMALL, "vocab_size": 64}, **options)
    network = reference("padded")
    del CONFIGS["padded"]
    state = {k.replace("backbone.embeddings.", "backbone.embedding."): v for k, v in network.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(mamba_ssm_config(ssm_cfg=ssm_cfg), indent=4))
    return network


@pytest.mark.parametrize("kind", list(SSM))
@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors", "no head", "no embedding"])
@torch.no_grad()
def test_mamba_ssm(tmp_path, kind, form):
    network = write_mamba_ssm(tmp_path, kind)
    path = tmp_path / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    if form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        save_file({name: t.clone() for name, t in state.items()}, tmp_path / "model.safetensors")
        path.unlink()
    elif form != "bin":
        del state["lm_head.weight" if form == "no head" else "backbone.embedding.weight"]
        torch.save(state, path)
    model, facts = load_pretrained(tmp_path, hash_files=True)
    ids_BL = tokens(2, 70, vocab=64)
    assert (model(ids_BL) - network(ids_BL).logits).abs().max() < 1e-4
    assert facts["format"] == "mamba-ssm" and facts["architecture"] == kind and facts["tie"]
    assert facts["vocab_size"] == model.vocab_size == 64  # 61, padded to a multiple of 8
    assert facts["params"] == network.num_parameters()
    described = {about["name"]: about for about in facts["files"]}
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert described[file.name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert described[file.name]["bytes"] == len(content)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("mamba", {"attn_layer_idx": [1]}, ["attn_layer_idx=[1]"]),
        ("mamba", {"d_intermediate": 64}, ["d_intermediate=64"]),
        ("mamba", {"rms_norm": False}, ["rms_norm=False", "rms_norm=True"]),
        ("mamba", {"ssm_cfg": {"layer": "Mamba3"}}, ["Mamba3", "Mamba1", "Mamba2"]),
        ("mamba", {"ssm_cfg": {"d_conv": 3}}, ["d_conv=3", "d_conv=4"]),
        ("mamba", {"ssm_cfg": {"surprise": 1}}, ["ssm_cfg.surprise=1", "d_state"]),
        ("mamba", {"ssm_cfg": 3}, ["ssm_cfg=3"]),
        ("mamba", {"d_model": "wide"}, ["d_model='wide'"]),
        ("mamba", {"n_layer": None}, ["no n_layer"]),
        ("mamba", {"tie_embeddings": "yes"}, ["tie_embeddings='yes'"]),
        ("mamba2", {"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, ["norm_before_gate=True"]),
        ("mamba2", {"ssm_cfg": {"layer": "Mamba2", "d_ssm": 32}}, ["d_ssm=32"]),
        ("mamba2", {"ssm_cfg": {"layer": "Mamba2", "headdim": 7}}, ["7"]),
        ("mamba2", {"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.0, 0.1]}}, ["dt_limit=[0.0, 0.1]"]),
        ("mamba", {"vocab_size": 100}, ["(64, 32)", "(104, 32)"]),
        ("mamba", {"n_layer": 2}, ["layers.2", "unexpected"]),
        ("mamba", {"n_layer": 4}, ["layers.3", "missing"]),
        ("mamba2", {"tie_embeddings": False}, ["lm_head.weight is missing"]),
    ],
)
def test_mamba_ssm_that_is_not_supported(tmp_path, kind, changes, words):
    write_mamba_ssm(tmp_path, kind)
    edit_config(tmp_path, **changes)
    if "tie_embeddings" in changes:
        state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        del state["lm_head.weight"]
        torch.save(state, tmp_path / "pytorch_model.bin")
    refused(tmp_path, *words)


def test_a_tie_that_the_weights_deny(tmp_path):
    write_mamba_ssm(tmp_path, "mamba")
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "lm_head.weight differs", "tie_embeddings")
    edit_config(tmp_path, tie_embeddings=False)
    model, facts = load_pretrained(tmp_path)
    assert not facts["tie"] and torch.equal(model.lm_head.weight, model.backbone.embedding.weight + 1)


# --------------------------------------------------------------------------------------------------
# Published sizes

SIZES = {
    "mamba-130m": (768, 24, {}, 8, 129_135_360),
    "mamba-370m": (1024, 48, {}, 8, 371_516_416),
    "mamba-790m": (1536, 48, {}, 8, 793_204_224),
    "mamba-1.4b": (2048, 48, {}, 8, 1_372_178_432),
    "mamba-2.8b": (2560, 64, {}, 8, 2_768_345_600),
    "mamba2-130m": (768, 24, {"layer": "Mamba2"}, 16, None),
    "mamba2-370m": (1024, 48, {"layer": "Mamba2"}, 16, None),
    "mamba2-780m": (1536, 48, {"layer": "Mamba2"}, 16, None),
    "mamba2-1.3b": (2048, 48, {"layer": "Mamba2"}, 16, None),
    "mamba2-2.7b": (2560, 64, {"layer": "Mamba2"}, 16, None),
}


@pytest.mark.parametrize("name", list(SIZES))
def test_published_sizes(name):
    D, num_layers, ssm_cfg, multiple, published = SIZES[name]
    config = mamba_ssm_config(
        d_model=D, n_layer=num_layers, vocab_size=50277, ssm_cfg=ssm_cfg, pad_vocab_size_multiple=multiple
    )
    architecture = from_mamba_ssm(config, Path("config.json"))
    with torch.device("meta"):
        count = build(architecture).num_params
    E, N, R = 2 * D, 16, -(-D // 16)
    if name.startswith("mamba-"):
        vocab = 50280
        mixer = D * 2 * E + (4 * E + E) + E * (R + 2 * N) + (R * E + E) + E * N + E + E * D
        config_class = transformers.MambaConfig
        options: dict[str, Any] = {}
    else:
        vocab, N, H = 50288, 128, E // 64
        channels = E + 2 * N
        mixer = D * (E + channels + H) + (4 * channels + channels) + 3 * H + E + E * D
        config_class = transformers.Mamba2Config
        options = {"num_heads": H, "n_groups": 1, "tie_word_embeddings": True}
    by_hand = vocab * D + num_layers * (mixer + D) + D
    assert count == by_hand and published in (by_hand, None)
    theirs = config_class(vocab_size=vocab, hidden_size=D, num_hidden_layers=num_layers, **options)
    with torch.device("meta"):
        assert count == transformers.AutoModelForCausalLM.from_config(theirs).num_parameters()


# --------------------------------------------------------------------------------------------------
# What is refused


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, protocol, zipped):
    write_mamba_ssm(tmp_path, "mamba")
    target = tmp_path / "pwned"
    bomb = {"backbone.embedding.weight": torch.zeros(2), "bomb": Bomb(target)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(bomb, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    refused(tmp_path, "pytorch_model.bin", "could be code")
    path.write_bytes(pickle.dumps(Bomb(target)))
    refused(tmp_path, "pytorch_model.bin")
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # the bomb is one
    assert target.exists()


def _spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    spoiled = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "garbage": bytes(range(256)) * 40,
        "web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "head cut": content[100:],
    }
    path.write_bytes(spoiled[how])


HOW = {
    "empty": "empty", "truncated": "corrupt", "garbage": "corrupt", "web page": "web page", "pointer": "git lfs pull",
    "head cut": "corrupt",
}  # fmt: skip


@pytest.mark.parametrize("how", list(HOW))
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights(mamba_folder, file, how):
    path = mamba_folder / file
    if file.endswith(".bin"):
        torch.save(load_file(mamba_folder / "model.safetensors"), path)
        (mamba_folder / "model.safetensors").unlink()
        load_pretrained(mamba_folder)
    _spoil(path, how)
    refused(mamba_folder, str(path), HOW[how])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]), ("{}", ["empty configuration"]), ("[1]", ["list"]), ("{'a': 1}", ["not valid JSON"]),
        ("<html>", ["web page"]), ("\xff\xfe", ["not valid JSON"]), ('{"a": 1}', ["mamba-ssm", "transformers"]),
        ('{"model_type": "bert"}', ["'bert'", "gpt_neox, llama, mamba, mamba2"]), ("[" * 100_000, ["not valid JSON"]),
        ('{"model_type": ["mamba"]}', ["['mamba']"]), ('{"model": "mamba-tiny"}', ["mamba-ssm"]),
    ],
)  # fmt: skip
def test_bad_configurations(mamba_folder, content, words):
    (mamba_folder / "config.json").write_bytes(content.encode("latin-1"))
    refused(mamba_folder, "config.json", *words)


@pytest.mark.parametrize("name", ["mamba", "llama"])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "nested"])
def test_weights_that_do_not_fit(written, tmp_path, name, change):
    folder = shutil.copytree(written[name][0], tmp_path / name)
    weights = load_file(folder / "model.safetensors")
    norm = next(key for key in weights if key.endswith("layers.1.norm.weight") or "layers.1.input_layernorm" in key)
    words = [norm]
    if change == "missing":
        del weights[norm]
    elif change == "unexpected":
        weights["stranger"], words = torch.zeros(2), ["stranger", "unexpected"]
    elif change == "shape":
        weights[norm], words = torch.zeros(31), ["31"]
    if change == "nested":
        (folder / "model.safetensors").unlink()
        torch.save({"state_dict": weights}, folder / "pytorch_model.bin")
        words = ["state_dict"]
    else:
        save_file(weights, folder / "model.safetensors")
    refused(folder, *words)


def test_integer_weights_are_refused(mamba_folder):
    weights = {k: t.to(torch.int8) for k, t in load_file(mamba_folder / "model.safetensors").items()}
    save_file(weights, mamba_folder / "model.safetensors")
    refused(mamba_folder, "int8", "quantized")
    edit_config(mamba_folder, quantization_config={"bits": 8})
    refused(mamba_folder, "quantized")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mamba", {"use_bias": True}), ("mamba", {"conv_kernel": 3}), ("mamba", {"hidden_act": "gelu"}),
        ("mamba", {"intermediate_size": 65}), ("mamba2", {"layer_norm_epsilon": 1e-6}),
        ("mamba2", {"time_step_limit": [0.0, 1.0]}), ("mamba2", {"num_heads": 9}),
    ],
)  # fmt: skip
def test_what_only_transformers_can_do(written, tmp_path, name, changes):
    folder = shutil.copytree(written[name][0], tmp_path / name)
    edit_config(folder, **changes)
    ((key, value),) = changes.items()
    refused(folder, f"{key}={value!r}", 'implementation="transformers"')
    if key == "layer_norm_epsilon":
        load_pretrained(folder, implementation="transformers")


def test_implementations_that_do_not_exist(written, tmp_path):
    refused(written["llama"][0], "implementation='native'", implementation="native")
    write_mamba_ssm(tmp_path, "mamba")
    refused(tmp_path, "implementation='transformers'", implementation="transformers")
    with pytest.raises(ValueError, match="auto, native, transformers"):
        load_pretrained(tmp_path, implementation="jax")


@torch.no_grad()
def test_a_checkpoints_own_code_runs_only_where_it_is_trusted(written, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(written["llama"][0], tmp_path / "own")
    (folder / "modeling_own.py").write_text(
        "import os\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"os.mkdir({str(tmp_path / 'ran')!r})\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    references = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_config(folder, model_type="own", auto_map=references)
    refused(folder, "auto_map", "trust_remote_code=True")
    assert not (tmp_path / "ran").exists()
    model, facts = load_pretrained(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists() and facts["architecture"] == "own"
    assert (model(tokens(2, 20)) - written["llama"][1](tokens(2, 20)).logits).abs().max() < 1e-4
    edit_config(folder, auto_map={"AutoConfig": "modeling_own.OwnConfig"})
    refused(folder, "no AutoModelForCausalLM", trust_remote_code=True)


# --------------------------------------------------------------------------------------------------
# Where it is


def test_the_suites_own_checkpoints(tmp_path):
    trained = build_model("mamba-tiny", vocab_size=VOCAB, seed=5)
    save_checkpoint(trained, tmp_path, name="mamba-tiny")
    model, facts = load_pretrained(tmp_path)
    assert torch.equal(model(tokens(2, 20)), trained(tokens(2, 20))) and not model.training
    assert facts["format"] == "seqbench" and facts["architecture"] == "mamba-tiny" and facts["revision"] is None
    assert [about["name"] for about in facts["files"]] == ["config.json", "model.pt"]
    half, _ = load_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.backbone.embedding.weight.dtype == torch.bfloat16
    (tmp_path / "model.pt").write_bytes(b"<html>")
    refused(tmp_path, "model.pt")
    edit_config(tmp_path, model="mambo-tiny")
    refused(tmp_path, "config.json", "mamba-tiny")
    edit_config(tmp_path, model="mamba-tiny", vocab_size="many")
    refused(tmp_path, "config.json", "'many'")


def test_folders_that_are_none(tmp_path, mamba_folder):
    refused(tmp_path, "config.json")
    refused(tmp_path / "nowhere", "no such folder")
    refused("mamba-130m", "state-spaces/mamba-130m")
    refused(mamba_folder / "model.safetensors", "is a file")
    (mamba_folder / "model.safetensors").unlink()
    refused(mamba_folder, "no weights", "model.safetensors", "pytorch_model.bin.index.json")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("pickled", [False, True])
def test_a_name_is_found_in_the_hubs_cache(written, hub_cache, pickled):
    repository = hub_cache / "models--owner--name"
    folder = shutil.copytree(written["mamba"][0], repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    if pickled:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    for revision in (None, "main", COMMIT):
        _, facts = load_pretrained("owner/name", revision=revision)
        assert facts["revision"] == COMMIT and facts["source"] == "owner/name"
    refused("owner/name", "revision other", "pass the folder", revision="other")


def test_an_unreachable_hub(hub_cache, monkeypatch):
    refused("owner/name", "owner/name", str(hub_cache), "HF_HUB_OFFLINE", "hf download", "pass the folder")
    from huggingface_hub import constants

    tried = []

    def fail(name: str, *, local_files_only: bool = False, **options: Any) -> str:
        tried.append(local_files_only)
        raise OSError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    refused("owner/name", "Name or service not known", constants.ENDPOINT, "pass the folder")
    assert tried == [True, False]  # the cache first, and the hub once


def test_transformers_imports_beside_a_cpu_build_and_torchaudio_still_does(written):
    """In a fresh interpreter: the suite's own importer of torchaudio comes after."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from models.pretrained import load_pretrained\n"
        f"load_pretrained({str(written['mamba'][0])!r})\n"
        "assert 'transformers' not in sys.modules\n"
        f"model, _ = load_pretrained({str(written['llama'][0])!r})\n"
        "from tasks.audio.torchaudio_import import import_torchaudio\n"
        "resample = import_torchaudio().functional.resample\n"
        "print(type(model).__name__, tuple(resample(torch.zeros(1, 80), 8, 4).shape))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "HuggingFaceModel (1, 40)"
