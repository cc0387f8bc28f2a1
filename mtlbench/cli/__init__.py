"""The command line: ``mtlbench COMMAND``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from mtlbench import __version__
from mtlbench.cli.together import launched, tell
from mtlbench.errors import Interrupted, MtlbenchError, did_you_mean


@dataclass(frozen=True)
class _Lazy:
    """A command by the place where it is written, and its line in the help, known without importing it."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "run": _Lazy("mtlbench.cli.run", "run", "Train tasks together and apart, and say what it gained."),
    "inspect": _Lazy(
        "mtlbench.cli.inspect", "inspect", "Draw what a run learned, and which task hurts which."
    ),
    "sweep": _Lazy("mtlbench.cli.sweep", "sweep", "Train every combination of lists, and make one table."),
    "tune": _Lazy("mtlbench.cli.tune", "tune", "Search weights or learning rate, as a row that says so."),
    "leaderboard": _Lazy(
        "mtlbench.cli.leaderboard", "leaderboard", "Make tables of all runs: HTML, Markdown, CSV, JSON."
    ),
    "compare": _Lazy("mtlbench.cli.leaderboard", "compare", "Set two rows side by side with paired tests."),
    "results": _Lazy("mtlbench.cli.results", "results", "Verify, merge and tidy folders of records."),
    "data": _Lazy("mtlbench.cli.data", "data", "List, prepare, check and look at datasets."),
    "ls": _Lazy("mtlbench.cli.plugins", "ls", "List architectures, weightings, encoders, datasets ..."),
    "cost": _Lazy("mtlbench.cli.cost", "cost", "Count and time what architectures cost, beside hps."),
    "info": _Lazy("mtlbench.cli.plugins", "info", "Show what a plugin is, its parameters and its cost."),
}


class LazyGroup(click.Group):
    """The commands of `COMMANDS`, imported when they are called, and one clear line for every error."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of this name."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        try:
            found = getattr(importlib.import_module(lazy.module), lazy.attribute)
        except (ImportError, AttributeError) as exc:
            raise MtlbenchError(
                f"command {cmd_name!r} failed to load: {type(exc).__name__}: {exc}. "
                "Is the installation complete?"
            ) from exc
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; an unknown one is answered with the nearest."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = did_you_mean(name, COMMANDS)
            raise click.UsageError(f"unknown command {name!r}.{near} Commands: {', '.join(COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and turn what goes wrong into a line on stderr and an exit code, never a traceback.

        Bugs, that is any exception but those that a person or the surrounding caused, keep theirs.
        """
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
            sys.stdout.flush()
        except MtlbenchError as exc:
            _fail(str(exc), exc.exit_code, "stopped" if isinstance(exc, Interrupted) else "error")
        except getattr(click.exceptions, "NoArgsIsHelpError", ()) as exc:  # since click 8.2
            exc.show()
            sys.exit(exc.exit_code)
        except click.UsageError as exc:
            path = exc.ctx.command_path if exc.ctx else "mtlbench"
            _fail(f"{exc.format_message().rstrip('.')}. See: {path} --help", exc.exit_code)
        except click.ClickException as exc:
            _fail(exc.format_message(), exc.exit_code)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except BrokenPipeError:
            # Whoever read our output left, as `head` does. What is still buffered goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as exc:
            where = f": {exc.filename}" if exc.filename is not None else ""
            _fail(f"{exc.strerror}{where}" if exc.strerror else str(exc), 2)
        sys.exit(code if isinstance(code, int) else 0)


class _Help(click.HelpFormatter):
    """Click's help with bold headings (which click removes where the output is not a terminal)."""

    def write_heading(self, heading: str) -> None:
        self.write(f"{'':{self.current_indent}}{_bold(heading)}\n")

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, f"{_bold('Usage')}  " if prefix is None else prefix)


def _bold(text: str) -> str:
    return text if os.environ.get("NO_COLOR") else click.style(text, bold=True)


def _fail(message: str, code: int, label: str = "error") -> NoReturn:
    if launched()[0] == 0:
        tell(message, label)
    sys.exit(code)


@click.group(
    "mtlbench",
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nTry:  mtlbench run --arch mmoe --weight rlw --data pets\n      mtlbench info weighting mgda",
)
@click.version_option(__version__, prog_name="mtlbench", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Is training these tasks together better than training them apart?"""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line: the console entry ``mtlbench``."""
    click.Context.formatter_class = _Help
    cli(prog_name="mtlbench")
