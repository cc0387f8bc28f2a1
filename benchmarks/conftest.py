"""Options of the benchmarks, and what happens with their tables at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tables import Tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "_printed" / "bench.md"
REFERENCE = ROOT / "benchmarks" / "reference.json"
LOOK = ROOT / ".benchmarks" / "look.json"

KEPT = pytest.StashKey[Tables]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tables of the benchmarks")
    group.addoption(
        "--tables",
        choices=("show", "write", "refer", "check"),
        default="show",
        help="show the tables; write them for the documentation; make the ratios the new reference; or check"
        " the ratios against the reference and fail where one fell behind",
    )
    group.addoption(
        "--again",
        action="store_true",
        help="the run before counts, too: to check the better of two ratios, to refer to the lesser",
    )
    group.addoption("--quick", action="store_true", help="fewer sizes and rounds: minutes instead of twenty")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KEPT] = Tables(config.getoption("--quick"))
    if not config.getoption("--again"):
        LOOK.unlink(missing_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put last what changes for good how the process handles memory."""
    items.sort(key=lambda item: item.name.startswith("test_kept"))


@pytest.fixture(scope="session")
def tables(request: pytest.FixtureRequest) -> Tables:
    """What the session finds."""
    return request.config.stash[KEPT]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    found, mode = session.config.stash[KEPT], session.config.getoption("--tables")
    if exitstatus == 0 and mode == "write":
        found.write(PAGE)
    if exitstatus == 0 and mode == "refer":
        found.refer(REFERENCE, _look(session.config))
        found.remember(LOOK)
    if exitstatus == 0 and mode == "check" and found.judge(REFERENCE, _look(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    found, mode = config.stash[KEPT], config.getoption("--tables")
    say = terminalreporter.write_line
    if mode != "check":
        say(found.markdown())
        return
    for what in found.skipped:
        say(f"skipped: {what}")
    if behind := found.judge(REFERENCE, _look(config)):
        found.remember(LOOK)
        say(f"bench-check: {behind}", red=True)
    else:
        say(f"bench-check: {len(found.ratios)} ratios, none fell behind")


def _look(config: pytest.Config) -> Path | None:
    """Return where the ratios of the check before are, if they count."""
    return LOOK if config.getoption("--again") and LOOK.exists() else None
