"""The frame of the command line: it starts without importing anything heavy, and every error is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mtlbench import __version__, cli
from mtlbench.errors import Interrupted, MtlbenchError, RunFailedError

HEAVY = {
    "torch",
    "numpy",
    "matplotlib",
    "h5py",
    "scipy",
    "cvxpy",
    "torchmetrics",
    "pooch",
    "PIL",
    "mtlbench_zoo",
}

SCRIPT = """
import sys
from mtlbench.cli import main
sys.argv = ["mtlbench", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
print("MODULES", *sys.modules)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["ls"], ["ls", "weightings", "m*"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    output, _, modules = done.stdout.rpartition("MODULES")
    assert output.strip()
    assert not HEAVY.intersection(modules.split())
    if "ls" not in arguments:
        assert "rich" not in modules.split()


def test_help_lists_all_commands_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "gone", cli._Lazy("mtlbench.cli.not_there", "x", "Is not there."))
    result = CliRunner().invoke(cli.cli, ["--help"])
    assert result.exit_code == 0
    lines = [line.split(maxsplit=1) for line in result.output.splitlines() if line.startswith("  ")]
    for name in ("run", "data", "ls", "info"):
        assert any(line and line[0] == name for line in lines)
    assert ["gone", "Is not there."] in lines
    failed = CliRunner().invoke(cli.cli, ["gone"])
    assert failed.exit_code == 2
    assert failed.stderr.startswith("error: command 'gone' failed to load: ModuleNotFoundError: ")
    assert failed.stderr.count("\n") == 1


def test_the_line_in_the_help_is_that_of_the_command() -> None:
    for name, lazy in cli.COMMANDS.items():
        assert lazy.help.endswith("."), name
        assert len(lazy.help) < 70


def test_version_and_no_arguments() -> None:
    assert CliRunner().invoke(cli.cli, ["--version"]).output == f"mtlbench {__version__}\n"
    bare, helped = CliRunner().invoke(cli.cli, []), CliRunner().invoke(cli.cli, ["-h"])
    assert (bare.exit_code, bare.output) == (0, helped.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lss"], "unknown command 'lss'. Did you mean 'ls'? Commands: run, "),
        (["--nope"], "No such option '--nope'. See: mtlbench --help"),
        (["ls", "--nope"], "No such option '--nope'. See: mtlbench ls --help"),
        (["info", "weighting"], "Missing argument 'NAME'. See: mtlbench info --help"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.cli, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    # How an option is quoted differs between versions of click.
    assert result.stderr.replace("option: --nope", "option '--nope'").startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MtlbenchError("no such\nthing [red]x[/red]"), 2, "error: no such thing [red]x[/red]\n"),
        (RunFailedError("diverged"), 3, "error: diverged\n"),
        (Interrupted("a checkpoint was left"), 130, "stopped: a checkpoint was left\n"),
        (FileNotFoundError(2, "No such file", "x.h5"), 2, "error: No such file: x.h5\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
        (OSError("truncated file"), 2, "error: truncated file\n"),
        (click.ClickException("a" * 300), 1, f"error: {'a' * 300}\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_are_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr("mtlbench.cli.plugins.ls", failing)
    result = CliRunner().invoke(cli.cli, ["ls"])
    assert (result.exit_code, result.stderr) == (code, line)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mtlbench.cli.plugins.ls", failing)
    assert isinstance(CliRunner().invoke(cli.cli, ["ls"]).exception, ZeroDivisionError)


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mtlbench", "ls"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""


def test_python_dash_m_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mtlbench", "ls", "nonsense"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown kind 'nonsense'.")
