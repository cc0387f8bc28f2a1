"""The table of a run's profile."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mtlbench.training.profile import BESIDE, STEP, Profile


def timing(label: str, profile: Profile) -> RenderableType:
    """Return where the time of a run went, by phase, for a rich console."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("where the time went")
    for column in ("seconds", "ms a step", "of a step", "of the run"):
        table.add_column(column, justify="right")

    def row(what: str, seconds: float, of_step: bool, style: str = "") -> None:
        per_step = f"{1e3 * seconds / profile.steps:.2f}" if of_step and profile.steps else ""
        share = _percent(seconds, profile.training) if of_step else ""
        table.add_row(
            what, f"{seconds:.2f}", per_step, share, _percent(seconds, profile.total), style=style or None
        )

    for phase, what in STEP.items():
        row(what, profile.seconds[phase], True)
    row(f"{profile.steps} training steps", profile.training, True, "bold")
    for phase, what in BESIDE.items():
        row(what, profile.seconds[phase], False)
    row("the run", profile.total, False, "bold")
    return Padding(Group(Text(label, style="bold"), "", table, ""), (0, 0, 0, 1), expand=False)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
