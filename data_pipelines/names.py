"""Names of samples: SHARD/KEY, with folders in front of the shard where other data have shards of the same name.

Every img2dataset output has a `00000.tar` with the key `000000000`: file name and key do not tell
samples of two data sets from each other. A shard's label is the end of its path: its file name where that is enough,
`cc3m/00000.tar` where it is not, and so on. Labels do not depend on where the data lie as a whole.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

_TWINS = ".unpacked"  # the folder of what compressed shards were unpacked to, beside them


def parts_of(shard: str) -> tuple[str, ...]:
    """Returns the parts of the path of a shard or list, folders first."""
    return tuple(part for part in shard.split("/") if part != _TWINS)


def label_at(parts: Sequence[str], depth: int) -> str:
    """Returns the last `depth` parts of a path as a label; of a shorter path all."""
    return "/".join(parts[-depth:])


def shard_labels(shards: Iterable[str], least: int = 1) -> dict[str, str]:
    """Returns for each shard the shortest end of its path that no other shard has.

    Args:
        shards: paths or urls, as samples have them; equal ones are one shard.
        least: parts of a label; 2 names the folder, too.
    """
    left, labels, depth = {shard: parts_of(shard) for shard in shards}, {}, least
    while left:
        ends = {shard: label_at(parts, depth) for shard, parts in left.items()}
        count = Counter(ends.values())
        done = {shard: end for shard, end in ends.items() if count[end] == 1 or depth >= len(left[shard])}
        labels |= done
        left = {shard: parts for shard, parts in left.items() if shard not in done}
        depth += 1
    return labels


def sample_name(shard: str, key: str, labels: dict[str, str]) -> str:
    """Returns the name of a sample; `labels` are those of the data it is one of, see `shard_labels`; {} of it alone."""
    return f"{labels.get(shard) or label_at(parts_of(shard), 1)}/{key}"
