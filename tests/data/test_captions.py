"""Captions come from the .txt member or from templates, by chance that only the row decides."""

import json
import time
from collections import Counter

import pytest
from tiny_inputs import make_rules

from data_pipelines import rng
from data_pipelines.errors import BadSample, DataError
from data_pipelines.rules import Rules
from data_pipelines.text.fields import field_names, lookup

FIELDS = dict(label="Grinning  Face", tags=["smile", "", "Happy", "joy"], labels=dict(de="Gesicht"), n=3, none=None)
WORDS = [int(w) for w in rng.row_words(0, 1000, 4, 0, "caption")[:, 0]]


class Made:
    """Rules over texts alone, and their captions."""

    def __init__(self, rules: Rules):
        self.rules, captions = rules, rules.inputs.caption.captions
        self.read, self.identity, self.signature = rules.read, rules.identity, rules.signature
        self.choose, self.several, self.every = captions.choose, captions.several, captions.every


def make(*templates, group_key="", **text) -> Made:
    return Made(make_rules(group_key, images=False, text=text | dict(templates=templates)))


def record(captions: Made, fields=FIELDS, text=b""):
    members = dict(json=json.dumps(fields).encode(), txt=text)
    found = captions.read(members.get)
    captions.rules.check(found)
    return found


def test_txt_is_cleaned():
    captions = make(lower=True)
    assert captions.choose(record(captions, text="\ufeff A  CAT\n on\ta mat ".encode()), 5) == "a cat on a mat"
    assert make(lower=False).every(record(make(lower=False), text=b" A  Cat")) == ["A Cat"]


def test_basic_cleaning_is_clips():
    text = b"Tom &amp;amp; Jerry&nbsp;&lt;3 caf" + "e\u0301 &#39;x&#39; &#xD800;".encode()
    assert make(clean="basic").every(record(make(clean="basic"), text=text)) == ["tom & jerry <3 caf\u00e9 'x' \ufffd"]
    assert make().every(record(make(), text=b"Tom &amp; e\xcc\x81")) == ["tom &amp; e\u0301"]
    captions = make((1.0, "{label}"), clean="basic", lower=False)
    assert captions.choose(record(captions, dict(label="A &quot;B&quot;")), 0) == 'A "B"'
    with pytest.raises(BadSample, match="empty caption"):  # so that it needs an index of its own
        record(make(clean="basic"), text=b"&nbsp; ")
    assert make(clean="basic").signature != make().signature
    with pytest.raises(DataError, match=r"data\.inputs\.text\.clean is 'basics', not one of .*did you mean 'basic'"):
        make(clean="basics")


@pytest.mark.parametrize("clean", ["none", "basic"])
def test_megabytes_of_caption_cost_no_more_than_a_page(clean):
    captions = make(clean=clean)
    for text in (b"a " * 2**21, b"&#" + b"9" * 2**21, b"&" * 2**21, b"x" * 2**21):
        (caption,) = captions.every(record(captions, text=text))
        assert 8000 < len(caption) <= 2**14 and caption[:4] == text[:4].decode()


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_megabytes_of_caption_are_mended_in_time(clean):
    captions, began = make(clean=clean), time.process_time()
    for text in (b"a\n" * 2**20, b"\xc3\x83\xc2\xa9\n" * 2**18, b"x&" * 2**20, b"x" * 2**21):
        (caption,) = captions.every(record(captions, text=text))
        assert 1000 < len(caption) <= 2**12
    assert time.process_time() - began < 10


def test_names_of_fields_are_given_to_some_depth():
    deep: dict = dict(leaf=1)
    for _ in range(5000):
        deep = dict(a=deep)
    assert field_names(dict(b=deep, c=dict(d=1))) == ["b" + ".a" * 7, "c.d"]


def test_templates_are_chosen_by_weight_and_lists_vary():
    captions = make((3.0, "{label}"), (1.0, "{label}, {tags}"), (0.0, "never {label}"), max_list=2)
    chosen = [captions.choose(record(captions), word) for word in WORDS]
    assert chosen == [captions.choose(record(captions), word) for word in WORDS]
    counts = Counter(chosen)
    assert abs(counts["grinning face"] / len(chosen) - 0.75) < 0.05
    tags = Counter(tuple(text.split(", ")[1:]) for text in chosen)
    # One or two of three entries, in any order: 3 + 6 outcomes beside no tags at all.
    assert len(tags) == 10 and {len(t) for t in tags} == {0, 1, 2}
    singles = sum(n for t, n in tags.items() if len(t) == 1)
    assert abs(singles / (len(chosen) - tags[()]) - 0.5) < 0.1


