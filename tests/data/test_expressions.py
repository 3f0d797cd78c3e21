"""Filter expressions: what they say of records, how they are written canonically, and what is wrong with bad ones."""

import json

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.text.expressions import parse

FIELDS = json.loads("""{
    "similarity": 0.31, "width": 640, "height": 480, "nsfw": false, "safe": true, "lang": "en", "label": "a red flag",
    "tags": ["red", "flag", 3], "exif": {"model": "X100", "iso": "400"}, "text_number": " 0.31 ", "text_false": "False",
    "text_true": "TRUE", "empty": "", "none": null, "nan": NaN, "zero": 0, "id": 9007199254740993, "clip-score": 2,
    "a.b": 1, "nothing": [], "text_id": "9007199254740993", "not": 5
}""")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("similarity > 0.28 and width >= 200", True),
        ("similarity>0.28 and width>=200 and not nsfw", True),
        ("similarity > 0.32 or width < 640", False),
        ("width > height", True),
        ("400 <= height < width", True),
        ("400 <= height < 480", False),
        ("width == 640.0 and width == 6.4e2 and zero > -1 and zero >= .0", True),
        ("width == 1_000", False),
        ("id == 9007199254740993 and text_id == 9007199254740993", True),
        ("id == 9007199254740992 or text_id == 9007199254740992", False),
        ("lang in ('en', \"de\")", True),
        ("lang not in ['de', 'fr',]", True),
        ("lang == 'EN'", False),
        ("lang < 'fr' and lang != 'de'", True),
        ("label contains 'flag' and label contains 'red fl'", True),
        ("tags contains 'fla'", False),
        ("'flag' in tags and 3 in tags and '3' in tags", True),
        ("'blue' not in tags and tags not contains 'blue'", True),
        ("exif.model == 'X100' and exif.iso >= 400", True),
        ("a.b == 1 and `clip-score` == 2 and `not` == 5", True),
    ],
)
def test_conditions(text, expected):
    assert parse(text).test(FIELDS) is expected


@pytest.mark.parametrize(("text", "expected"), [
    ("true or false and false", True),
    ("(true or false) and false", False),
    ("not false and false", False),
    ("not (false and false)", True),
    ("not not true", True),
    ("not safe == false", True),
])  # fmt: skip
def test_precedence(text, expected):
    assert parse(text).test(FIELDS) is expected


@pytest.mark.parametrize("name", ["none", "nan", "missing", "exif.missing", "label.missing"])
def test_what_is_missing_fails_every_comparison(name):
    name = f"`{name}`"
    for comparison in (
        "> 0",
        "< 0",
        "== 0",
        "!= 0",
        "== ''",
        "!= 'x'",
        "in (0, '')",
        "contains ''",
        "== width",
        "!= null",
    ):
        assert not parse(f"{name} {comparison}").test(FIELDS), comparison
        assert parse(f"not {name} {comparison}").test(FIELDS)
    assert not parse(name).test(FIELDS)
    for comparison in ("== null", "in ('en', null)", "not in (0, 1)"):
        assert parse(f"{name} {comparison}").test(FIELDS), comparison


def test_texts_are_read_as_numbers_and_booleans():
    for text in ("text_number == 0.31", "text_number < 1", "text_number == similarity", "text_true", "not text_false",
                 "text_true == true", "text_false == false", "not empty", "label", "width", "not zero", "not nothing",
                 "exif", "safe == 1", "nsfw == 0", "width == '640'", "tags"):  # fmt: skip
        assert parse(text).test(FIELDS), text
    for text in ("label > 3", "label == 3", "tags == 'red'", "tags > 1", "exif == true", "label < true"):
        assert not parse(text).test(FIELDS), text
    for text in ("label != 3", "tags != 'red'", "exif != 1"):
        assert parse(text).test(FIELDS), text
    assert not parse("a == 1").test({"a": "1" * 5000}) and parse("a > 1e300").test({"a": 10**400})


def test_canonical_form():
    assert str(parse("( a>1 )and((b)  and not(c=='x\"y\\\\'))")) == 'a > 1 and b and not c == "x\\"y\\\\"'
    assert str(parse("a and (b or c) or not (d and e)")) == "a and (b or c) or not (d and e)"
    assert str(parse("1 < a <= 2.50")) == "1 < a and a <= 2.5"
    assert str(parse("'x' not in tags or `b c` in [1e3, true, null,]")) == (
        'not tags contains "x" or `b c` in (1000, true, null)'
    )
    assert parse(" a  ==  'x' ") == parse('(a == "x")') != parse("a == 'y'")
    assert parse("b.c > 1 and a contains d or 2 in (1, 2)").fields == ("a", "b.c", "d")


