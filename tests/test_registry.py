"""The registry: what is found without importing, what is loaded, and how each failure is explained."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from mtlbench import source
from mtlbench.contracts import Architecture, Dataset, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.registry import KINDS, Plugin, Registry, find_kind, source_digest

WEIGHTING = '''
from dataclasses import dataclass
from typing import Literal, Sequence
from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError


class {name}(Weighting):
    """{name} is a weighting.

    It has more lines.
    """

    needs = Need.LOSSES

    def __init__(self, tasks=(), alpha: float = 1, mode: Literal["a", "b"] = "a", sizes: Sequence[int] = [1]):
        super().__init__(tasks)
        if alpha < 0:
            raise ValueError("alpha must be at least 0,\\nfound " + str(alpha))
        if alpha > 9:
            raise MtlbenchError("alpha is far too large")
        self.alpha, self.tasks = alpha, tasks
'''


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")


def distribution(
    folder: Path, name: str, version: str, entries: Mapping[str, str], files: Mapping[str, str]
) -> None:
    """Make what pip leaves in site-packages. entries: name -> module:class, all of them weightings."""
    lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    write(
        folder,
        {
            f"{info}/METADATA": metadata,
            f"{info}/entry_points.txt": f"[mtlbench.weightings]\n{lines}",
            **files,
        },
    )


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that also sees a distribution with two plugins that work and others that do not."""
    distribution(
        tmp_path,
        "acme-mtl",
        "0.2",
        {
            "good": "acme_mtl.good:Good",
            "again": "acme_mtl:Good",
            "raises": "acme_mtl.raises:X",
            "needy": "acme_mtl.needy:X",
            "gone": "acme_mtl.gone:X",
            "typo": "acme_mtl.good:Godo",
            "garbled": "acme_mtl.garbled:X",
            "exits": "acme_mtl.exits:X",
            "alien": "acme_mtl.alien:X",
            "malformed": "acme_mtl",
        },
        {
            "acme_mtl/__init__.py": "from .good import Good\n",
            "acme_mtl/good.py": WEIGHTING.format(name="Good"),
            "acme_mtl/raises.py": '"""Doc."""\nraise ImportError("not on\\nMondays")\n',
            "acme_mtl/needy.py": "from .deep import helper\n",
            "acme_mtl/deep/__init__.py": "import surely_not_installed.part\n",
            "acme_mtl/garbled.py": "x = 1\nclass X(:\n",
            "acme_mtl/exits.py": "import sys\nif True:\n    sys.exit('no')\nclass X: ...\n",
            "acme_mtl/alien.py": "class X: ...\n",
        },
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry()
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_mtl"]:
        del sys.modules[name]


def test_kinds_are_known_in_the_singular_and_the_plural() -> None:
    assert find_kind("weighting") is find_kind("Weightings") is KINDS["weightings"]
    assert find_kind("auxiliaries") is find_kind("auxiliary") is KINDS["auxiliary"]
    with pytest.raises(
        MtlbenchError, match=r"^unknown kind 'wieghting'\. Did you mean 'weighting' or .* Kinds: "
    ):
        find_kind("wieghting")


def test_what_ships_is_found_and_nothing_of_it_is_marked_broken_by_mistake() -> None:
    registry = Registry()
    for kind in KINDS:
        for plugin in registry.plugins(kind):
            if plugin.reason(load=True) is None:
                assert plugin.reason() is None
                assert plugin.summary() == (plugin.load().__doc__ or "").strip().partition("\n")[0]


def test_listing_is_in_natural_order_and_takes_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["w101", "w18", "w2", "v"]
    distribution(tmp_path, "order", "1", dict.fromkeys(names, "order:X"), {})
    monkeypatch.syspath_prepend(tmp_path)
    found = [plugin.name for plugin in Registry().plugins("weightings") if plugin.origin == "order 1"]
    assert found == ["v", "w2", "w18", "w101"]
    assert [plugin.name for plugin in Registry().plugins("weighting", "w1*")] == ["w18", "w101"]


def test_summaries_are_read_without_importing(acme: Registry) -> None:
    assert acme.get("weighting", "good").summary() == "Good is a weighting."
    assert acme.get("weighting", "again").summary() == "Good is a weighting."  # through a re-export
    assert acme.get("weighting", "raises").summary() == ""
    assert not any(name.startswith("acme_mtl") for name in sys.modules)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("good", None),
        ("again", None),
        ("raises", "ImportError: not on Mondays (raises.py:2)"),
        ("needy", "ModuleNotFoundError: No module named 'surely_not_installed' (__init__.py:1)"),
        ("gone", "ModuleNotFoundError: No module named 'acme_mtl.gone'"),
        ("typo", "AttributeError: module 'acme_mtl.good' has no attribute 'Godo'"),
        ("garbled", "SyntaxError: invalid syntax (garbled.py:2)"),
        ("exits", None),  # what stands in an if cannot be known
        ("malformed", "ValueError: the entry point is not of the form module:class"),
    ],
)
def test_reasons_are_seen_without_importing(acme: Registry, name: str, reason: str | None) -> None:
    assert acme.get("weighting", name).reason() == reason
    assert not any(module.startswith("acme_mtl") for module in sys.modules)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "ImportError: not on Mondays"),
        ("needy", "ModuleNotFoundError: No module named 'surely_not_installed'"),
        ("gone", "ModuleNotFoundError: No module named 'acme_mtl.gone'"),
        ("typo", "AttributeError: module 'acme_mtl.good' has no attribute 'Godo'"),
        ("garbled", "SyntaxError: invalid syntax"),
        ("exits", "SystemExit: no"),
        ("alien", "TypeError: acme_mtl.alien:X is no subclass of Weighting"),
        ("malformed", "ValueError: the entry point is not of the form module:class"),
    ],
)
def test_whatever_goes_wrong_in_loading_is_one_line(acme: Registry, name: str, reason: str) -> None:
    plugin = acme.get("weighting", name)
    with pytest.raises(MtlbenchError) as caught:
        plugin.load()
    assert str(caught.value).startswith(f"weighting {name!r} from acme-mtl 0.2 failed to load: {reason}")
    assert "\n" not in str(caught.value)
    assert str(plugin.reason(load=True)).startswith(reason)
    assert acme.choose("weighting", "good").cls.__name__ == "Good"  # the others go on working


