"""All tokens of a tokenizer.json by id: the model's vocabulary and the added tokens in one table."""

from __future__ import annotations

from gpt54_convert.errors import InputError
from gpt54_convert.tokenizers.source import Source


def tokens_by_id(source: Source, vocab_size: int) -> dict[int, str]:
    """Token texts by id; InputError where two share an id, or one has no row in the embedding."""
    vocabulary = source.model["vocab"]
    pairs = (
        enumerate(entry[0] for entry in vocabulary) if isinstance(vocabulary, list) else _by_id(vocabulary)
    )
    tokens = dict(pairs)
    ids: dict[str, int] = {}
    for token_id, token in tokens.items():
        if ids.setdefault(token, token_id) != token_id:
            raise InputError(
                f"{source.file} (model.vocab) holds {token!r:.60} twice (ids {ids[token]} and {token_id}); "
                "mend the vocabulary"
            )
    for added in source.tokenizer["added_tokens"]:
        token, token_id = added["content"], added["id"]
        if tokens.setdefault(token_id, token) != token or ids.setdefault(token, token_id) != token_id:
            raise InputError(
                f"{source.file} (added_tokens) gives {token!r:.60} the id {token_id}, but "
                f"{tokens[token_id]!r:.60} has that id, or the token has another ({ids.get(token)}); "
                "mend the added token"
            )
    highest = max(tokens, default=0)
    if highest >= vocab_size:
        raise InputError(
            f"{source.file} has the token {tokens[highest]!r:.60} at id {highest}, but the model's embedding "
            f"has only {vocab_size} rows; take the tokenizer that belongs to the model"
        )
    return tokens


def _by_id(vocabulary: dict[str, int]) -> list[tuple[int, str]]:
    return sorted((token_id, token) for token, token_id in vocabulary.items())
