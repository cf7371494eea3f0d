"""Sentences about one thing and about several."""

import pytest

from gpt54_convert.core.words import listed, not_installed


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["torch"], "torch is not installed"),
        (["torch", "onnx"], "torch and onnx are not installed"),
        (("torch", "onnx", "tokenizers"), "torch, onnx and tokenizers are not installed"),
    ],
)
def test_one_is_and_several_are(names, words):
    assert not_installed(iter(names)) == words


def test_a_list_reads_as_one():
    assert listed(["a"]) == "a"
    assert listed({"a": 1, "b": 2}) == "a and b"
