"""Tables and the page of `data stats`: lengths, sizes, shapes, repetitions and fields of a data set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipelines.examine.distributions import Distribution
from data_pipelines.examine.survey import Survey
from data_pipelines.sources.measures import LIKENESS
from xmodal.reporting.bars import histogram, share_bar
from xmodal.reporting.formatting import TIMES, compact, number, percent, size
from xmodal.reporting.markup import Markup, el, join
from xmodal.reporting.messages import Message, in_chinese, reason, say, term
from xmodal.reporting.page import card, document, table

_QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
_MOST = 5  # repeated things shown of a kind


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a source without looking at its samples.

    Attributes:
      samples: usable ones.
      bytes: size of its shards.
      shards: number of them.
      skipped: reason -> samples left out.
      share: of the stream.
    """

    samples: int
    bytes: int
    shards: int
    skipped: Mapping[str, int]
    share: float


@dataclass(frozen=True)
class Stats:
    """Everything that is shown.

    Attributes:
      title: what the data are called.
      facts: of each source.
      surveys: of the samples of each source that were looked at.
      whole: of all of them.
      length: tokens of a caption.
      size: pixels of an image.
    """

    title: str
    facts: Mapping[str, SourceFacts]
    surveys: Mapping[str, Survey]
    whole: Survey
    length: int
    size: int

    @property
    def samples(self) -> int:
        """Usable samples of all sources."""
        return sum(facts.samples for facts in self.facts.values())

    def as_json(self) -> dict:
        """Returns everything as json has it."""
        sources = {}
        for name, facts in self.facts.items():
            found = self.surveys[name].summary()
            sources[name] = {**vars(facts), "looked_at": found.pop("samples"), **found}
        return dict(
            data=self.title, samples=self.samples, text_length=self.length, image_size=self.size,
            together=self.whole.summary(), sources=sources,
        )  # fmt: skip


_FIELD_COLUMNS = list(map(term, ("field", "filled", "type", "examples")))
Table = tuple[str, list[str], list[list]]


def tables(stats: Stats) -> list[Table]:
    """Returns (title, columns, rows) of all tables, as text."""
    found = [_sources(stats), _numbers(stats), _duplicates(stats)]
    return [*found, *([_fields(stats)] if stats.whole.fields else [])]


def render(stats: Stats) -> str:
    """Returns the page."""
    whole, looked = stats.whole, stats.whole.samples
    counts = dict(looked=looked, samples=stats.samples, sources=len(stats.facts))
    if looked < stats.samples:
        parts = say("{looked:,} of {samples:,} samples looked at · sources: {sources}", **counts)
    else:
        parts = say("{looked:,} samples looked at · sources: {sources}", **counts)
    header = el(
        "header",
        el("p", say("xmodal data"), class_="eyebrow"),
        el("h1", stats.title),
        el("p", parts, class_="soft"),
        el("div", list(_cards(stats)), class_="cards"),
    )
    images = join(el("div", _image_plots(stats), class_="charts"), _formats(whole))
    sections = [
        (say("Sources"), join(table(*_sources(stats)[1:], "narrow"), _left_out(stats))),
        (say("Captions"), el("div", _caption_plots(stats), class_="charts")),
        *([(say("Images"), images)] if whole.kinds else []),
        (say("Lengths and sizes"), table(*_numbers(stats)[1:], "narrow")),
        (say("Duplicates"), join(table(*_duplicates(stats)[1:], "narrow"), _most(whole))),
    ]
    if whole.fields:
        sections.append((say("Fields"), _field_table(stats)))
    note = say("Numbers are those of the samples looked at.")
    return document(say("{title} data", title=stats.title), header, sections, note, ("report.css", "data.css"))


def _cards(stats: Stats) -> list[Markup]:
    whole = stats.whole
    middle = f"{whole.characters.quantile(0.5):,.0f}"
    cards = [
        card(say("usable samples"), compact(stats.samples), size(sum(facts.bytes for facts in stats.facts.values()))),
        card(term("caption"), say("{count} characters", count=middle), say("median")),
    ]
    if whole.tokens.count:
        cut = percent(whole.cut / whole.tokens.count)
        cards.append(card(say("captions cut"), cut, say("longer than {count} tokens", count=stats.length)))
    repeats = {kind: percent(repeats.share) for kind, repeats in whole.repeats.items()}
    if not whole.kinds:  # texts alone
        return [*cards, card(term("same caption"), repeats["caption"], say("as an earlier sample"))]
    small = percent(whole.small / max(1, whole.shorter.count))
    side = f"{whole.width.quantile(0.5):,.0f} {TIMES} {whole.height.quantile(0.5):,.0f}"
    cards.append(card(term("image"), side, say("median width and height")))
    cards.append(card(say("enlarged"), small, say("shorter side below {side} pixels", side=stats.size)))
    cards.append(card(term("same caption"), repeats["caption"], say("same image {share}", share=repeats["image"])))
    if whole.transparent:
        share = percent(whole.transparent / max(1, whole.shorter.count))
        cards.append(card(say("transparent"), share, say("of the images")))
    return cards