def random_condition(rng: np.random.Generator, depth: int) -> str:
    kind = rng.integers(8 if depth else 5)
    operand = lambda: rng.choice(
        ["similarity", "`clip-score`", "exif.iso", "3", "-2.5e-3", "'a \\\\ \\'b'", '"q\'"', "true"]
    )
    if kind < 2:
        return f"{operand()} {rng.choice(['<', '<=', '>', '>=', '==', '!='])} {operand()}"
    if kind < 5:
        return rng.choice(
            [f"{operand()} in ('x', 3, null)", f"tags contains {operand()}", "nsfw == null", "not safe", "nsfw"]
        )
    a, b = random_condition(rng, depth - 1), random_condition(rng, depth - 1)
    return [f"({a}) and {b}", f"{a} or ({b})", f"not ({a})"][kind - 5]


def test_canonical_form_means_the_same():
    rng = np.random.default_rng(0)
    for _ in range(300):
        condition = parse(random_condition(rng, 3))
        again = parse(str(condition))
        assert again == condition and str(again) == str(condition)
        assert again.test(FIELDS) == condition.test(FIELDS)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("similarity >> 0.3", "expected `and`, `or`, a comparison", 11),
        ("a && b", "got '&&'; did you mean 'and'", 2),
        ("a = 3", "did you mean '=='", 2),
        ("a AND b", "did you mean 'and'", 2),
        ("a adn b", "did you mean 'and'", 2),
        ("! a", "expected a condition, got '!'; did you mean 'not'", 0),
        ("nsfw == False", "did you mean 'false'", 8),
        ("nsfw == None", "did you mean 'null'", 8),
        ("lang in (en)", "texts stand in quotes", 9),
        ("lang in 'en'", "expected values in brackets", 8),
        ("lang in ()", "expected a value, got '\\)'", 9),
        ("lang in ('en' 'de')", "expected `,` or `\\)`", 14),
        ("lang in ('en']", "expected `,` or `\\)`", 13),
        ("(a or b", "expected `and`, `or` or `\\)`", 7),
        ("a or b)", "or the end, got '\\)'", 6),
        ("a >", "expected a field or a value", 3),
        ("a > null", "null can only be compared", 2),
        ("a contains null", "nothing contains null", 11),
        ("null in a", "nothing contains null", 0),
        ("'a' contains 'b'", "expected a field before `contains`", 0),
        ("contains 'b'", "expected a condition, got 'contains'", 0),
        ("a not b", "after `not`", 6),
        ("clip-score > 3", "backquotes: `clip", 4),
        ("3abc > 1", "backquotes: `clip", 0),
        ("a > 1e999", "too large", 4),
        ("a == 'x", "not closed", 5),
        ("a == 'x\\n'", "not closed", 5),
        ("3", "expected a comparison", 1),
        ("__import__('os')", "or the end, got '\\('", 10),
        ("a\nand b c", "got 'c'", 6),
    ],
)
def test_what_is_wrong_is_shown_at_its_place(text, message, place):
    with pytest.raises(DataError, match=message) as caught:
        parse(text, where="data.filter")
    first, line, caret = str(caught.value).split("\n")
    assert first.startswith("data.filter: ") and line.strip() == text.split("\n")[-1]
    assert caret == "  " + " " * place + "^"


def test_sizes_are_bounded():
    assert parse("(" * 50 + "a" + ")" * 50).test(dict(a=1))
    for text in ("(" * 51 + "a" + ")" * 51, "not " * 60 + "a"):
        with pytest.raises(DataError, match="at most 50"):
            parse(text)
    with pytest.raises(DataError, match="at most 4096"):
        parse("a or " * 1000 + "a")
    with pytest.raises(DataError, match="empty condition"):
        parse(" \n")
    with pytest.raises(DataError, match="more than 200"):
        parse("a." * 200 + "a")
    with pytest.raises(DataError) as caught:  # of a long line, the surroundings
        parse("a or " * 100 + "a = 3" + " or b" * 100)
    assert "a = 3" in str(caught.value) and len(str(caught.value)) < 500
    assert parse(" or ".join(["a"] * 800)).test(dict(a=1))