def test_an_abstract_class_is_no_plugin() -> None:
    plugin = Plugin("architectures", "x", "here", "mtlbench.contracts", "Architecture")
    with pytest.raises(MtlbenchError, match="Architecture does not define forward, shape"):
        plugin.load()


def test_an_unknown_name_is_answered_with_the_nearest_and_the_broken(acme: Registry) -> None:
    with pytest.raises(MtlbenchError) as caught:
        acme.get("weighting", "goood")
    count = len(acme.plugins("weighting"))
    start = f"unknown weighting 'goood'. Did you mean 'good'? {count} available: mtlbench ls weightings; "
    assert str(caught.value).startswith(start)
    assert "'raises' from acme-mtl 0.2 (ImportError: not on Mondays (raises.py:2))" in str(caught.value)
    assert "failed to load" in str(caught.value)


def test_a_duplicate_name_is_an_error_only_when_it_is_asked_for(
    acme: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path / "other", "other", "3.1", {"good": "acme_mtl.good:Good"}, {})
    monkeypatch.syspath_prepend(tmp_path / "other")
    registry = Registry()
    assert [p.origin for p in registry.plugins("weighting", "good")] == ["acme-mtl 0.2", "other 3.1"]
    assert registry.get("weighting", "again").origin == "acme-mtl 0.2"
    with pytest.raises(MtlbenchError) as caught:
        registry.choose("weighting", "good")
    for text in ("weighting 'good' is given by", "acme-mtl 0.2 (acme_mtl.good:Good)", "other 3.1 (acme"):
        assert text in str(caught.value)


def test_a_distribution_that_is_on_the_path_twice_is_one(
    acme: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path / "stale", "Acme_MTL", "0.1", {"good": "acme_mtl.old:Good"}, {})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(tmp_path / "stale")])
    assert Registry().get("weighting", "good").origin == "acme-mtl 0.2"


