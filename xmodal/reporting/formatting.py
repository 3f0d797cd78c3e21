"""Numbers as a person reads them: the terminal and the HTML report share these."""

import math
import re

COUNTS = ("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15)
WORDS = {"zero_shot": "zero-shot", "nonfinite": "in a row", "nonfinite_total": "in all"}
TIMES = "\N{MULTIPLICATION SIGN}"


def number(value: float) -> str:
    """Up to four significant digits, thousands separated: `0.0123`, `5.545`, `12,300`."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def compact(value: float) -> str:
    """A large count in three digits: `12.3M`, `86.2M`, `1.28G`."""
    for suffix, unit in reversed(COUNTS):
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:.3g}{suffix}"
    return number(value)


def percent(share: float) -> str:
    """A share 0..1 as percent, with enough digits to tell a small chance level from zero."""
    value = 100 * share
    if not math.isfinite(value):
        return number(value)
    if value == 0 or abs(value) >= 9.95:
        return f"{value:.1f} %"
    return f"{value:.2f} %" if abs(value) >= 0.095 else f"{value:.2g} %"


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m12s`, `2h05m` or `4d06h`."""
    if not math.isfinite(seconds):
        return "?"
    total = max(0, round(seconds))
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{total % 60:02d}s" if minutes else f"{total}s"


def size(count: float) -> str:
    """Bytes in binary units: `139.8 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """A number of things: `1 shard`, `2,000 shards`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def words(name: str) -> str:
    """A key as words: `image_to_text` -> `image → text`, `unseen_vendor` -> `unseen vendor`, `top5` -> `top-5`."""
    name = re.sub(r"^top(\d+)$", r"top-\1", name)
    return WORDS.get(name, name.replace("_to_", " → ").replace("_", " "))


def is_share(metric: str, value: float) -> bool:
    """Whether an evaluation figure is a share 0..1 (recall, accuracy) and is shown as percent."""
    absolute = (
        "rank", "loss", "nll", "perplexity", "norm", "gap", "scale", "bleu", "cider", "fid", "uniformity", "alignment",
        "l2",
    )  # fmt: skip
    return 0.0 <= value <= 1.0 and not any(word in metric.lower() for word in absolute)


def figure(metric: str, value: float) -> str:
    """One evaluation figure: shares as percent, ranks, losses and counts as numbers."""
    return percent(value) if is_share(metric, value) else number(value)


def difference(metric: str, value: float, low: float | None = None, high: float | None = None) -> str:
    """A difference of two figures with its sign and interval: `+1.2 [-0.4, +2.8]`, in percent points of a share."""
    shares = all(is_share(metric, abs(x)) for x in (value, low, high) if x is not None)
    text = lambda x: f"{100 * x:+.1f}" if shares else f"{x:+.4g}"
    return text(value) if low is None else f"{text(value)} [{text(low)}, {text(high)}]"


def between(metric: str, low: float, high: float) -> str:
    """An interval: `[17.9, 21.6]` in percent of a share, without its sign, as it stands behind the figure."""
    if is_share(metric, low) and is_share(metric, high):
        return f"[{', '.join(percent(end).removesuffix(' %') for end in (low, high))}]"
    return f"[{number(low)}, {number(high)}]"


def spread(metric: str, mean: float, deviation: float) -> str:
    """A mean and its deviation: `12.3 ± 0.4 %`; the mean alone where there is no deviation (NaN)."""
    if not math.isfinite(deviation):
        return figure(metric, mean)
    if is_share(metric, mean):
        return f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
    return f"{number(mean)} ± {number(float(f'{deviation:.2g}'))}"