def _sources(stats: Stats) -> Table:
    rows = []
    for name, facts in stats.facts.items():
        found = stats.surveys[name]
        counts = [sum(facts.skipped.values()), found.samples, sum(found.bad.values())]
        row = [name, percent(facts.share), f"{facts.samples:,}", f"{facts.shards:,}", size(facts.bytes)]
        rows.append([*row, *(f"{count:,}" for count in counts)])
    columns = ["source", "share of the stream", "samples", "shards", "size", "left out", "looked at", "bad images"]
    return "sources", list(map(term, columns)), rows


def _left_out(stats: Stats) -> Markup | None:
    rows = [[name, reason(why), f"{n:,}"] for name, facts in stats.facts.items() for why, n in facts.skipped.items()]
    rows += [
        [name, say("{reason} (found now)", reason=reason(why)), f"{n:,}"]
        for name, found in stats.surveys.items()
        for why, n in found.bad.items()
    ]
    columns = list(map(term, ("source", "reason", "samples")))
    return join(el("h3", say("Left out")), table(columns, rows, "narrow")) if rows else None


def _caption_plots(stats: Stats) -> list[Markup | None]:
    whole = stats.whole
    cut = (say("cut at {count}", count=stats.length), float(stats.length) + 1)
    return [
        histogram(say("characters of a caption"), whole.characters),
        histogram(say("tokens of a caption, special tokens included"), whole.tokens, reference=cut),
    ]


def _image_plots(stats: Stats) -> list[Markup | None]:
    whole, side = stats.whole, (say("seen at {side}", side=stats.size), float(stats.size))
    return [
        histogram(say("shorter side in pixels"), whole.shorter, log=True, reference=side),
        histogram(
            say("aspect ratio, width / height"),
            whole.aspect,
            log=True,
            whole=False,
            text=lambda v: f"{v:.2g}",
            reference=(say("square"), 1.0),
        ),
        histogram(say("size of the file"), whole.bytes, log=True, whole=False, text=_round_size, base=1024),
    ]


def _round_size(value: float) -> str:
    return size(value).replace(".0 ", " ")


def _formats(whole: Survey) -> Markup:
    count = max(1, sum(whole.kinds.values()))
    parts = [f"{kind} {percent(n / count)}" for kind, n in whole.kinds.most_common()]
    return el("p", " · ".join(parts), class_="soft")


def _numbers(stats: Stats) -> Table:
    whole = stats.whole
    lines: list[tuple[str, Distribution]] = [
        ("caption characters", whole.characters),
        ("caption tokens", whole.tokens),
        ("image width", whole.width),
        ("image height", whole.height),
        ("shorter side", whole.shorter),
        ("width / height", whole.aspect),
        ("image bytes", whole.bytes),
    ]
    columns = [term("of a sample"), term("mean"), "min", *(f"{100 * q:.0f} %" for q in _QUANTILES), "max"]
    rows = [
        [term(name), *(_figure(v) for v in (d.mean, d.low, *(d.quantile(q) for q in _QUANTILES), d.high))]
        for name, d in lines
        if d.count
    ]
    return "lengths and sizes", columns, rows


def _figure(value: float) -> str:
    return number(value) if value < 1000 else f"{value:,.0f}"


def _duplicates(stats: Stats) -> Table:
    groups = {**stats.surveys, **({term("together"): stats.whole} if len(stats.surveys) > 1 else {})}
    rows = [
        [name, *(_copies(found.repeats[kind].share) for kind in LIKENESS), _basis(found)]
        for name, found in groups.items()
    ]
    columns = list(map(term, ("copies of an earlier sample", *(f"same {kind}" for kind in LIKENESS), "among")))
    return "duplicates", columns, rows


def _copies(share: float) -> str:
    return "" if math.isnan(share) else percent(share)  # of samples without keys


def _basis(found: Survey) -> str:
    kept = min(repeats.kept for repeats in found.repeats.values())
    if kept < 1:
        return say("{count:,} samples, estimated from 1 in {part:.0f}", count=found.samples, part=1 / kept)
    return say("{count:,} samples", count=found.samples)


def _most(whole: Survey) -> Markup | None:
    rows = [
        [term(f"same {kind}"), f"{copies:,} {TIMES}", example]
        for kind in LIKENESS
        for copies, example in whole.repeats[kind].most(_MOST)
    ]
    return join(el("h3", say("Most often")), table(["", "", say("the first of them")], rows, "list")) if rows else None


def _fields(stats: Stats) -> Table:
    rows = [
        [name, percent(found.filled / max(1, stats.whole.samples)), _kinds(found), " | ".join(found.examples)]
        for name, found in _sorted_fields(stats)
    ]
    return "json fields", _FIELD_COLUMNS, rows


def _field_table(stats: Stats) -> Markup:
    rows = []
    for name, found in _sorted_fields(stats):
        share = found.filled / max(1, stats.whole.samples)
        examples = [el("span", example, class_="sample", dir="auto") for example in found.examples]
        rows.append([el("code", name), join(share_bar(share), percent(share)), _kinds(found), join(examples)])
    return table(_FIELD_COLUMNS, rows, "list")


def _sorted_fields(stats: Stats) -> list:
    return sorted(stats.whole.fields.items(), key=lambda item: (-item[1].filled, item[0]))


def _kinds(found) -> str:
    names = dict(str="text", int="integer", float="number", bool="true or false", list="list", dict="object")
    kinds = [term(names.get(kind, kind)) for kind, _ in found.kinds.most_common()]
    return Message(", ".join(kinds), "、".join(map(in_chinese, kinds)))
