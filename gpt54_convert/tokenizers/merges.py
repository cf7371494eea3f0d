"""BPE merges and sentencepiece scores, each derived from the other.

sentencepiece's BPE joins the two neighbours whose concatenation is the best-scored piece of the vocabulary.
tokenizer.json holds a ranked list of pairs instead.  The two say the same when the list holds *every* split
of every piece into two pieces, ranked by the score of the piece they make.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt54_convert.errors import InputError

Pair = tuple[str, str]


def merges_from_scores(scores: Mapping[str, float]) -> list[Pair]:
    """Every pair of pieces that makes a piece, best piece first.

    For each piece all split points are tried (only lengths that some piece has), so the cost is the total
    length of the vocabulary: about two seconds of one core for Gemma's 262,144 pieces.  Equal scores keep
    the vocabulary's order.  Within a piece the longer left half comes first.
    """
    lengths = {len(piece) for piece in scores}
    merges: list[Pair] = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        size = len(piece)
        # A hostile vocabulary may hold pieces of a megabyte: never try more cuts than there are lengths.
        cuts = range(size - 1, 0, -1) if size < 64 else sorted((n for n in lengths if n < size), reverse=True)
        for cut in cuts:
            if cut in lengths and piece[:cut] in scores and piece[cut:] in scores:
                merges.append((piece[:cut], piece[cut:]))
    return merges


def scores_from_merges(vocabulary: Iterable[str], merges: Sequence[Pair]) -> dict[str, float]:
    """Scores that rank the pieces as `merges` does: minus the rank of the first merge that makes the piece.

    Pieces that no merge makes (single characters) come last; their score is never compared.
    """
    scores = dict.fromkeys(vocabulary, -float(len(merges)))
    for rank in range(len(merges) - 1, -1, -1):
        left, right = merges[rank]
        scores[left + right] = -float(rank)
    return scores


def same_by_scores(scores: Mapping[str, float], merges: Sequence[Pair]) -> str | None:
    """None where `merges` say the same as the `scores` made from them; else a pair that they differ in.

    The same means: the same pairs, and all merges of one piece before those of the next.  Runs of one
    character (Gemma has some of up to 31 spaces) may be mixed among themselves, as they are where
    sentencepiece gives all of them one score: a run grows from the left either way, since longer runs come
    first.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    derived = merges_from_scores(scores)
    piece, last, before = "", -1, -1  # last: highest rank so far; before: that of earlier pieces
    runs = earlier_runs = True  # this piece (and those mixed with it) are runs of one character
    for left, right in derived:
        rank = ranks.get((left, right))
        if rank is None:
            return f"{left} {right}"
        if left + right != piece:
            piece, before, earlier_runs = left + right, last, runs
            runs = len(set(piece)) == 1
        if rank < before:
            runs = runs and earlier_runs
            if not runs:
                return f"{left} {right}"
        last = max(last, rank)
    return None if len(derived) == len(ranks) else "a merge of two tokens into one that is not scored"


def parse_merges(value: Any, vocabulary: Mapping[str, Any], where: str) -> list[Pair]:
    """The pairs of a `merges` list ("a b" strings or ["a", "b"] pairs), each made of known tokens."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where} is no list of merges; save the tokenizer again")
    merges: list[Pair] = []
    for index, entry in enumerate(value):
        pair = _pair(entry)
        if pair is None:
            raise InputError(f"{where} entry {index} ({entry!r:.60}) is no pair of tokens; save it again")
        for token in (*pair, pair[0] + pair[1]):
            if token not in vocabulary:
                raise InputError(
                    f"{where} entry {index} names the token {token!r:.60}, which the vocabulary lacks; "
                    "they belong to different tokenizers, fetch both again"
                )
        merges.append(pair)
    return merges


def _pair(entry: Any) -> Pair | None:
    if isinstance(entry, str):
        cut = entry.find(" ", 1)  # as llama.cpp does: a token may itself begin with a space
        return (entry[:cut], entry[cut + 1 :]) if 0 < cut < len(entry) - 1 else None
    if isinstance(entry, (list, tuple)) and len(entry) == 2:
        left, right = entry
        return (left, right) if isinstance(left, str) and isinstance(right, str) and left and right else None
    return None


def unreachable(tokens: Iterable[str], merges: Sequence[Pair]) -> list[str]:
    """The tokens that the merges do not make of their own characters (up to ten of them).

    Where there is none, `ignore_merges` (look whole words up first) changes no ids.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    found = []
    for token in tokens:
        if len(token) > 1 and apply_merges(token, ranks) != [token]:
            found.append(token)
            if len(found) == 10:
                break
    return found


def apply_merges(word: str, ranks: Mapping[Pair, int]) -> list[str]:
    """`word` cut into tokens by byte-pair encoding; the leftmost of equal ranks goes first."""
    parts: list[str | None] = list(word)
    after = list(range(1, len(word) + 1))
    before = list(range(-1, len(word) - 1))
    queue = [
        (ranks[pair], index, *pair) for index, pair in enumerate(itertools.pairwise(word)) if pair in ranks
    ]
    heapq.heapify(queue)
    while queue:
        _, index, left, right = heapq.heappop(queue)
        other = after[index]
        if parts[index] != left or other >= len(word) or parts[other] != right:
            continue  # one of the two has been merged meanwhile
        parts[index], parts[other] = left + right, None
        after[index] = after[other]
        if after[index] < len(word):
            before[after[index]] = index
        for first in (before[index], index):
            second = after[first] if first >= 0 else len(word)
            if second < len(word):
                pair = (str(parts[first]), str(parts[second]))
                if pair in ranks:
                    heapq.heappush(queue, (ranks[pair], first, *pair))
    return [part for part in parts if part is not None]
