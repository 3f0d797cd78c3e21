"""Group near samples, by the embeddings of a model, for batches of hard negatives.

python -m xmodal embed 'shards/*.tar' --model runs/clip --out index
python -m xmodal data neighbours index --size 4 --among captions --below 0.95 --out groups.npy
python train.py --config configs/clip.py:B32 --config.data.sources.train.groups=groups.npy --workdir runs/hard

A batch then holds whole groups, their members side by side; an epoch has every group once, in another order. Every
sample is in one group at most. `--below` keeps copies apart, which would be negatives of one another.
"""

import argparse
import pathlib

from xmodal.commands.search import AMONG
from xmodal.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("index", type=pathlib.Path, metavar="INDEX", help="made by `embed`")
    parser.add_argument("--size", type=int, default=4, metavar="N", help="samples of a group; 4 by default")
    parser.add_argument("--among", choices=AMONG, default="images", help="what is near; images by default")
    parser.add_argument("--below", type=float, metavar="COSINE", help="no two of a group are as near as this")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order in which groups are made")
    parser.add_argument("--out", required=True, metavar="FILE.npy", help="for `groups` of a source")


def run(args: argparse.Namespace) -> None:
    """Makes the groups, says how near their members are, and writes them."""
    import numpy as np

    from data_pipelines.io.storage import Files
    from data_pipelines.order.grouped import write_groups
    from xmodal.search.index import Index
    from xmodal.search.neighbours import mean_cosine, neighbour_groups

    if args.size < 2 or not args.out.endswith(".npy"):
        raise ConfigError(
            f"--size {args.size} --out {args.out}: expected at least 2 samples of a group, and a .npy file"
        )
    index = Index(args.index)
    vectors = index.vectors(AMONG[args.among])
    below = np.inf if args.below is None else args.below
    groups = neighbour_groups(vectors, args.size, below=below, seed=args.seed)
    if not len(groups):
        raise ConfigError(f"no {args.size} of the {len(index):,} samples of {args.index} make a group")
    names = [(record["shard"], record["key"]) for record in index.records()]
    with Files() as files:
        members = [[names[row] for row in group] for group in groups.tolist()]
        write_groups(args.out, members, files, {shard for shard, _ in names})
    chance = np.random.default_rng(args.seed).permutation(len(index))[: groups.size].reshape(groups.shape)
    print(
        f"{len(groups):,} groups of {args.size} {args.among} are in {args.out}; {len(index) - groups.size:,} samples "
        f"are in none. Mean cosine of two of a group {mean_cosine(vectors, groups):.3f}, of any two "
        f"{mean_cosine(vectors, chance):.3f}"
    )
