"""Class names and prompts in the layouts that are in use, and what samples call their classes."""

import json

import numpy as np
import pytest

from data_pipelines.errors import DataError
from xmodal.evaluation.classes import ensemble, fill, number, read_names, read_prompts

CLASSES = ["tench", "goldfish", "great white shark"]
TEMPLATES = ["a photo of a {c}.", "{c}, itap of a {c}."]
CUPL = {name: [f"A {name} swims."] * (i + 1) for i, name in enumerate(CLASSES)}
OTHER = {"cifar10": ["cat", "dog"]}


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("c.txt", "tench\n\n goldfish \r\ngreat white shark\n", ""),
        ("c.txt", "\ufefftench\ngoldfish\ngreat white shark", ""),
        ("c.json", CLASSES, ""),
        ("c.json", {"imagenet1k": CLASSES}, ""),
        ("c.json", {"imagenet1k": CLASSES, **OTHER}, ":imagenet1k"),
        ("c.json", {"imagenet1k": {"classnames": CLASSES, "templates": TEMPLATES}, "cifar10": {}}, ":imagenet1k"),
        ("c.json", {"classnames": CLASSES, "templates": TEMPLATES}, ""),
    ],
)
def test_names_from_a_file(file, name, content, key):
    assert read_names(file(name, content) + key, "classes") == CLASSES
    assert read_names(tuple(CLASSES), "classes") == CLASSES


@pytest.mark.parametrize("place", ["{}", "{c}", "{label}"])
def test_prompts_have_any_of_three_places(file, place):
    prompts = [template.replace("{c}", place) for template in TEMPLATES]
    expected = [[f"a photo of a {name}.", f"{name}, itap of a {name}."] for name in CLASSES]
    for given in (tuple(prompts), file("p.txt", "\n".join(prompts)), file("p.json", {"x": {"templates": prompts}})):
        assert read_prompts(given, CLASSES, "prompts") == expected
    assert fill("a {}", "{c} in braces") == "a {c} in braces", "a name is no template"


@pytest.mark.parametrize(("content", "key"), [(CUPL, ""), ({"imagenet1k": CUPL}, ""), ({"a": CUPL, "b": {}}, ":a")])
def test_prompts_of_each_class(file, content, key):
    found = read_prompts(file("p.json", content) + key, CLASSES, "prompts")
    assert found == [CUPL[name] for name in CLASSES]


def test_the_mean_of_a_class_is_that_of_its_own_prompts():
    rng = np.random.default_rng(0)
    prompts = [rng.normal(size=(n, 5)).astype(np.float32) for n in (1, 3, 2)]
    expected = np.stack([own.mean(axis=0) / np.linalg.norm(own.mean(axis=0)) for own in prompts])
    np.testing.assert_allclose(ensemble(np.concatenate(prompts), [1, 3, 2]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        (["goldfish", "tench", "cod", ""], (), [1, 0, -1, -1]),
        (["1", "002", "7", ""], (), [1, 2, -1, -1]),  # numbers, where no class is called so
        (["n02", "n01", "n03", "n9"], ("n01", "n02", "n03"), [1, 0, 2, -1]),
        (["n02", "n01", "n10", "n02"], "sorted", [1, 0, 2, 1]),  # as torchvision numbers folders
    ],
)
def test_what_samples_call_their_classes(values, labels, expected):
    assert number(values, CLASSES, labels, "x").tolist() == expected


def test_names_that_are_digits_are_names(file):
    assert number(["3", "1"], ["1", "3"], (), "x").tolist() == [1, 0]
    assert number(["b", "a"], ["x", "y"], file("l.txt", "a\nb"), "x").tolist() == [1, 0]
    assert number(["n1", "n2"], ["crane", "crane"], "sorted", "x").tolist() == [0, 1]  # two classes of one name


def test_what_does_not_fit_is_named(file):
    several = file("c.json", {"imagenet1k": CLASSES, **OTHER})
    cases = [
        (lambda: read_names(several, "classes"), "classes: .* holds prompts by class"),
        (lambda: read_names(several + ":imagenet", "classes"), "has no 'imagenet'; did you mean 'imagenet1k'"),
        (lambda: read_names(file("d.json", {"a": [1], "b": []}), "classes"), "no list of texts; it has 'a', 'b'"),
        (lambda: read_names(file("e.json", "{"), "classes"), "classes: .*Expecting"),
        (lambda: read_names("nowhere.txt", "classes"), "classes: no file 'nowhere.txt'"),
        (lambda: read_prompts(("a {lable}",), CLASSES, "prompts"), "'a {lable}' has no place for the class name"),
        (lambda: read_prompts(file("p.json", CUPL), ["trench"], "prompts"), "no prompts of the class 'trench'; did"),
        (lambda: number(["a"], ["crane", "crane"], (), "x"), "classes: 'crane' occurs twice"),
        (lambda: number(["a"], CLASSES, ("n1", "n2"), "x"), "labels: 2 of them for 3 classes"),
        (lambda: number(["a", "b"], CLASSES, "sorted", "x"), "labels: 2 of them for 3 classes"),
        (lambda: number(["cod", ""], CLASSES, (), "x"), "no sample of x has one of the classes 'tench', .*'cod'"),
    ]
    for call, message in cases:
        with pytest.raises(DataError, match=message):
            call()
