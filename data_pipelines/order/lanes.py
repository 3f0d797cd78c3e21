"""Deals the samples of a mixture to lanes: which lane takes which of them, and how many of its source it had before.

A slot is one sample for every lane, a round of a source as many consecutive samples of it as there are lanes. Every
lane must get exactly one sample of each slot, so that batches divide evenly, and exactly one of each round, so that all
lanes come through a source alike and its epochs are exact. With slots and rounds as the vertices of a bipartite graph
and the samples as its edges, lanes are colours of edges that differ wherever edges meet. All vertices have `lanes`
edges; therefore `lanes` colours suffice (König 1916), and alternating chains find them. All rounds end where the
pattern of the mixture has come as often as there are lanes: from there on, everything repeats.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines.order.interleave import Interleave


class Deal:
    """The samples of an interleave, dealt to lanes: a closed form of (lane, slot).

    Args:
        interleave: the sources of all samples, in the order in which they are dealt: a slot takes the next `lanes`.
        lanes: number of lanes.
    """

    def __init__(self, interleave: Interleave, lanes: int):
        self._counts, self._lanes = interleave.counts, lanes
        self._source = _dealt(interleave.pattern, len(self._counts), lanes)
        self._turn = np.empty(self._source.shape, np.int32)
        self._rounds = []  # of each source, the lanes in the order in which they come; [rounds, lanes]
        for which, count in enumerate(self._counts.tolist()):
            here = self._source == which
            turns = (np.cumsum(here, axis=0, dtype=np.int32) - 1)[here]
            self._turn[here] = turns
            order = np.argsort(turns, kind="stable")  # by round, then by slot and lane
            self._rounds.append(np.nonzero(here)[1][order].reshape(count, lanes))

    def locate(self, lane: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each slot of a lane, and how many samples of it the lane had before; both [slots]."""
        cycle, place = np.divmod(slots, len(self._source))
        source = self._source[place, lane].astype(np.int64)
        return source, cycle * self._counts[source] + self._turn[place, lane]

    def taken(self, slots: int) -> np.ndarray:
        """Returns how many samples of each source every lane has in the first so many slots; int64 [lanes, sources]."""
        cycle, place = divmod(slots, len(self._source))
        here = self._source[:place, :, None] == np.arange(len(self._counts))
        return cycle * self._counts + here.sum(0)

    def turns(self, source: int, taken: int) -> np.ndarray:
        """Returns how many of the first so many samples of a source every lane has; int64 [lanes]."""
        full, rest = divmod(taken, self._lanes)
        turns = np.full(self._lanes, full)
        turns[self._rounds[source][full % self._counts[source]][:rest]] += 1
        return turns


def _dealt(pattern: np.ndarray, sources: int, lanes: int) -> np.ndarray:
    """Returns the source of every slot of every lane until all repeats; [slots, lanes]."""
    slots = len(pattern)
    rows = np.arange(slots * lanes).reshape(slots, lanes)
    needs = (pattern[rows % slots][..., None] == np.arange(sources)).sum(1)
    colours, taken, number, source_of = _Colours(slots, lanes), [0] * sources, {}, []
    for slot, need in enumerate(needs.tolist()):
        parts = []  # (round, samples of it in this slot)
        for source, count in enumerate(need):
            while count:
                turn, place = divmod(taken[source], lanes)
                part = min(count, lanes - place)
                if (source, turn) not in number:
                    number[source, turn] = slots + len(source_of)
                    source_of.append(source)
                parts.append((number[source, turn], part))
                taken[source] += part
                count -= part
        colours.add(slot, parts)
    return colours.table(np.array(source_of, np.min_scalar_type(sources)))


class _Colours:
    """A colouring of the edges between slots (the first vertices) and rounds (all others); sets of lanes are bit masks.

    Args:
        slots: number of slots.
        lanes: number of colours.
    """

    def __init__(self, slots: int, lanes: int):
        self._slots, self._lanes, self._all = slots, lanes, 2**lanes - 1
        self._edges: list[dict[int, int]] = [{} for _ in range(2 * slots)]  # there are as many rounds as slots
        self._free = [self._all] * (2 * slots)  # lanes that a vertex has no edge of

    def add(self, slot: int, parts: Sequence[tuple[int, int]]) -> None:
        """Gives lanes to all samples of a slot, named as (round, number of samples)."""
        spare = lambda part: self._free[part[0]].bit_count() - part[1]
        for turn, count in sorted(parts, key=spare):  # rounds that can use few lanes choose first
            both = self._free[slot] & self._free[turn]
            easy = min(count, both.bit_count())
            self._give(slot, turn, _lowest(both, easy))
            for _ in range(count - easy):
                self._give(slot, turn, self._make_free(slot, turn))

    def table(self, source_of: np.ndarray) -> np.ndarray:
        """Returns the source of every slot of every lane, given that of every round; [slots, lanes]."""
        edges = [(slot, turn, mask) for slot in range(self._slots) for turn, mask in self._edges[slot].items()]
        slot, turn, masks = zip(*edges)
        size = -(-self._lanes // 8)
        packed = np.frombuffer(b"".join(mask.to_bytes(size, "little") for mask in masks), np.uint8)
        edge, lane = np.nonzero(np.unpackbits(packed.reshape(-1, size), axis=1, bitorder="little"))
        table = np.empty((self._slots, self._lanes), source_of.dtype)
        table[np.array(slot)[edge], lane] = source_of[np.array(turn)[edge] - self._slots]
        return table

    def _give(self, slot: int, turn: int, lanes: int) -> None:
        for a, b in ((slot, turn), (turn, slot)):
            self._edges[a][b] = self._edges[a].get(b, 0) | lanes
            self._free[a] ^= lanes

    def _make_free(self, slot: int, turn: int) -> int:
        """Returns a lane that both vertices have free, which takes an exchange.

        Lane a is free in the slot and b in the round. From the round on, edges of lanes a and b in turn make a chain,
        which cannot come to the slot, as it would have to by an edge of lane a. Along the chain, a and b change places.
        """
        a, b = _lowest(self._free[slot], 1), _lowest(self._free[turn], 1)
        vertex, lane, chain = turn, a, []
        while not self._free[vertex] & lane:
            following = next(other for other, lanes in self._edges[vertex].items() if lanes & lane)
            chain.append((vertex, following))
            vertex, lane = following, a ^ b ^ lane
        for v, w in chain:
            self._edges[v][w] ^= a | b
            self._edges[w][v] ^= a | b
        self._free[turn] ^= a | b
        self._free[vertex] ^= a | b
        return a


def _lowest(mask: int, count: int) -> int:
    """Returns the lowest `count` bits of a mask that are set."""
    rest = mask
    for _ in range(count):
        rest &= rest - 1
    return mask ^ rest
