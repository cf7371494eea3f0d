"""Text from a session: which token comes next, and what is printed as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt54_convert import loaders
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.forward.batch import Floats
from gpt54_convert.sessions import Session
from gpt54_convert.sessions._options import Sampling
from gpt54_convert.verify import chat
from gpt54_convert.verify.artifact import locate


@dataclass
class Written:
    """What came of a prompt.  Times in seconds; `ids` are the tokens written."""

    ids: list[int]
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    ended: bool = False


def write(session: Session, prompt: str, sampling: Sampling, written: Written) -> Iterator[str]:
    """Pieces of text as they become whole (a letter may take several tokens); `written` says the rest.

    Raises UnsupportedError for an encoder, InputError for a prompt that is empty or too long.
    """
    if session.kind == "encoder":
        raise UnsupportedError("this model is an encoder: it gives hidden states, it does not write text")
    ids = session.encode(prompt)
    room = session.context - (0 if session.kind == "encoder-decoder" else len(ids))
    if not ids:
        raise InputError("the prompt has no tokens; give some text with --prompt")
    if len(ids) >= session.context:
        raise InputError(f"the prompt has {len(ids)} tokens, but there is room for {session.context}")
    generator = np.random.default_rng(sampling.seed)
    written.prompt_tokens = len(ids)
    started = time.perf_counter()
    logits = session.start(ids)
    written.prompt_s = time.perf_counter() - started
    shown = ""
    started = time.perf_counter()
    while len(written.ids) < min(sampling.tokens, room):
        token = choose(logits, sampling, generator)
        if session.ends(token):
            written.ended = True
            break
        written.ids.append(token)
        text = session.decode(written.ids)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
        logits = session.step(token)
    written.decode_s = time.perf_counter() - started
    yield session.decode(written.ids)[len(shown) :]


def chat_prompt(artifact: Path, text: str) -> str:
    """`text` as the user's turn in the artifact's own chat template.

    Raises UnsupportedError where it has none, InputError where its template refuses.
    """
    checkpoint = loaders.load(locate(artifact).path)
    found = chat.template(checkpoint.tokenizer)
    if found is None:
        raise UnsupportedError(f"{artifact} has no chat template; leave out --chat")
    return chat.render(found, [{"role": "user", "content": text}])


def choose(logits: Floats, sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token.  logits [vocab].

    Raises InputError for answers that are not finite: a damaged model would write on and on.
    """
    if not np.isfinite(logits).any() or np.isnan(logits).any():
        raise InputError("the model answers with NaN; the artifact is damaged, see `gpt54-convert verify`")
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")[: sampling.top_k or None]
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    kept = max(1, int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1)
    weights = weights[:kept] / weights[:kept].sum()
    return int(order[: len(weights)][generator.choice(len(weights), p=weights)])
