"""Float32 GGUF files in llama.cpp itself against transformers, for every described architecture.

ggml computes GELU through a table of float16 values; given the same, transformers agrees to a few 1e-3 on
every architecture that uses it, and to 2e-5 on all others.  So what is left is the runtime's, not the file's.
"""

import copy
import math

import numpy as np
import pytest
import tiny
from peers import llama_runtime
from pump import quantized
from test_gguf_round_trip import export

from gpt54_convert import loaders
from gpt54_convert.exporters import gguf

pytestmark = pytest.mark.llama_cpp
pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")

CASES = [
    *((variant, {}) for variant in tiny.GGUF),
    ("gpt54", {"feed_forward_proj": "relu"}),
    ("gpt54-tied", {"feed_forward_proj": "relu"}),
    ("gpt54", {"d_kv": 80, "num_heads": 2, "num_layers": 4, "num_decoder_layers": 1}),
    ("gemma3", {"layer_types": ["full_attention", "sliding_attention"] * 3 + ["full_attention"]}),
    ("gpt2", {"n_inner": 100}),
    ("qwen3", {"rope_parameters": tiny._YARN}),
]


class TableGelu(torch.nn.Module):
    """ggml's GELU: its argument and its value rounded to float16."""

    def forward(self, x):
        half = x.half().float()
        inner = math.sqrt(2 / math.pi) * half * (1 + 0.044715 * half * half)
        table = (0.5 * half * (1 + torch.tanh(inner))).half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, table))


def as_ggml_computes(model):
    """A copy of the model with ggml's GELU, and whether it has one at all."""
    model, found = copy.deepcopy(model), False
    for module in model.modules():
        for name in ("act", "act_fn", "intermediate_act_fn"):
            activation = getattr(module, name, None)
            if activation is not None and "gelu" in f"{type(activation)} {activation}".lower():
                setattr(module, name, TableGelu())
                found = True
    return model, found


def both(variant, model, path, length=40):
    """Logits (hidden states of an encoder) in transformers and in llama.cpp, [time, width]."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, model.config.vocab_size - 1, length).tolist()
    tensor = torch.tensor([ids])
    with torch.no_grad():
        if variant.startswith("gpt54"):
            short = ids[: length // 2]
            reference = model(tensor, decoder_input_ids=tensor[:, : len(short)])[0]
            return reference[0].numpy(), llama_runtime.seq2seq_logits(path, ids, short)
        if variant.startswith("bert"):
            reference = getattr(model, "bert", model)(tensor)[0]
            return reference[0].numpy(), llama_runtime.hidden(path, ids)
        return model(tensor)[0][0].numpy(), llama_runtime.logits(path, ids)


@pytest.mark.parametrize(("variant", "changes"), CASES, ids=str)
def test_llama_cpp_computes_the_same(variant, changes, tmp_path):
    model, folder = tiny.make(variant, **changes)
    path = export(loaders.load(folder), tmp_path)[0]
    model, gelu = as_ggml_computes(model)
    reference, found = both(variant, model, path)
    assert reference.std() > 0.2
    assert np.abs(reference - found).max() < (5e-3 if gelu else 2e-5)


@pytest.mark.parametrize("variant", ["llama", "gpt54"])
def test_llama_cpp_loads_shards(variant, tmp_path):
    model, folder = tiny.make(variant)
    files = export(loaders.load(folder), tmp_path, shard_bytes=100_000)
    reference, found = both(variant, as_ggml_computes(model)[0], sorted(files)[0])
    assert np.abs(reference - found).max() < 5e-3


WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
QUANTIZED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "int4-g32", "int8-g32"]
QUANTIZED += ["iq4_nl", "mxfp4", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"]


@pytest.mark.parametrize("grid", QUANTIZED)
def test_quantized_llama(grid, tmp_path):
    """Against the dequantized weights in transformers.

    What differs is that ggml rounds activations to 8 bits too: 2.5e-3 whatever the bits of the weights.
    """
    model, folder = tiny.make("llama", **WIDE)
    checkpoint = quantized(gguf, loaders.load(folder), grid)
    on_grid = [tensor for tensor in checkpoint.tensors.values() if tensor.grid]
    assert len(on_grid) == 2 * 7 + 2
    weights = {
        name: torch.from_numpy(tensor.float_rows(0, tensor.row_count).reshape(tensor.shape))
        for name, tensor in checkpoint.tensors.items()
    }
    model = copy.deepcopy(model)
    model.load_state_dict(weights)
    path = export(checkpoint, tmp_path)[0]
    reference, found = both("llama", model, path)
    error = np.square(reference - found).mean() / np.square(reference).mean()
    assert error < 5e-3
    back = loaders.load(path)
    for name, tensor in checkpoint.tensors.items():
        codes = tensor.read_codes(0, tensor.row_count) if tensor.grid else None
        if codes is not None:
            again = back.tensors[name].read_codes(0, tensor.row_count)
            assert np.array_equal(again.codes, codes.codes)
            assert np.array_equal(again.dequantize(), codes.dequantize())


@pytest.mark.parametrize("variant", ["gpt54", "gpt54-tied"])
def test_quantized_gpt54(variant, tmp_path):
    """As above; T5's unscaled attention makes much of rounded activations (5 %; other weights give 200 %)."""
    model, folder = tiny.make(variant)
    checkpoint = quantized(gguf, loaders.load(folder), "q8_0")
    path = export(checkpoint, tmp_path)[0]
    reference, found = both(variant, as_ggml_computes(model)[0], path)
    assert np.square(reference - found).mean() / np.square(reference).mean() < 0.1


def test_the_comparison_sees_what_is_wrong(tmp_path):
    """A file whose query rows are in the wrong order must not pass."""
    model, folder = tiny.make("llama")
    checkpoint = loaders.load(folder)
    tensors = dict(checkpoint.tensors)
    name = "model.layers.0.self_attn.q_proj.weight"
    rows = tensors[name].rows(0, tensors[name].row_count)[::-1].copy()
    tensors[name] = type(tensors[name])(name, rows.shape, "float32", lambda a, b: rows[a:b])
    reference, found = both("llama", model, export(checkpoint.with_tensors(tensors), tmp_path)[0])
    assert np.abs(reference - found).max() > 0.05
