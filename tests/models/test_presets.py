"""Names and what they stand for: sizes of equal parameters, the grammar of mixers and wirings, near misses."""

import subprocess
import sys

import pytest
import torch

from models import MODELS, SequenceModel, build_model, find_factory
from models.attention import Attention
from models.presets import FAMILIES, MIXERS, SIZES, WHOLE_BLOCKS, WIRINGS
from models.wirings import Wiring

GRID = [f"{mixer}.{wiring}" for mixer in MIXERS for wiring in WIRINGS if mixer not in WHOLE_BLOCKS]


def on_meta(name: str, vocab_size: int = 16) -> SequenceModel:
    with torch.device("meta"):
        return find_factory(name)(vocab_size=vocab_size)


def test_shapes_alone_need_no_compiler():
    """PyTorch imports it for random fills of the meta device. In a process that has not done so."""
    code = (
        "import sys, torch\n"
        "from models import build_model, find_factory\n"
        "from models.ops.context import without_data\n"
        "build_model('s4d-tiny', vocab_size=16)\n"
        "with without_data():\n"
        "    model = find_factory('transformer-tiny')(vocab_size=16)\n"
        "assert all(p.is_meta for p in model.parameters())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def params_without_embedding(name: str) -> int:
    model = on_meta(name)
    return model.num_params - 16 * model.d_model


@pytest.mark.parametrize("size", ["tiny", "dna1m", "10m", "25m", "130m", "1.4b"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_a_size_have_equal_parameters(family, size):
    reference = params_without_embedding(f"mamba-{size}")
    assert params_without_embedding(f"{family}-{size}") == pytest.approx(reference, rel=0.05)


@pytest.mark.conformance
@pytest.mark.parametrize("size", ["tiny", "130m"])
@pytest.mark.parametrize("combination", GRID)
def test_any_mixer_in_any_wiring_has_the_parameters_of_its_size(combination, size):
    reference = params_without_embedding(f"mamba-{size}")
    assert params_without_embedding(f"{combination}-{size}") == pytest.approx(reference, rel=0.05)


def test_the_published_mamba_has_its_published_size():
    # Vocabulary of GPT-NeoX, padded to a multiple of 8.
    assert on_meta("mamba-130m", vocab_size=50280).num_params == 129_135_360


def test_a_family_is_its_mixer_and_wiring():
    for family, (mixer, wiring) in FAMILIES.items():
        if family == "hybrid":
            continue
        named, composed = on_meta(f"{family}-tiny"), on_meta(f"{mixer}.{wiring}-tiny")
        assert str(named) == str(composed), family


@pytest.mark.parametrize(("size", "expected"), [("tiny", [1]), ("130m", [7, 15, 23])])
def test_a_hybrid_has_attention_in_every_nth_block(size, expected):
    blocks = on_meta(f"hybrid-{size}").blocks
    assert [i for i, block in enumerate(blocks) if isinstance(block.mixer, Attention)] == expected
    assert all(isinstance(block.mixer, Wiring) for i, block in enumerate(blocks) if i not in expected)


@pytest.mark.parametrize(
    ("name", "per_position", "constant"),
    [
        # Two layers of d_model 64 in float32. Mamba: 128 channels of 16 states and 4 inputs of the convolution.
        ("mamba-tiny", 0, 2 * 4 * 128 * (16 + 4)),
        ("s4d-tiny", 0, 2 * 4 * 64 * 64),
        ("transformer-tiny", 2 * 4 * 2 * 64, 2 * 8),
        ("transformer_window-tiny", 0, 2 * (4 * 2 * 64 * 256 + 8)),
        ("lstm-tiny", 0, 2 * 4 * 2 * 64),
    ],
)
def test_state_bytes_are_what_the_architecture_says(name, per_position, constant):
    model = build_model(name, vocab_size=16)
    for seq_len in (512, 4096):
        assert model.state_bytes(seq_len) == per_position * seq_len + constant
        assert model.describe(seq_len).state_bytes == model.state_bytes(seq_len)


def test_absolute_positions_are_added_once_by_the_model():
    model = build_model("transformer_absolute-tiny", vocab_size=16)
    same = torch.zeros(1, 2, dtype=torch.int64)
    first, second = model.backbone.embed(same)[0]
    assert not torch.equal(first, second)
    # In a wiring too.
    assert on_meta("attention_absolute.h3-tiny").backbone.absolute_positions
    assert not on_meta("transformer-tiny").backbone.absolute_positions


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mamba-tinny", "mamba-tiny"),
        ("s6.h4-tiny", "wirings plain, h3, mamba"),
        ("s7.h3-tiny", "mixers s6,"),
        ("s6.h3-huge", "sizes are tiny, 130m"),
        ("mamba2.h3-tiny", "use mamba2-tiny"),
    ],
)
def test_unknown_names_say_what_there_is(name, hint):
    with pytest.raises(ValueError, match=hint):
        find_factory(name)


def test_every_family_has_every_size():
    for size in SIZES:
        assert on_meta(f"s4d-{size}").num_params > 0
    assert {name.rpartition("-")[2] for name in MODELS} == set(SIZES)


def test_files_without_the_factory_say_what_they_define(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        find_factory(f"{tmp_path}/nothing.py:make")
    (tmp_path / "mine.py").write_text("def build(vocab_size): ...\n")
    with pytest.raises(ValueError, match="it defines build"):
        find_factory(f"{tmp_path}/mine.py:make")


def test_the_dna_models_have_about_the_published_size():
    assert on_meta("mamba-dna1m", vocab_size=5).num_params == pytest.approx(1.4e6, rel=0.01)
    assert len(on_meta("transformer-dna1m").blocks) == 6 and len(on_meta("mamba-dna1m").blocks) == 12
