import numpy as np
import pandas as pd
import pytest

from sweep.common.errors import UserError
from sweep.common.expressions import evaluate, mask, parse

ROW = {"n": 4, "x": 2.5, "kind": "wsd", "flag": True, "gone": None}
FRAME = pd.DataFrame(
    {
        "n": [1, 4, 9],
        "x": [0.5, 2.5, np.nan],
        "kind": ["wsd", "cosine", None],
        "flag": [True, False, True],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n > 3", True),
        ("1 < n <= 4", True),
        ("1 < n < 4", False),
        ("n * x == 10 and not kind == 'cosine'", True),
        ("n in (1, 2, 3)", False),
        ("kind in ('wsd', 'cosine') or n > 100", True),
        ("n not in (1, 2)", True),
        ("-n ** 2 == -16", True),
        ("n // 3 == 1 and n % 3 == 1 and n / 8 == 0.5", True),
        ("flag", True),
        ("flag and x - 2 > 0.4", True),
        ("gone > 1", False),
        ("gone == 1 or n == 4", True),
        ("2k * n == 8_000 and 2.5M == 2.5e6 and n < 1e3k", True),
        ("kind != '30k' and kind not in (\"2M\",)", True),
        ("kind != 'wsd'", False),
        ("gone != 'bad' and gone not in ('bad',)", True),
        ("gone == 'bad' or not gone != 'bad'", False),
    ],
)
def test_one_row(text, expected):
    assert evaluate(parse(text), ROW) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n >= 4", [False, True, True]),
        ("0.5 <= x < 3", [True, True, False]),
        ("x != 0.5", [False, True, True]),  # a missing value is no value that could be named
        ("x < 0.5 or x >= 0.5", [True, True, False]),  # and is in no other comparison
        ("x != 'bad'", [True, True, True]),
        ("kind == 'wsd' or n == 9", [True, False, True]),
        ("kind != 'wsd'", [False, True, True]),
        ("not flag", [False, True, False]),
        ("n in (1, 9)", [True, False, True]),
        ("1 < 2", [True, True, True]),
        ("n ** 0.5 > 1.9 and flag", [False, False, True]),
    ],
)
def test_table(text, expected):
    assert mask(parse(text), FRAME).tolist() == expected


def test_rows_and_tables_agree():
    for text in ("n > 1 and x < 5", "kind in ('wsd',)", "not (n < 4) or flag"):
        rows = [evaluate(parse(text), row) for row in FRAME.to_dict("records")]
        assert mask(parse(text), FRAME).tolist() == rows


def test_names_and_text():
    expression = parse("  b < a and a in (1, c) ")
    assert expression.names == ("a", "b", "c")
    assert expression.text == "b < a and a in (1, c)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "n >",
        "__import__('os').system('true')",
        "n.real > 1",
        "kind[0] == 'w'",
        "(lambda: n)() > 1",
        "[x for x in (1, 2)]",
        "n if x else 2",
        "(n := 3) > 1",
        "f'{n}' == '4'",
        "n is 4",
        "n in kind",
        "n & 3 == 0",
        "n > 1" + " and n > 1" * 500,
        "(" * 300 + "n" + ")" * 300,
        "n == None",
    ],
)
def test_refused(text):
    with pytest.raises(UserError) as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["m > 3", "9.0 ** 9 ** 9 > n", "n", "n + 1", "kind > 3", "kind * n == 1", "n and x"])
def test_refused_on_a_row(text):
    with pytest.raises(UserError):
        evaluate(parse(text), ROW)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(UserError, match="'m'; there is flag, kind, n, x"):
        mask(parse("m > 3"), FRAME)
    with pytest.raises(UserError, match=r"names 'flags'; did you mean flag\? there is flag, kind, n, x"):
        mask(parse("flags"), FRAME)
    with pytest.raises(UserError, match="compare it"):
        mask(parse("n + 1"), FRAME)


def test_any_column_can_be_named():
    frame = pd.DataFrame(
        {"eval/loss": [3.0, 5.0], "a b": ["x", "y"], "c-d": [1.0, 2.0], "c": [9.0, 1.0], "e.f": [1, 2]}
    )
    for text, expected in {
        "eval/loss < 4": [True, False],
        "a b == 'y' and e.f > 1": [False, True],
        "c-d == 1 and c > 1": [True, False],
        "`a b` in ('x', 'eval/loss')": [True, False],
    }.items():
        assert mask(parse(text, list(frame)), frame).tolist() == expected, text
    both = frame.assign(d=1.0)
    assert mask(parse("c-d == 8", list(both)), both).tolist() == [True, False]  # c minus d, where both are columns
    assert mask(parse("`c-d` == 2", list(both)), both).tolist() == [False, True]
    with pytest.raises(UserError, match="names 'g h'"):
        mask(parse("`g h` > 1", list(frame)), frame)
