"""What the pages on datasets show is run; and every dataset says what people ask before they use it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mtlbench.data.verify import verify
from mtlbench.registry import Registry
from mtlbench.tasks import KINDS
from mtlbench.testing import check_dataset

DOCS = Path(__file__).resolve().parents[2] / "docs"


def example(page: str) -> str:
    (text,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
    return str(text)


def test_the_file_of_the_schema_page_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example("data-schema.md"), "data-schema.md", "exec"), {})
    dataset = Registry().choose("datasets", "hdf5[path=fruit.h5]").build()
    check_dataset(dataset)
    assert verify(dataset)[1] == []
    assert dataset.title == "fruit"
    assert dataset.partial


def test_the_sarcos_table_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    savemat("sarcos_inv.mat", {"sarcos_inv": np.random.RandomState(0).randn(50, 28)})
    exec(compile(example("datasets.md"), "datasets.md", "exec"), {})
    page = (DOCS / "datasets.md").read_text(encoding="utf-8")
    (spec,) = re.findall(r"'(table\[path=sarcos.*?\]\])'", page)
    dataset = Registry().choose("datasets", spec).build()
    check_dataset(dataset)
    assert len(dataset.tasks) == 7
    assert dataset.input_shape == (21,)


def test_the_schema_page_knows_every_kind_of_task() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "data-schema.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(KINDS)


def test_every_dataset_says_whose_it_is_and_where_to_get_it() -> None:
    for plugin in Registry().plugins("datasets"):
        cls = plugin.load()
        assert cls.licence, plugin.name
        if cls.download:
            assert cls.citation, plugin.name
            assert cls.homepage.startswith("https://"), plugin.name
