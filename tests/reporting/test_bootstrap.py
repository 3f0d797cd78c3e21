"""Intervals are those that scipy computes from the same resamples; the resamples are those of drawing units."""

import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.stats._resampling import BootstrapResult

from xmodal.reporting import bootstrap
from xmodal.reporting.bootstrap import differences, intervals, limits, resample
from xmodal.reporting.scores import Scores, digest_of, flat_figures, read_scores, scores_path, write_scores


def by_scipy(data, statistic, drawn, method, **options):
    """scipy's interval of a distribution that was drawn by us, to the digits to which we tell figures apart."""
    rounded = lambda *parts, axis=-1: np.round(statistic(*parts, axis=axis), 12)
    known = BootstrapResult(None, drawn, None)
    options = options or dict(paired=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = stats.bootstrap(
            data, rounded, n_resamples=0, bootstrap_result=known, method=method, vectorized=True, **options
        )
    return found.confidence_interval


def share(values, axis=-1):
    return np.mean(values, axis=axis)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize(("queries", "rate"), [(300, 0.4), (40, 0.05), (1811, 0.995)])
def test_a_share(queries, rate, method):
    hits = np.random.default_rng(queries).random(queries) < rate
    columns = np.stack([hits, np.ones(queries)], axis=1)
    drawn = resample(columns, bootstrap._ratios).drawn[:, 0]
    expected = by_scipy((hits.astype(float),), share, drawn, method)
    assert intervals(Scores({"R@1": hits}), method)["R@1"] == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_ratio_of_sums_over_units_with_several_queries(method):
    rng = np.random.default_rng(0)
    unit = np.sort(rng.integers(0, 60, 200))  # some images have no caption
    right, tokens = rng.integers(0, 4, 200), rng.integers(4, 9, 200)
    scores = Scores({"hits": right > 1, "tokens": right}, unit=unit, weights={"tokens": tokens})
    there = np.bincount(unit) > 0
    sums = lambda values: np.bincount(unit, values)[there]
    ratio = lambda a, b, axis=-1: np.sum(a, axis=axis) / np.sum(b, axis=axis)
    figures, columns, statistic = bootstrap._plans([scores])[0]
    drawn = resample(columns, statistic).drawn
    found = intervals(scores, method)
    for i, (name, data) in enumerate(
        {"hits": (sums(right > 1), sums(None)), "tokens": (sums(right), sums(tokens))}.items()
    ):
        assert figures[i] == name and scores.figures()[name] == pytest.approx(data[0].sum() / data[1].sum())
        expected = by_scipy(data, ratio, drawn[:, i], method)
        assert found[name] == pytest.approx(tuple(expected), abs=1e-12)


def macro_of(values, group, axis=-1):
    """Mean over groups of the mean within, of any number of resamples."""
    counts = np.stack([np.sum(group == g, axis=axis) for g in range(5)])
    sums = np.stack([np.sum(values * (group == g), axis=axis) for g in range(5)])
    return np.sum(sums / np.maximum(counts, 1), axis=0) / np.sum(counts > 0, axis=0)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_mean_over_classes(method):
    rng = np.random.default_rng(1)
    group = rng.choice(5, 120, p=[0.5, 0.3, 0.15, 0.04, 0.01])  # some resamples lack the rarest
    hits = rng.random(120) < 0.3 + 0.1 * group
    scores = Scores({"top1": hits}, group=group, macro={"mean_per_class": "top1"})
    _, columns, statistic = bootstrap._plans([scores])[1]
    drawn = resample(columns, statistic).drawn[:, 0]
    expected = by_scipy((hits.astype(float), group), macro_of, drawn, method)
    assert intervals(scores, method)["mean_per_class"] == pytest.approx(tuple(expected), abs=1e-12)
    assert scores.figures()["mean_per_class"] == pytest.approx(macro_of(hits, group))


def test_resamples_are_those_of_drawing_units_one_by_one():
    rng = np.random.default_rng(2)
    group, hits = rng.integers(0, 5, 80), rng.random(80) < 0.4
    columns = np.stack([group, hits], axis=1).astype(float)
    ours = resample(columns, bootstrap._macro, 20_000).drawn[:, 0]
    rows = rng.integers(0, 80, (20_000, 80))
    theirs = macro_of(hits[rows].astype(float), group[rows])
    tails = (0.01, 0.025, 0.25, 0.5, 0.75, 0.975, 0.99)
    assert np.quantile(ours, tails) == pytest.approx(np.quantile(theirs, tails), abs=0.006)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.03) and ours.mean() == pytest.approx(theirs.mean(), abs=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    ends = [intervals(Scores({"R@1": rng.random(200) < 0.3}), resamples=1000)["R@1"] for _ in range(400)]
    assert np.mean([low <= 0.3 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.03)


def test_captions_of_an_image_are_not_five_images():
    rng = np.random.default_rng(4)
    hits = np.repeat(rng.random(200) < 0.5, 5)  # all captions of an image agree
    width = lambda ends: ends["R@1"][1] - ends["R@1"][0]
    together, apart = Scores({"R@1": hits}, unit=np.repeat(np.arange(200), 5)), Scores({"R@1": hits})
    assert width(intervals(together)) == pytest.approx(width(intervals(apart)) * 5**0.5, rel=0.05)


def test_where_all_units_agree_the_interval_is_the_exact_one():
    for share in (0, 1):
        expected = stats.binomtest(share * 50, 50).proportion_ci(method="exact")
        found = intervals(Scores({"R@1": np.full(50, bool(share))}))["R@1"]
        assert found == pytest.approx((expected.low, expected.high))
    assert intervals(Scores({"R@1": np.array([True])})) == {}, "one unit says nothing"
    assert intervals(Scores({"R@1": np.zeros(50, bool)}), "none") == {}
    with pytest.raises(ValueError, match="no method 'bcA'"):
        intervals(Scores({"R@1": np.arange(9) < 3}), "bcA")


def test_the_same_scores_give_the_same_interval():
    scores = Scores({"R@1": np.arange(300) % 3 == 0, "R@5": np.arange(300) % 2 == 0}, unit=np.arange(300) // 2)
    assert intervals(scores) == intervals(scores)


# ------------------------------------------------------------------------------------------ differences


def test_a_paired_difference_is_that_of_the_pairs():
    rng = np.random.default_rng(5)
    first = rng.random(500) < 0.5
    second = first ^ (rng.random(500) < 0.05)  # nearly the same answers
    one, other = (Scores({"R@1": hits}, digest="same") for hits in (first, second))
    found = differences(one, other)["R@1"]
    columns = np.stack([first, np.ones(500), second, np.ones(500)], axis=1).astype(float)
    drawn = resample(columns, bootstrap._minus(bootstrap._ratios)).drawn[:, 0]
    expected = by_scipy((second.astype(float) - first,), share, drawn, "bca")
    assert found.paired and (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
    apart = differences(one, Scores({"R@1": second}, digest="another"))["R@1"]
    assert not apart.paired and apart.value == pytest.approx(found.value)
    assert apart.high - apart.low > 2 * (found.high - found.low), "what is hard for both cancels in pairs"


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_difference_of_two_sets(method):
    rng = np.random.default_rng(6)
    first, second = rng.random(300) < 0.3, rng.random(200) < 0.5
    parts = [
        resample(np.stack([x, np.ones(len(x))], axis=1), bootstrap._ratios, seed=i)
        for i, x in enumerate((first, second))
    ]
    drawn = np.round(parts[1].drawn[:, 0] - parts[0].drawn[:, 0], 12)
    minus = lambda a, b, axis=-1: np.mean(b, axis=axis) - np.mean(a, axis=axis)
    expected = by_scipy((first.astype(float), second.astype(float)), minus, drawn, method, paired=False)
    found = differences(Scores({"R@1": first}), Scores({"R@1": second, "R@5": second}), method)
    assert set(found) == {"R@1"} and found["R@1"].clear
    assert (found["R@1"].low, found["R@1"].high) == pytest.approx(tuple(expected), abs=1e-12)


def test_equal_answers_differ_by_exactly_nothing():
    scores = Scores({"top1": np.arange(90) % 4 == 0}, "d", group=np.arange(90) % 3, macro={"mean_per_class": "top1"})
    for found in differences(scores, scores).values():
        assert (found.value, found.low, found.high, found.clear) == (0, 0, 0, False)
    other = Scores(scores.values, "d", group=scores.group + 1, macro=scores.macro)  # other classes are other queries
    assert not differences(scores, other)["top1"].paired


# ------------------------------------------------------------------------------------------ files


def test_scores_come_back_from_disk_in_few_bytes(tmp_path):
    rng = np.random.default_rng(7)
    captions = Scores(
        {f"R@{k}": rng.random(25_000) < k / 10 for k in (1, 5)}, digest_of(["a", "b"]), unit=np.arange(25_000) // 5
    )
    written = Scores(
        {"token_accuracy": np.arange(7), "mean": np.arange(7) / 8}, weights={"token_accuracy": np.full(7, 9)},
        group=np.arange(7) % 2, macro={"m": "mean"},
    )  # fmt: skip
    results = tmp_path / "results.json"
    write_scores(results, {"retrieval/ü/text_to_image": captions, "captioning/x": written})
    assert scores_path(results).name == "results.scores.npz" and scores_path(results).stat().st_size < 24_000
    found = read_scores(results)
    for name, scores in {"retrieval/ü/text_to_image": captions, "captioning/x": written}.items():
        assert found[name].figures() == scores.figures() and intervals(found[name]) == intervals(scores)
        assert (found[name].digest, found[name].macro) == (scores.digest, scores.macro)
    assert flat_figures(found) == flat_figures({"retrieval/ü/text_to_image": captions, "captioning/x": written})
    write_scores(results, {})
    assert read_scores(results) == {} and not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    write_scores(tmp_path / "results.json", {"a/b": Scores({"R@1": np.ones(9, bool)})})
    path = tmp_path / "results.scores.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"results\.scores\.npz cannot be read"):
        read_scores(tmp_path / "results.json")


def test_limits_are_of_as_many_figures_as_there_are():
    columns = np.stack([np.arange(50) % 2, np.ones(50), np.arange(50) % 5 == 0, np.ones(50)], axis=1).astype(float)
    assert limits(resample(columns, bootstrap._ratios)).shape == (2, 2)
