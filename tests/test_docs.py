"""docs/reference.md is the program's own help and lists, word for word.

`python tests/test_docs.py` writes it anew; the test fails where it is out of date.
"""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gpt54_convert.cli import cli
from gpt54_convert.cli.list_ import LISTS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
INTRO = """# Reference

Written by `python tests/test_docs.py` from the program itself; a test keeps the two equal.
"""


def run(*words: str) -> str:
    result = CliRunner().invoke(cli, words, prog_name="gpt54-convert", terminal_width=100)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines())


def table(what: str) -> str:
    header, rows = LISTS[what]()
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def parts_of(name: str) -> list[str]:
    """The commands of a group of commands; the words of a line (`pipe`) have the options of commands."""
    command = cli.get_command(None, name)
    is_group = isinstance(command, click.Group) and not command.chain
    return command.list_commands(None) if is_group else []


def reference() -> str:
    parts = [INTRO, "## Commands\n", f"```text\n{run('--help')}\n```\n"]
    for name in sorted(cli.list_commands(None)):
        for words in (name,), *((name, part) for part in parts_of(name)):
            parts.append(f"### {' '.join(words)}\n\n```text\n{run(*words, '--help')}\n```\n")
    for what in LISTS:
        parts.append(f"## {what.capitalize()}\n\n{table(what)}\n")
    return "\n".join(parts)


def test_reference_is_the_programs_own_words():
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run: python tests/test_docs.py"


@pytest.mark.parametrize("path", sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"]), ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    import re

    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
