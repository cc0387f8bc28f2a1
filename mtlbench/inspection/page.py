"""All pictures of a run: made, and written to a folder with their numbers and a page that shows them."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtlbench.atomic import replacing, translated
from mtlbench.contracts import SplitName
from mtlbench.inspection import history, inside, learning, style
from mtlbench.inspection.learning import Pair
from mtlbench.inspection.passes import look
from mtlbench.inspection.picture import Picture
from mtlbench.inspection.predictions import predictions
from mtlbench.inspection.subject import Subject
from mtlbench.results import Comparison, Record

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .2rem; }}
p {{ max-width: 46rem; margin: .2rem 0 .8rem; color: #555; }}
img {{ max-width: 100%; height: auto; }}
</style>
<h1>{title}</h1>
<p>{subtitle}</p>
"""


def pictures(
    record: Record,
    comparison: Comparison,
    pairs: Sequence[Pair],
    subject: Subject | None,
    split: SplitName,
    images: Sequence[int] | None,
) -> Iterator[Picture]:
    """Yield every picture that a run gives, to be rendered in the house style.

    pairs: the run with all its seeds, each beside its baselines. subject: the run's model; None: only
    what the record alone tells.
    """
    for found in (
        history.verdict(record, comparison),
        learning.together(pairs),
        history.gradients(record),
        history.curves(record),
    ):
        if found is not None:
            yield found
    if subject is None:
        return
    seen = look(subject, split, images)
    yield from predictions(seen)
    for found in (inside.gates(seen), inside.mixing(seen)):
        if found is not None:
            yield found
    yield from inside.attention(seen)
    yield from inside.features(seen)


def write(
    folder: Path,
    kind: style.Format,
    record: Record,
    comparison: Comparison,
    pairs: Sequence[Pair],
    subject: Subject | None,
    split: SplitName,
    images: Sequence[int] | None,
) -> list[Path]:
    """Write the pictures, their numbers and ``index.html`` into ``folder``, and return the paths.

    Equal runs give equal bytes. What is in the folder under other names is left alone.
    """
    spec = record.values["spec"]
    title = (
        f"{spec['architecture']['name']} + {spec['weighting']['name']} on {record.values['data']['title']}"
    )
    subtitle = f"Run {record.run_id}, seed {spec['seed']}; tasks: {', '.join(spec['tasks'])}"
    page = [_HEAD.format(title=html.escape(title), subtitle=html.escape(subtitle))]
    written = []
    with style.house():
        for picture in pictures(record, comparison, pairs, subject, split, images):
            content = style.render(picture.figure, kind)
            written += [
                _write(folder / f"{picture.name}.{kind}", content),
                _write(folder / f"{picture.name}.json", picture.dumps().encode()),
            ]
            mime = "image/png" if kind == "png" else "image/svg+xml"
            data = base64.b64encode(content).decode()
            page.append(
                f"<h2>{html.escape(picture.title)}</h2>\n<p>{html.escape(picture.caption)}</p>\n"
                f'<img alt="{html.escape(picture.title)}" src="data:{mime};base64,{data}">\n'
            )
    return [*written, _write(folder / "index.html", "".join(page).encode())]


def _write(path: Path, content: bytes) -> Path:
    with (
        translated(f"can't write '{path}'", "name another folder with -o"),
        replacing(path) as descriptor,
        os.fdopen(os.dup(descriptor), "wb") as file,
    ):
        file.write(content)
    return path
