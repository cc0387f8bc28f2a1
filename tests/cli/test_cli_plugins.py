"""`mtlbench ls` and `mtlbench info`, on what ships and on other people's distributions and files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtlbench.cli import cli

WORKING = '''
from collections.abc import Sequence
from typing import Literal
from mtlbench.contracts import Need, Task, Weighting


class Walk(Weighting):
    """Walks at random.

    Long ago it was said that ``walking`` is
    healthy.

        w = a walk

    mode: "fast" or
    "slow".
    Source: nobody.
    """

    needs = Need.GRAM
    heads = "unweighted"

    def __init__(
        self, step: float, tasks: Sequence[Task] = (), mode: Literal["fast", "slow"] = "fast",
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(tasks)
'''


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution as pip leaves it: a plugin that works, a duplicate, and some that cannot load."""
    package, info = tmp_path / "acme_cli", tmp_path / "acme_cli-0.2.dist-info"
    package.mkdir()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-cli\nVersion: 0.2\n")
    (info / "entry_points.txt").write_text(
        "[mtlbench.weightings]\n"
        "walk = acme_cli.walk:Walk\n"
        "raising = acme_cli.raising:X\n"
        "needy = acme_cli.needy:X\n"
        "hidden = acme_cli.hidden:X\n"
        "ew = acme_cli.walk:Walk\n"
    )
    (package / "__init__.py").write_text("")
    (package / "walk.py").write_text(WORKING)
    (package / "raising.py").write_text("raise RuntimeError('broken here')\n")
    (package / "needy.py").write_text("import surely_not_installed\nclass X: ...\n")
    (package / "hidden.py").write_text("1 / 0\nclass X: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_ls_shows_all_kinds_on_plain_lines() -> None:
    result = run("ls")
    assert result.exit_code == 0
    for kind in ("architectures", "encoders", "weightings", "datasets", "auxiliary"):
        assert any(line.split()[:1] == [kind] for line in result.output.splitlines())
    assert "\x1b" not in result.output
    assert all(line == line.rstrip() for line in result.output.splitlines())
    (mgda,) = [line for line in result.output.splitlines() if line.startswith("  mgda ")]
    assert "Multiple-gradient descent: the shortest vector" in mgda
    assert mgda.endswith("mtlbench 0.1.0")


def test_ls_one_kind_and_a_pattern() -> None:
    assert run("ls", "weighting").output == run("ls", "weightings").output
    assert [line.split()[0] for line in run("ls", "encoders", "res*").output.splitlines()] == [
        "encoders",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
    ]
    nothing = run("ls", "encoders", "zzz*")
    assert (nothing.stdout, nothing.stderr) == ("", "no encoder has a name like 'zzz*'\n")
    wrong = run("ls", "weihgtings")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: unknown kind 'weihgtings'. Did you mean 'weightings'")


def test_ls_lists_broken_and_duplicate_plugins_with_their_reason(acme: Path) -> None:
    # In a process of its own: nothing of it may be imported for this.
    done = subprocess.run(
        [sys.executable, "-m", "mtlbench", "ls", "weightings"],
        env={**os.environ, "PYTHONPATH": str(acme)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "walk Walks at random. acme-cli 0.2" in rows
    assert "raising cannot load: RuntimeError: broken here (raising.py:1) acme-cli 0.2" in rows
    needy = "ModuleNotFoundError: No module named 'surely_not_installed' (needy.py:1)"
    assert f"needy cannot load: {needy} acme-cli 0.2" in rows
    assert "ew name given twice: Walks at random. acme-cli 0.2" in rows
    assert any(row.startswith("ew name given twice: Equal weighting") for row in rows)
    assert any(row.startswith("rlw Random") for row in rows)
    assert done.stderr == ""


def test_check_imports_and_sees_the_rest(acme: Path) -> None:
    assert "hidden" in run("ls", "weightings", "hidden").output
    result = run("ls", "weightings", "--check")
    assert result.exit_code == 1
    assert "cannot load: ZeroDivisionError: division by zero" in result.output
    assert run("ls", "weightings", "walk", "--check").exit_code == 0


def test_markdown(acme: Path) -> None:
    lines = run("ls", "weightings", "w*", "--markdown").output.splitlines()
    assert lines == [
        "## Weightings",
        "",
        "| name | summary | from |",
        "|---|---|---|",
        "| `walk` | Walks at random. | acme-cli 0.2 |",
    ]


def test_a_file_of_somebody(tmp_path: Path) -> None:
    file, broken = tmp_path / "mine.py", tmp_path / "broken.py"
    file.write_text(WORKING)
    broken.write_text("import surely_not_installed\n")
    result = run("ls", "weightings", "wa*", "--plugin", str(file), "--plugin", str(broken))
    assert result.stdout.split("\n")[1].split() == ["walk", "Walks", "at", "random.", str(file)]
    assert result.stderr.startswith(f"{broken} gave no plugin: ModuleNotFoundError")
    assert run("info", "weighting", "walk", "--plugin", str(file)).exit_code == 0
    missing = run("ls", "--plugin", str(tmp_path / "none.py"))
    assert missing.exit_code == 2
    assert "there is no such file" in missing.stderr


def test_info_shows_docstring_parameters_cost_and_source(acme: Path) -> None:
    result = run("info", "weighting", "walk")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:11] == [
        "walk  weighting",
        "",
        "  Walks at random.",
        "",
        "  Long ago it was said that walking is healthy.",
        "",
        "      w = a walk",
        "",
        '  mode: "fast" or "slow".',
        "  Source: nobody.",
        "",
    ]
    rows = [" ".join(line.split()) for line in lines]
    assert "step float required" in rows
    assert 'mode one of "fast", "slow" default "fast"' in rows
    assert "sizes list of int or none default none" in rows
    assert not any(row.startswith("tasks ") for row in rows)
    assert any(row.startswith("needs the Gram matrix of the task gradients: a step costs") for row in rows)
    assert "heads receive the gradient of their own task as it is" in rows
    assert "from acme-cli 0.2" in rows
    assert "class acme_cli.walk:Walk" in rows
    assert any(row.startswith("file ") and row.endswith("walk.py:7") for row in rows)


def test_info_on_every_plugin_that_ships() -> None:
    from mtlbench.registry import KINDS, Registry

    for kind in KINDS:
        for plugin in Registry().plugins(kind):
            if plugin.reason(load=True) is None:
                result = run("info", kind, plugin.name)
                assert result.exit_code == 0, result.output
                assert all(len(line) <= 100 for line in result.output.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("architecture", "mmeo"), "unknown architecture 'mmeo'. Did you mean 'mmoe'? "),
        (("architetcure", "mmoe"), "unknown kind 'architetcure'. Did you mean 'architecture'"),
        (("weighting", "raising"), "weighting 'raising' from acme-cli 0.2 failed to load: RuntimeError"),
        (("weighting", "ew"), "weighting 'ew' is given by acme-cli 0.2 (acme_cli.walk:Walk) and mtlb"),
    ],
)
def test_info_answers_mistakes_in_one_line(acme: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("info", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_terminal_gets_colour_unless_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = run("ls", "weightings").output
    assert "\x1b[36m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = run("ls", "weightings").output
    assert "\x1b[3" not in plain
    assert all(len(line) <= 100 for line in plain.splitlines())