def test_dotted_fields_numbers_and_braces():
    captions = make((1.0, "{{{labels.de}}} {n}"))
    assert captions.choose(record(captions), 1) == "{gesicht} 3"
    assert lookup({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert lookup({"a": {"b": 2}}, "a.c") is None
    assert field_names(FIELDS) == ["label", "tags", "labels.de", "n", "none"]


def test_captions_without_chance():
    captions = make((1.0, "{label}"), (1.0, "{label}: {tags}"), max_list=2)
    assert captions.every(record(captions)) == ["grinning face", "grinning face: smile, happy"]
    several = make((1.0, "{tags}"), max_list=1)
    assert several.every(record(several)) == ["smile", "happy", "joy"]
    assert {several.choose(record(several), word) for word in WORDS} == {"smile", "happy", "joy"}


def test_several_captions_differ_while_there_are_others():
    captions = make((1.0, "{tags}"), max_list=1)
    drawn = [captions.several(record(captions), word, 2) for word in WORDS]
    assert all(first == captions.choose(record(captions), word) for (first, _), word in zip(drawn, WORDS))
    assert sum(first == second for first, second in drawn) < 0.01 * len(drawn)  # eight draws of three
    assert min(Counter(map(tuple, drawn)).values()) > 130, "all pairs of different ones, equally often"
    assert set(captions.several(record(captions), 5, 3)) == {"smile", "happy", "joy"}
    found = captions.several(record(captions), 5, 5)
    assert len(found) == 5 and found[3:] == found[:2] and len(set(found)) == 3
    one = make()
    assert one.several(record(one, text=b"a cat"), 7, 2) == ["a cat", "a cat"]


def test_a_template_without_its_field_is_passed_over():
    captions = make((1.0, "{label}"), (1.0, "{tags}"))
    for empty in ([], None, "", ["", None]):
        found = record(captions, dict(label="x", tags=empty))
        assert {captions.choose(found, word) for word in WORDS} == {"x"}
    for fields in ({}, dict(label={"a": "b"}), dict(label=" ")):
        with pytest.raises(BadSample, match="empty caption"):
            record(captions, fields)


def test_group_key():
    captions = make((1.0, "{label}"), group_key="labels.de")
    assert captions.identity(record(captions)) == "Gesicht"
    assert make(group_key="n").identity(record(make(group_key="n"), text=b"x")) == "3"
    assert make((1.0, "{label}")).identity(record(captions)) is None
    with pytest.raises(BadSample, match="no group key"):
        record(captions, dict(label="x"))


@pytest.mark.parametrize("content", [b"{", b"[]", b"1", b"\xff", b'{"a":' * 100_000])
def test_bad_json(content):
    with pytest.raises(BadSample, match="bad json"):
        make((1.0, "{label}")).read(dict(json=content).get)


def test_half_a_surrogate_pair_is_replaced():
    captions = make((1.0, "{label}"))
    captions.choose(captions.read(dict(json=b'{"label": "a \\ud83d b"}').get), 0).encode("utf-8")


def test_rules_have_their_own_index():
    signatures = [make().signature, make((1.0, "{a}")).signature, make((1.0, "{b}")).signature]
    signatures += [make(group_key="a").signature]
    assert len(set(signatures)) == 4
    assert make((1.0, "{a}"), lower=False).signature == make((2.0, "{a}"), max_list=2).signature


@pytest.mark.parametrize(
    "templates",
    [("{label}",), ((1.0, "{}"),), ((1.0, "{a!r}"),), ((1.0, "{a:3}"),), ((-1, "{a}"),), ((1, " "),), ((0, "{a}"),)],
)
def test_malformed_templates(templates):
    with pytest.raises(DataError, match=r"data\.inputs\.text\.templates"):
        make(*templates)
