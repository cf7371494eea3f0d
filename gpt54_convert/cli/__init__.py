"""The command line: one file a command, imported only when it runs."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click

from gpt54_convert import __version__
from gpt54_convert.core import discover
from gpt54_convert.errors import ConvertError


class _Commands(click.Group):
    """Finds commands as files beside this one; `--help` imports them, and they import nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name.removesuffix("_") for name in discover.names(__name__)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for key in (cmd_name, f"{cmd_name}_"):  # list_.py: a module must not shadow a builtin
            if key in discover.names(__name__):
                command: click.Command = discover.load(__name__, key).command
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), 1, 0.5)
            if near and "Did you mean" not in error.message:
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
            raise


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run `gpt54-convert quantize --bits 4` to try it on the embedded model.",
)
@click.version_option(__version__, prog_name="gpt54-convert")
def cli() -> None:
    """Turn a float transformer checkpoint into deployable artifacts, and prove that they still behave."""


def main() -> None:
    """Entry point.  Exit codes: 0 done, 1 could not do it, 2 usage, 130 interrupted."""
    # Let torch's threads sleep between operations: where cores are shared, spinning costs a lot more.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup: going on is what was asked for
            signal.signal(number, _terminate)
    try:
        code: Any = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ConvertError as error:
        click.echo(f"Error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted: no artifact was written, and nothing that existed was changed.", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; no traceback about it
        code = 1
    except MemoryError:
        click.echo("Error: out of memory; use fewer --threads", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(number: int, frame: Any) -> None:
    """A polite kill or a closed terminal cleans up as Ctrl-C does."""
    raise KeyboardInterrupt
