"""What is built and shipped: wheel, sdist, entry points, pins, commands."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mtlbench

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("architectures", "auxiliary", "datasets", "encoders", "weightings")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(content["project"])


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: for a pure Python wheel that is what installing it gives."""
    (wheel,) = dist.glob("*.whl")
    out = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out)
    return out


def outside(site: Path, code: str, cwd: Path) -> str:
    """Run ``code`` in a folder outside the checkout with nothing but the unpacked wheel to import from."""
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_both_packages_and_their_types(site: Path) -> None:
    for name in ("mtlbench", "mtlbench_zoo"):
        assert (site / name / "__init__.py").is_file()
        assert (site / name / "py.typed").is_file()
    shipped = {p.relative_to(site).as_posix() for p in site.rglob("*.py")}
    written = {p.relative_to(ROOT).as_posix() for p in (ROOT / "mtlbench").rglob("*.py")}
    written |= {p.relative_to(ROOT / "plugins").as_posix() for p in (ROOT / "plugins").rglob("*.py")}
    assert shipped == written


def test_the_wheel_registers_every_entry_point_and_each_target_exists(
    site: Path, project: dict[str, Any]
) -> None:
    (file,) = site.glob("mtlbench-*.dist-info/entry_points.txt")
    found = ConfigParser(delimiters=("=",))
    found.read_string(file.read_text(encoding="utf-8"))
    expected = {"console_scripts": project["scripts"], **project["entry-points"]}
    assert {group: dict(found[group]) for group in found.sections()} == expected
    assert {group.removeprefix("mtlbench.") for group in project["entry-points"]} <= set(GROUPS)
    for group in expected.values():
        for target in group.values():
            module, _, name = target.partition(":")
            path = site.joinpath(*module.split("."))
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            assert source.is_file(), target
            assert re.search(rf"^(class|def) {name}\b|\b{name}\b", source.read_text("utf-8"), re.M), target


def test_every_plugin_class_of_the_zoo_is_registered(project: dict[str, Any]) -> None:
    registered = {target for group in project["entry-points"].values() for target in group.values()}
    bases = {"Architecture", "Auxiliary", "Dataset", "Encoder", "Weighting"}
    # Modules with an underscore hold what plugins share, such as a base of several: these are read first.
    files = sorted((ROOT / "plugins" / "mtlbench_zoo").rglob("*.py"), key=lambda file: file.name[0] != "_")
    for file in files:
        module = ".".join(file.relative_to(ROOT / "plugins").with_suffix("").parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and bases & {ast.unparse(base) for base in node.bases}:
                if file.name.startswith("_"):
                    bases.add(node.name)
                else:
                    assert f"{module}:{node.name}" in registered, f"{module}:{node.name} has no entry point"


def test_the_package_imports_from_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    found = outside(site, "import mtlbench, mtlbench_zoo; print(mtlbench.__file__)", tmp_path)
    assert found == str(site / "mtlbench" / "__init__.py")
    assert outside(site, "import mtlbench, sys; print('torch' in sys.modules)", tmp_path) == "False"


def test_the_sdist_can_be_checked_by_whoever_unpacks_it(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt"}
    assert wanted | {"pyproject.toml", "docs/conf.py", "tests/test_packaging.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("docs/_build", ".venv"))]


def test_constraints_pin_every_direct_dependency_within_its_range(project: dict[str, Any]) -> None:
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"not an exact pin: {line}"
            assert canonicalize_name(name) not in pins, f"pinned twice: {name}"
            pins[canonicalize_name(name)] = version
    assert pins["torch"] == "2.13.0"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    direct = [*project["dependencies"], *pyproject["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        direct.extend(extra)
    for requirement in map(Requirement, direct):
        name = canonicalize_name(requirement.name)
        if name != "mtlbench":
            assert name in pins, f"{name} is not pinned in constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"{requirement} excludes {pins[name]}"


def test_every_make_command_that_is_written_down_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"run", "test"} <= set(re.findall(r"^make ([a-z]+)", readme, re.M))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        written = re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.M)
        assert set(written) <= targets, page.name


def test_ci_runs_exactly_make_test() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("an unpacked sdist has no .ci folder")
    assert os.access(script, os.X_OK)
    assert re.findall(r"^make .*$", script.read_text(encoding="utf-8"), re.M) == [
        "make test </dev/null || status=$?"
    ]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"- run: (.*)", workflow) == ["make test"]


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == mtlbench.__version__  # type: ignore[index]
    assert f"## {mtlbench.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
