"""Model cards: what stands in them, and that nothing from the source breaks out of its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import yaml

from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.exporters import card
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.loaders import load

ROWS: tuple[dict[str, Any], ...] = (
    {
        "name": "a",
        "role": "attn.q",
        "shape": [4, 8],
        "grid": "int4-g32",
        "bits_per_weight": 4.5,
        "relative_error": 0.3,
    },
    {
        "name": "b",
        "role": "attn.q",
        "shape": [4, 8],
        "grid": "int4-g32",
        "bits_per_weight": 4.5,
        "relative_error": 0.4,
    },
    {
        "name": "c",
        "role": "head",
        "shape": [2, 8],
        "grid": "float16",
        "bits_per_weight": 16.0,
        "relative_error": 0.0,
        "reason": "int8-g32: a | reason\nof <two> lines",
    },
)
TOTALS = {"parameters": 80, "size_bytes": 1234, "bits_per_weight": 6.8}


def text(folder: Path, checkpoint: Checkpoint, container: str = "safetensors", rows: Any = ROWS) -> str:
    path = card.write(folder, checkpoint, SinkOptions("Tiny", "int4"), container, rows, TOTALS)
    assert path == folder / "README.md"
    return path.read_text()


def front_matter(content: str) -> dict[str, Any]:
    return yaml.safe_load(content.split("---\n")[1])


def bare(tmp_path: Path, **config: Any) -> Checkpoint:
    return Checkpoint({}, config, Source(tmp_path, "safetensors"))


def test_the_whole_card(tmp_path: Path) -> None:
    checkpoint = load(tiny.make("llama")[1])
    content = text(tmp_path, checkpoint)
    assert front_matter(content) == {
        "quantized_by": "gpt54-convert",
        "library_name": "transformers",
        "tags": ["gpt54-convert", "safetensors", "int4", "llama", "compressed-tensors"],
    }
    assert "# Tiny, int4 (safetensors)" in content
    assert "80 parameters in 1,234 bytes, 6.800 bits per weight" in content
    assert "| attn.q | int4-g32 | 2 | 64 | 4.500 | 0.354 | 0.4 |" in content
    assert "| head | float16 | 1 | 16 | 16.000 | — | — |" in content
    assert "- 1 × int8-g32: a reason of two lines" in content
    assert "AutoModelForCausalLM.from_pretrained" in content and "AutoTokenizer" in content


def test_base_model_and_license_where_known(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Model\n")
    checkpoint = bare(tmp_path / "source", _name_or_path="org/model-1.5")
    found = front_matter(text(tmp_path, checkpoint))
    assert found["base_model"] == "org/model-1.5" and found["license"] == "apache-2.0"
    assert found["base_model_relation"] == "quantized"
    floats = front_matter(text(tmp_path, checkpoint, rows=ROWS[2:]))
    assert "base_model_relation" not in floats and "quantized_by" not in floats


def test_nothing_breaks_out(tmp_path: Path) -> None:
    evil = bare(tmp_path, _name_or_path='a/b"\nlicense: evil', license="x\ny: z")
    assert set(front_matter(text(tmp_path, evil))) == {"quantized_by", "library_name", "tags"}
    (tmp_path / "README.md").unlink()
    secret = tmp_path / "secret"
    secret.write_text("---\nlicense: leaked\n---\n")
    (tmp_path / "README.md").symlink_to(secret)
    rendered = card.render(tmp_path, bare(tmp_path), SinkOptions("N", "l"), "safetensors", ROWS, TOTALS)
    assert "leaked" not in rendered


def test_gguf_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "Tiny-int4.gguf").write_bytes(b"")
    content = text(tmp_path, bare(tmp_path), "gguf")
    assert "llama-cli -m Tiny-int4.gguf" in content and front_matter(content)["library_name"] == "gguf"
