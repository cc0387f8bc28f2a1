"""Specs: the grammar, typed values, errors that help, and that formatting and reading are inverse."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, List, Literal, Optional, Union  # noqa: UP035 - the old forms are read too

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlbench.errors import MtlbenchError
from mtlbench.spec import (
    Parameter,
    Spec,
    bind,
    by_task,
    convert,
    describe,
    format_by_task,
    format_spec,
    format_value,
    parameters,
    split,
)

if TYPE_CHECKING:
    from nowhere import Hidden


class MGDA:
    def __init__(
        self,
        normalize: Literal["none", "l2", "loss", "loss+"] = "none",
        solver: Optional[str] = None,  # noqa: UP045
    ) -> None: ...


class Many:
    def __init__(
        self,
        encoder: Hidden,
        tasks: Hidden,
        experts: int,
        lr: float = 1,
        flag: bool = False,
        weights: Sequence[float] | None = None,
        sizes: List[int] = [],  # noqa: B006, UP006
        pair: tuple[int, str] = (1, "a"),
        either: Union[int, str] = 0,  # noqa: UP007
        free=None,
        *more: int,
        **rest: int,
    ) -> None: ...


def bound(text: str, cls: type = Many) -> dict[str, Any]:
    return bind(Spec.parse(text), cls, ("encoder", "tasks"), "architecture 'many'")


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("mmoe", "mmoe", ()),
        (" mmoe ", "mmoe", ()),
        ("mmoe[]", "mmoe", ()),
        ("hf:swin", "hf", (("name", "swin"),)),
        ("hf:a/b-c.d[x=1]", "hf", (("name", "a/b-c.d"), ("x", "1"))),
        ("dselect-k[k=2]", "dselect-k", (("k", "2"),)),
        ("a[x=1, y = [1,2,[3]] ]", "a", (("x", "1"), ("y", "[1,2,[3]]"))),
        ("ema[of=nash[k=3],alpha=0.9]", "ema", (("of", "nash[k=3]"), ("alpha", "0.9"))),
        ("a[x='p,]q',y=\"it's\"]", "a", (("x", "'p,]q'"), ("y", '"it\'s"'))),
    ],
)
def test_parses(text: str, name: str, arguments: tuple[tuple[str, str], ...]) -> None:
    spec = Spec.parse(text)
    assert spec == Spec(name, arguments)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a name at position 1"),
        ("[a=1]", "expected a name at position 1"),
        ("mmoe[experts=3", "the '[' at position 5 is never closed"),
        ("mmoe[experts=[1,2]", "the '[' at position 5 is never closed"),
        ("mmoe[experts=[1,2", "the '[' at position 14 is never closed"),
        ("mmoe[a='x]", "the ' at position 8 is never closed"),
        ("mmoe[a=1]]", "unexpected ']' at position 10"),
        ("mmoe]", "unexpected ']' at position 5"),
        ("mmoe experts", "unexpected ' ' at position 5"),
        ("mmoe[3]", "expected key=value at position 6, found '3'"),
        ("mmoe[a=1,,b=2]", "nothing before the comma or bracket"),
        ("mmoe[a=1,]", "nothing before the comma or bracket"),
        ("mmoe[a=]", "parameter 'a' has no value"),
        ("mmoe[a=1,a=2]", "parameter 'a' is given twice"),
    ],
)
def test_malformed_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(MtlbenchError) as caught:
        Spec.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


def test_parameters_leave_out_what_the_user_does_not_give() -> None:
    found = parameters(Many, ("encoder", "tasks"))
    assert [p.name for p in found] == ["experts", "lr", "flag", "weights", "sizes", "pair", "either", "free"]
    assert found[0] == Parameter("experts", int, None, required=True)
    assert found[1] == Parameter("lr", float, 1, required=False)
    assert found[-1] == Parameter("free", Any, None, required=False)
    assert parameters(object, ()) == ()


def test_bind_gives_all_parameters_typed_in_the_constructors_order() -> None:
    values = bound("many[weights=[1,2.5],experts=3,pair=[4,b],either=x,free=[1,true,none,a]]")
    assert values == {
        "experts": 3,
        "lr": 1,
        "flag": False,
        "weights": (1.0, 2.5),
        "sizes": [],
        "pair": (4, "b"),
        "either": "x",
        "free": [1, True, None, "a"],
    }
    assert list(values) == [p.name for p in parameters(Many, ("encoder", "tasks"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mgda[normalise=l2]",
            "unknown parameter 'normalise'. Did you mean 'normalize'? Parameters: normalize, solver",
        ),
        (
            "mgda[normalize=l3]",
            """parameter 'normalize' must be one of "none", "l2", "loss", "loss+", found 'l3'. Did""",
        ),
        ("mgda[solver=[1]]", "parameter 'solver' must be str or none, found '[1]'"),
    ],
)
def test_bind_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(MtlbenchError) as caught:
        bind(Spec.parse(text), MGDA, ("tasks",), "weighting 'mgda'")
    assert str(caught.value).startswith("weighting 'mgda': " + message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "parameter 'experts' is required and must be int. Parameters: experts, lr"),
        ("many[experts=three]", "parameter 'experts' must be int, found 'three'"),
        ("many[experts=3.0]", "parameter 'experts' must be int, found '3.0'"),
        ("many[experts=1_0]", "parameter 'experts' must be int, found '1_0'"),
        ("many[experts=3,flag=1]", "parameter 'flag' must be true or false, found '1'"),
        ("many[experts=3,lr=fast]", "parameter 'lr' must be float, found 'fast'"),
        ("many[experts=3,weights=0.5]", "parameter 'weights' must be list of float or none, found '0.5'"),
        ("many[experts=3,pair=[1]]", "parameter 'pair' must be list [int, str], found '[1]'"),
        ("many[experts=3,tasks=3]", "unknown parameter 'tasks'."),
    ],
)
def test_bind_refuses_wrong_types(text: str, message: str) -> None:
    with pytest.raises(MtlbenchError) as caught:
        bound(text)
    assert str(caught.value).startswith("architecture 'many': " + message)


def test_a_plugin_without_parameters_says_so() -> None:
    with pytest.raises(
        MtlbenchError, match=r"^weighting 'ew': unknown parameter 'a'\. It takes no parameters$"
    ):
        bind(Spec.parse("ew[a=1]"), object, (), "weighting 'ew'")


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(
        MtlbenchError, match=r"annotation 'Hidden' of parameter 'tasks' cannot be resolved \(Name"
    ):
        parameters(Many, ("encoder",))


def test_dataclasses_are_read_like_any_constructor() -> None:
    @dataclass
    class Plain:
        alpha: float
        beta: Sequence[int] = (1, 2)

    assert bind(Spec.parse("plain[alpha=1]"), Plain, ()) == {"alpha": 1.0, "beta": (1, 2)}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (bool, "true or false"),
        (int | None, "int or none"),
        (None | int, "int or none"),
        (Literal["a", 3, None], 'one of "a", 3, none'),
        (Sequence[float], "list of float"),
        (list, "list"),
        (tuple[int, ...], "list of int"),
        (tuple[int, float], "list [int, float]"),
        (Any, "any value"),
    ],
)
def test_describes_what_is_allowed(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (1e-4, "0.0001"),
        (float("inf"), "inf"),
        ("loss+", "loss+"),
        ("none", "'none'"),
        ("3", "'3'"),
        ("", "''"),
        ("it's", "'it''s'"),
        ("a,b", "'a,b'"),
        ("nash[k=3]", "nash[k=3]"),
        ("nash[k=3", "'nash[k=3'"),
        ((1, [2.0, "x"]), "[1,[2.0,x]]"),
    ],
)
def test_formats(value: object, text: str) -> None:
    assert format_value(value) == text


def test_what_has_no_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a dict cannot be written in a spec"):
        format_value({})


def test_format_spec_keeps_the_order() -> None:
    assert format_spec("ew", {}) == "ew"
    assert format_spec("m", {"b": 1, "a": (1.0, None)}) == "m[b=1,a=[1.0,none]]"


TEXTS = st.text(st.sampled_from(string.ascii_letters + string.digits + "[]'\",=+-._ \n\\é") | st.characters())
FLOATS = st.floats(allow_nan=False)
INTS = st.integers()
CASES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, INTS),
    (float, FLOATS),
    (bool, st.booleans()),
    (str, TEXTS),
    (None, st.none()),
    (str | None, TEXTS | st.none() | st.just("none")),
    (str | int | float | bool | None, TEXTS | INTS | FLOATS | st.booleans() | st.none()),
    (Literal["none", "3", 3, None, True, "true"], st.sampled_from(["none", "3", 3, None, True, "true"])),
    (Literal["none"] | float | None, st.sampled_from(["none", None, 1.5])),
    (list[str], st.lists(TEXTS)),
    (list[str] | list[int], st.lists(TEXTS) | st.lists(INTS)),
    (tuple[float, ...] | str, st.lists(FLOATS).map(tuple) | TEXTS),
    (tuple[int, str], st.tuples(INTS, TEXTS)),
    (Sequence[Sequence[int] | None], st.lists(st.lists(INTS).map(tuple) | st.none()).map(tuple)),
    (Any, st.recursive(TEXTS | INTS | FLOATS | st.booleans() | st.none(), st.lists, max_leaves=8)),
]


@pytest.mark.parametrize(("annotation", "values"), CASES, ids=[str(annotation) for annotation, _ in CASES])
@given(data=st.data())
def test_formatting_and_reading_are_inverse(annotation: Any, values: Any, data: st.DataObject) -> None:
    value = data.draw(values)
    again = convert(format_value(value), annotation)
    assert again == value
    assert repr(again) == repr(value)  # 1 is not True, 0.0 is not -0.0
    # ... and so within a spec, beside other arguments.
    spec = Spec.parse(format_spec("name", {"a": value, "b": value}))
    assert spec.name == "name"
    assert [convert(text, annotation) for _, text in spec.arguments] == [value, value]


@given(text=TEXTS)
def test_parsing_never_fails_with_anything_but_our_error(text: str) -> None:
    try:
        spec = Spec.parse(text)
    except MtlbenchError:
        return
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unet", None),
        ("unet[depth=3,width=4]", None),
        ("a=unet", {"a": "unet"}),
        (
            " a = aspp[rates=[6,12,18]] , my task=vgg16[weights='x,y=z']",
            {"a": "aspp[rates=[6,12,18]]", "my task": "vgg16[weights='x,y=z']"},
        ),
        ("a=hf:swin,b=unet", {"a": "hf:swin", "b": "unet"}),
    ],
)
def test_specs_by_task(text: str, expected: dict[str, str] | None) -> None:
    assert by_task(text) == expected
    if expected is not None:
        assert by_task(format_by_task(expected)) == expected


@pytest.mark.parametrize("text", ["a=b,c", "c,a=b", "=b,c=d", "a=,b=c", "a=b,a=c", "a=b,,c=d", "a=b[x=1,c=d"])
def test_wrong_specs_by_task_are_one_line(text: str) -> None:
    with pytest.raises(MtlbenchError, match=r"^cannot read") as caught:
        by_task(text)
    assert "\n" not in str(caught.value)


def test_a_list_is_split_outside_brackets_and_quotes() -> None:
    assert split("a, b[c,d] ,'e,f'") == ["a", "b[c,d]", "'e,f'"]
    assert split("") == []
