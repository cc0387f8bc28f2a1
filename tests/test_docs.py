"""What the documentation shows is run here: plugins, a config file; and its lists are held complete."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mtlbench.cli import main
from mtlbench.config import RunConfig
from mtlbench.experiment import Experiment
from mtlbench.registry import Registry
from mtlbench.results import Cost
from mtlbench.results.record import FIELDS
from mtlbench.testing import check_architecture, check_dataset, check_weighting
from mtlbench.training.report import Silence

ROOT = Path(__file__).resolve().parents[1]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)


def table_keys(text: str) -> set[str]:
    """Return what stands in backticks in the first column of the tables of ``text``."""
    cells = re.findall(r"^\| (`.*?`[^|]*) \|", text, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The examples of the plugin author's page, each saved as a file of its own."""
    folder = tmp_path_factory.mktemp("plugins")
    examples = [text for text in blocks("docs/plugin-authors.md", "python") if "def test_" not in text]
    files = []
    for number, text in enumerate(examples):
        files.append(folder / f"example{number}.py")
        files[-1].write_text(text, encoding="utf-8")
    found = Registry(files)
    assert not found.broken_files
    return found


class Watcher(Silence):
    def notice(self, text: str) -> None:
        """Say nothing."""


def test_the_plugin_of_the_readme_loads_and_keeps_its_contract(tmp_path: Path) -> None:
    (text,) = blocks("README.md", "python")
    assert text == blocks("docs/plugin-authors.md", "python")[0]
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    file = tmp_path / "inverse_loss.py"
    file.write_text(text, encoding="utf-8")
    choice = Registry([file]).choose("weightings", "inverse-loss[power=0.5]")
    assert choice.parameters == {"power": 0.5}
    check_weighting(choice.cls, power=0.5)


def test_the_other_examples_keep_their_contracts(registry: Registry) -> None:
    check_architecture(registry.get("architectures", "adapters").load())
    check_dataset(registry.choose("datasets", "squares[count=8]").build())


def test_the_examples_run_together(registry: Registry, tmp_path: Path) -> None:
    config = RunConfig(
        arch="adapters", weight="inverse-loss", data="squares[count=8]", epochs=1, batch_size=4,
        device="cpu", results=tmp_path, data_dir=tmp_path,
    )  # fmt: skip
    (result,) = Experiment(config, registry).execute(Watcher(), lambda: False)
    assert result.run.record.status == "ok"
    assert set(result.baselines) == {"mask", "box"}


def test_the_config_file_of_the_guide_is_accepted(tmp_path: Path) -> None:
    (text,) = blocks("docs/guide.md", "toml")
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    config = RunConfig.resolve(file, {"seeds": "0-1"})
    assert (config.arch, config.epochs, config.seeds) == ("mmoe[experts=4]", 30, (0, 1))


def test_the_errors_of_the_guide_are_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path))
    lines = page("docs/_printed/errors.txt").splitlines()
    for command, answer in zip(lines[::2], lines[1::2], strict=True):
        monkeypatch.setattr("sys.argv", shlex.split(command.removeprefix("$ ")))
        with pytest.raises(SystemExit, match="2"):
            main()
        assert capsys.readouterr().err.rstrip() == answer


def test_every_field_of_a_record_is_documented() -> None:
    text = page("docs/records.md")
    top, _, rest = text.partition("### `spec`")
    assert table_keys(top) == set(FIELDS)
    assert {field.name for field in fields(Cost)} <= table_keys(rest.partition("## Cost")[2])


def test_every_field_inside_a_record_is_documented(registry: Registry, tmp_path: Path) -> None:
    config = RunConfig(
        arch="adapters", weight="ew", data="squares[count=4]", epochs=1, batch_size=4, baseline=False,
        device="cpu", results=tmp_path, data_dir=tmp_path,
    )  # fmt: skip
    (result,) = Experiment(config, registry).execute(Watcher(), lambda: False)
    values = result.run.record.values
    sections = re.split(r"^###? ", page("docs/records.md"), flags=re.MULTILINE)
    for name in ("spec", "data", "code", "env", "budget", "selection", "parameters"):
        (section,) = [text for text in sections if f"`{name}`" in text.partition("\n")[0]]
        documented = {key.rpartition(".")[2] for key in table_keys(section)}
        assert set(values[name]) <= documented, name
    (section,) = [text for text in sections if text.startswith("`history`")]
    assert set(values["history"][0]) | {"steps", "norm", "cosine", "conflict", "within"} == table_keys(
        section
    )


def test_every_dependency_says_why_it_is_there() -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    sections = page("docs/dependencies.md").split("\n## ")[1:]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for section, requirements in zip(sections, groups, strict=True):
        names = {Requirement(text).name for text in requirements} - {"mtlbench"}
        assert table_keys(section) == names, section.partition("\n")[0]


def test_every_core_dependency_is_imported() -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    sources = [path for room in ("mtlbench", "plugins") for path in (ROOT / room).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    modules = {"pillow": "PIL", "scikit-learn": "sklearn", "scikit-posthocs": "scikit_posthocs"}
    for requirement in project["dependencies"]:
        name = Requirement(requirement).name
        assert re.search(rf"^\s*(import|from) {modules.get(name, name)}\b", text, re.MULTILINE), name


def test_links_between_pages_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page(name)):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


@pytest.mark.real
def test_what_prepare_prints_is_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = ROOT / ".." / "shared" / "data" / "oxford-iiit-pet"
    if not photographs.is_dir():
        pytest.skip("the real photographs are not in ../shared/data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLBENCH_DATA", "data")
    (tmp_path / photographs.name).symlink_to(photographs.resolve())
    command, _, answer = page("docs/_printed/prepare.txt").partition("\n")
    monkeypatch.setattr("sys.argv", shlex.split(command.removeprefix("$ ")))
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out == answer
