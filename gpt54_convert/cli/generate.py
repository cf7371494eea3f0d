"""`gpt54-convert generate`: text from an artifact, in its own runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._options import build, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport, print_json
from gpt54_convert.core.options import MOST_THREADS
from gpt54_convert.sessions._options import Sampling


@click.command("generate")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="What the model reads. Default: standard input.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@options_of(Sampling)
@click.option(
    "--threads", type=click.IntRange(0, MOST_THREADS), default=0, metavar="N", help="0 takes one per core."
)
@output_options
def command(
    artifact: Path,
    prompt: str | None,
    chat: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Continue a prompt with ARTIFACT, in llama.cpp, ONNX Runtime or transformers, as its container asks.

    Example: `generate dist/gguf --prompt "It is a truth universally acknowledged"`.
    """
    sampling = build(Sampling, values)
    text = sys.stdin.read() if prompt is None else prompt
    from gpt54_convert.sessions import open_session
    from gpt54_convert.sessions._text import Written, chat_prompt, write

    session = open_session(artifact, threads)
    report, written = TerminalReport(quiet, verbose), Written([])
    try:
        pieces = []
        for piece in write(session, chat_prompt(artifact, text) if chat else text, sampling, written):
            pieces.append(piece)
            if not as_json:
                click.echo(piece, nl=False)
        if not as_json:
            click.echo()
    finally:
        session.close()
    speed = len(written.ids) / written.decode_s if written.decode_s else 0.0
    report.detail(
        f"{session.runtime}: {written.prompt_tokens} tokens read in {written.prompt_s:.2f} s, "
        f"{len(written.ids)} written, {speed:.1f} a second"
    )
    if as_json:
        print_json(
            {
                "schema": "gpt54-convert/generate/1",
                "artifact": str(artifact),
                "runtime": session.runtime,
                "text": "".join(pieces),
                "tokens": written.ids,
                "prompt_tokens": written.prompt_tokens,
                "prompt_s": round(written.prompt_s, 4),
                "decode_s": round(written.decode_s, 4),
                "ended": written.ended,
            }
        )