def test_unreadable_entry_points_stop_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "mess", "1", {}, {})
    (tmp_path / "mess-1.dist-info" / "entry_points.txt").write_text("[mtlbench.weightings]\nno equals sign\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    assert registry.plugins("architectures")
    assert len(registry.broken_files) == 1


def test_choice_binds_and_names_itself(acme: Registry) -> None:
    choice = acme.choose("weighting", "good[mode=b,alpha=1]")
    assert choice.parameters == {"alpha": 1.0, "mode": "b", "sizes": (1,)}
    assert str(choice) == "good[mode=b]"
    assert str(acme.choose("weighting", "good[sizes=[1],alpha=2]")) == "good[alpha=2.0]"
    assert str(acme.choose("weighting", "good")) == "good"
    with pytest.raises(
        MtlbenchError, match=r"^weighting 'good': unknown parameter 'mod'\. Did you mean 'mode'"
    ):
        acme.choose("weighting", "good[mod=b]")


def test_building_passes_what_the_constructor_takes(acme: Registry) -> None:
    built = acme.choose("weighting", "good[alpha=2]").build(tasks=["a", "b"], data_dir=None)
    assert isinstance(built, Weighting)
    assert (built.alpha, built.tasks) == (2.0, ["a", "b"])


def test_a_constructor_that_refuses_is_one_line(acme: Registry) -> None:
    refused = r"^weighting 'good\[alpha=-1\.0\]': alpha must be at least 0, found -1\.0$"
    with pytest.raises(MtlbenchError, match=refused):
        acme.choose("weighting", "good[alpha=-1]").build()
    with pytest.raises(MtlbenchError, match=r"^alpha is far too large$"):
        acme.choose("weighting", "good[alpha=10]").build()


def test_keyword_arguments_that_go_on_to_the_contract_receive_the_context(tmp_path: Path) -> None:
    text = """
    from mtlbench.contracts import Weighting

    class Passing(Weighting):
        needs = "set by the test"
        def __init__(self, beta: int = 3, **rest):
            super().__init__(**rest)
    """
    write(tmp_path, {"passing.py": text})
    choice = Registry([tmp_path / "passing.py"]).choose("weighting", "passing")
    assert choice.build(tasks=["a", "b"], encoder=None).active.tolist() == [0, 1]


def test_a_file_gives_its_concrete_public_classes(tmp_path: Path) -> None:
    text = (
        WEIGHTING.format(name="MyRandomWalk")
        + """
from mtlbench import source
from mtlbench.contracts import Architecture

class _Base(Weighting):
    needs = "set by the test"
class PCGrad(_Base):
    name = "my-pcgrad"
class Child(PCGrad): ...
class Abstract(Architecture): ...
class Unrelated: ...
Alias = Child

@dataclass
class Settings:
    depth: "int" = 1
"""
    )
    file = tmp_path / "walks.py"
    write(tmp_path, {"walks.py": text})
    registry = Registry([file, file])
    found = [plugin for plugin in registry.plugins("weighting") if plugin.origin == str(file)]
    assert [plugin.name for plugin in found] == ["child", "my-pcgrad", "my-random-walk"]
    assert not [plugin for plugin in registry.plugins("architecture") if plugin.origin == str(file)]
    walk = found[2]
    assert walk.load().__name__ == "MyRandomWalk"
    assert walk.summary() == "MyRandomWalk is a weighting."
    assert walk.reason() is None
    assert str(tmp_path) not in walk.module
    assert not (tmp_path / "__pycache__").exists()
    # The same file is the same module; an edited one is read anew.
    assert Registry([file]).get("weighting", "child").load() is found[0].load()
    before = source_digest(walk.module)
    file.write_text(text.replace("Child", "Sprout"))
    again = Registry([file]).get("weighting", "sprout")
    assert again.load().__name__ == "Sprout"
    after = source_digest(again.module)
    assert after != before
    # A copy is the same module too, and serves where the original is gone.
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / file.name)
    assert Registry([moved]).get("weighting", "sprout").load() is again.load()
    assert source_digest(again.module) == after


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import os\nimport surely_not_installed\n", "No module named 'surely_not_installed' ({file}:2)"),
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError: division by zero ({file}:2)"),
        ("x = (\n", "SyntaxError: '(' was never closed ({file}:1)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 ({file}:2)"),
        ("x = 1\n", "defines no concrete subclass of Architecture, Encoder, Weighting, Dataset, Auxiliary"),
    ],
)
def test_a_broken_file_stops_nobody_else(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    registry = Registry([file])
    (broken,) = registry.broken_files
    assert broken.path == str(file)
    assert broken.reason.endswith(reason.format(file=file))
    assert registry.plugins("architecture")
    with pytest.raises(MtlbenchError, match="failed to load"):
        registry.get("weighting", "mine")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match=r"--plugin .*nope\.py: there is no such file"):
        Registry([tmp_path / "nope.py"])


def test_the_digest_covers_what_runs_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "{top}/__init__.py": "",
        "{top}/methods/__init__.py": "",
        "{top}/methods/one.py": "import math\nfrom ..helpers import deep\ndef f():\n    import {top}.late\n",
        "{top}/methods/two.py": "",
        "{top}/helpers/__init__.py": "",
        "{top}/helpers/deep.py": "from . import deeper\n",
        "{top}/helpers/deeper.py": "from {top}.methods import one  # a circle\n",
        "{top}/late.py": "",
    }

    def digest(place: str, **changed: str) -> str:
        for name, text in files.items():
            extra = changed.get(Path(name).stem if "__init__" not in name else Path(name).parent.name, "")
            write(tmp_path / place, {name.format(top="dig"): text.format(top="dig") + extra})
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [str(tmp_path / place), *sys.path])
            return source_digest("dig.methods.one")

    original = digest("a")
    assert len(original) == 16
    assert int(original, 16) >= 0
    assert digest("b") == original  # wherever it is installed
    assert digest("c", two="x = 1\n") == original  # not used by it
    for name in ("one", "deep", "deeper", "late", "helpers", "methods"):
        assert digest(f"d-{name}", **{name: "x = 1\n"}) != original


def test_the_digest_covers_what_a_plugin_takes_from_the_core() -> None:
    assert source_digest("mtlbench_zoo.weightings.ew") == source_digest("mtlbench_zoo.weightings.ew")
    assert source_digest("mtlbench_zoo.weightings.ew") != source_digest("mtlbench_zoo.weightings.uw")
    assert "mtlbench.solvers.min_norm" in source._closure("mtlbench_zoo.weightings.mgda")
    assert "mtlbench.solvers.min_norm" not in source._closure("mtlbench_zoo.weightings.ew")
    assert "mtlbench.metrics.classes" in source._closure("mtlbench_zoo.datasets.pets")


def test_every_contract_is_what_its_kind_says() -> None:
    import mtlbench.contracts as contracts

    for kind in KINDS.values():
        assert hasattr(contracts, kind.contract)
    assert (KINDS["architectures"].contract, Architecture.__name__) == ("Architecture",) * 2
    assert (KINDS["datasets"].contract, Dataset.__name__) == ("Dataset",) * 2
