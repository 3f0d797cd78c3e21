"""How well batches are mixed, for the memory it takes: our order, buffers as webdataset and open_clip have them, ideal.

A batch is well mixed if its samples come from many shards: neighbours of a shard were often crawled together and look
alike, and a contrastive loss then has negatives of one kind. Nothing is read; the orders alone are compared.
"""

import argparse
import random
from collections.abc import Iterator

import numpy as np

_COLUMNS = ["order", "memory GB", "shards in a batch", "pairs of one shard"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--shard-samples", type=int, default=10_000, help="samples of a shard")
    parser.add_argument("--sample-bytes", type=int, default=110_000, help="size of a sample")
    parser.add_argument("--batch", type=int, default=512, help="samples of a host's batch")
    parser.add_argument("--batches", type=int, default=96, help="batches to look at")
    parser.add_argument("--lanes", type=int, default=8, help="lanes of our order")
    parser.add_argument("--block-bytes", type=int, default=8 * 2**20, help="size of our blocks")
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 24, 32, 128], help="blocks of a window")
    parser.add_argument("--workers", type=int, default=6, help="worker processes of the buffers, each with its own")
    parser.add_argument("--buffers", type=int, nargs="+", default=[5000, 50_000], help="samples in a worker's buffer")


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Draws batches of every order; returns (title, columns, rows)."""
    rows = []
    for window in args.windows:
        batches = our_batches(args, window)
        # At most two windows of each lane: the one in use and the one read ahead.
        rows.append(_row(f"ours, windows of {window} blocks", 2 * args.lanes * window * args.block_bytes, batches))
    for buffer in args.buffers:
        memory = args.workers * buffer * args.sample_bytes
        rows.append(_row(f"buffers of {buffer:,} samples", memory, buffer_batches(args, buffer)))
    everything = np.random.default_rng(0).integers(0, args.shards, (args.batches, args.batch))
    rows.append(_row("ideal: any sample at any time", args.shards * args.shard_samples * args.sample_bytes, everything))
    title = (
        f"batches of {args.batch} from {args.shards:,} shards of {args.shard_samples:,} samples; "
        f"{args.lanes} lanes, {args.workers} workers"
    )
    return title, _COLUMNS, rows


def quality(batches: np.ndarray) -> tuple[float, float]:
    """Returns how mixed batches are.

    Args:
        batches: the shard of each sample, [batches, samples].

    Returns:
        Mean number of distinct shards in a batch, and the share of pairs of its samples that have a common shard.
    """
    distinct, pairs = [], []
    for batch in batches:
        counts = np.unique(batch, return_counts=True)[1]
        distinct.append(len(counts))
        pairs.append((counts * (counts - 1)).sum() / (len(batch) * (len(batch) - 1)))
    return float(np.mean(distinct)), float(np.mean(pairs))


def our_batches(args: argparse.Namespace, window: int) -> np.ndarray:
    """Returns the shards of batches from all over an epoch of the stream's own order, [batches, batch]."""
    from data_pipelines.order.order import Order, epoch_size

    per_block = max(1, args.block_bytes // args.sample_bytes)
    # A shard ends with a smaller block.
    counts = [min(per_block, args.shard_samples - first) for first in range(0, args.shard_samples, per_block)]
    shards = np.repeat(np.arange(args.shards), len(counts))
    table = np.tile(counts, args.shards)
    order = Order([table], ["bench"], [1.0], lanes=args.lanes, window=window, seed=0)
    per_lane = args.batch // args.lanes
    starts = np.linspace(0, epoch_size([table], args.lanes) // args.lanes - per_lane, args.batches).astype(int)
    batches = np.empty((args.batches, args.lanes, per_lane), int)
    for lane in range(args.lanes):  # one after the other, as the order remembers a lane's windows
        for batch, start in zip(batches, starts.tolist()):
            for key, places, samples in order.locate(lane, start, per_lane):
                plan = order.plan(key)
                batch[lane, places] = shards[plan.blocks[plan.block[samples]]]
    return batches.reshape(args.batches, -1)


def buffer_batches(args: argparse.Namespace, buffer: int) -> np.ndarray:
    """Returns the shards of batches from loaders with buffers once they are full, [batches, batch].

    As in webdataset and open_clip: the list of shards is shuffled and dealt to the workers, a worker reads its shards
    one after the other into a buffer from which it draws, and its batches are its own; the workers take turns.
    """
    generator = random.Random(0)
    shards = list(range(args.shards))
    generator.shuffle(shards)
    streams = []
    for worker in range(args.workers):
        samples = (shard for shard in shards[worker :: args.workers] for _ in range(args.shard_samples))
        streams.append(drawn(samples, buffer, generator))
    for stream in streams:
        for _ in range(4 * buffer):  # until the mixture of the buffer no longer changes
            next(stream)
    turns = [streams[i % args.workers] for i in range(args.batches)]
    return np.array([[next(stream) for _ in range(args.batch)] for stream in turns])


def drawn(samples: Iterator[int], buffer: int, generator: random.Random, initial: int = 1000) -> Iterator[int]:
    """Yields the samples in the order of webdataset's `shuffle(buffer, initial)`.

    Two come in for each that goes out until the buffer is full; then it gives a random one for each that comes.
    """
    held = []
    for sample in samples:
        held.append(sample)
        if len(held) < buffer:
            held.extend(take for take in [next(samples, None)] if take is not None)
        if len(held) >= min(initial, buffer):
            place = generator.randint(0, len(held) - 1)
            chosen, held[place] = held[place], held[-1]
            held.pop()
            yield chosen
    while held:
        place = generator.randint(0, len(held) - 1)
        chosen, held[place] = held[place], held[-1]
        held.pop()
        yield chosen


def _row(name: str, memory: int, batches: np.ndarray) -> list:
    distinct, pairs = quality(batches)
    return [name, round(memory / 1e9, 2), round(distinct, 1), round(pairs, 5)]
