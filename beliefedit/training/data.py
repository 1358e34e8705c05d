"""Documents as tokens on disk, and the batches that training reads from them.

A batch depends on the seed and its number alone, so a resumed run continues where the killed one
stopped, and every process of a parallel run knows the whole batch.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerFast

from beliefedit.config import PretrainingConfig
from beliefedit.errors import TrainingError
from beliefedit.lm.prefix_tree import build_prefix_trees

_ROW_LENGTHS = 32, 1024
_SLICE = 20_000  # documents tokenized at once
_PACKED_TOGETHER = 4096  # documents, at least
_LARGEST_PART = 65_536  # documents, for the sake of memory
_LEAST_SHARED = 2  # tokens: what shares the start token alone packs better apart
_PADDING = np.array([0, 0, -1, 0, 0])  # in the order of `Batch.arrays`
_ORDER_STREAM = 11


@dataclass(frozen=True)
class Documents:
    """Tokenized documents: each begins as prompts do and ends with the end token."""

    tokens: np.ndarray  # [n_tokens], unsigned integers on disk
    starts: np.ndarray  # int64 [n_documents + 1], where each document begins

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n_documents]"""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Batch:
    """Rows of `PrefixTrees` trees: a document is a path in a tree, and equal context_templates
    stand once.

    Arrays are int64 [rows, length] but for the members.
    """

    ids: np.ndarray
    positions: np.ndarray
    parents: np.ndarray  # the place in the row that predicts this token; -1: none
    ends: np.ndarray  # tokens from place i on and before ends[i] attend to i; 0 for padding
    counts: np.ndarray  # how many documents this token belongs to; 0 for padding
    members: np.ndarray  # int64, the documents read, by their number in the corpus

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What `TrainingLoss` takes."""
        return self.ids, self.positions, self.parents, self.ends, self.counts

    @property
    def n_tokens(self) -> int:
        """Tokens of the documents."""
        return int(self.counts.sum())

    @property
    def n_computed(self) -> int:
        """Tokens computed: those that documents share counted once."""
        return int((self.counts > 0).sum())

    @property
    def n_targets(self) -> int:
        """Tokens of the documents that are predicted."""
        return int(self.counts[self.parents >= 0].sum())

    def share(self, rank: int, n_processes: int) -> Batch:
        """The rows of one process."""
        return Batch(*(array[rank::n_processes] for array in self.arrays), self.members)


def encode_documents(source: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Documents:
    """Tokenize the column ``text`` of a Parquet file, or of all in a folder, to ``tokens.bin``.

    The tokenizer's start token goes before and its end token after each document.

    Raises:
        TrainingError: no documents.
    """
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    folder.mkdir(parents=True, exist_ok=True)
    lengths = [np.zeros(1, dtype=np.int64)]
    with open(folder / "tokens.bin", "wb") as file:
        for texts in _texts(source):
            # The corpus repeats sentences: each distinct one is tokenized once.
            distinct = texts.unique(maintain_order=True)
            place = texts.replace_strict(distinct, range(len(distinct))).to_numpy()
            encoded = tokenizer(distinct.to_list(), return_attention_mask=False)["input_ids"]
            rows = [np.array([*ids, tokenizer.eos_token_id], dtype=dtype) for ids in encoded]
            lengths.append(np.array([len(row) for row in rows], dtype=np.int64)[place])
            np.concatenate([rows[row] for row in place]).tofile(file)
    starts = np.concatenate(lengths).cumsum()
    if len(starts) == 1:
        raise TrainingError("there are no documents to train on", where=str(source),
                            hint="run the corpus stage")
    return Documents(np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"), starts)


def _texts(source: Path) -> Iterator[pl.Series]:
    for file in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
        frame = pl.scan_parquet(file).select("text")
        for first in range(0, frame.select(pl.len()).collect().item(), _SLICE):
            yield frame.slice(first, _SLICE).collect()["text"]


def pack_best_fit(lengths: np.ndarray, sequence_length: int,
                  rng: np.random.Generator) -> list[list[int]]:
    """Numbers of documents, or trees of them, a list per row: the longest that still fits.

    Lengths are 1 to ``sequence_length``. Rows come out by falling length, then ``rng`` shuffles
    them.
    """
    of_length: list[list[int]] = [[] for _ in range(sequence_length + 1)]
    for number, length in enumerate(lengths.tolist()):
        of_length[length].append(number)
    # A bit for each length that is still there.
    left = sum(1 << length for length, numbers in enumerate(of_length) if numbers)
    rows: list[list[int]] = []
    while left:
        row, space = [], sequence_length
        while fitting := left & ((2 << space) - 1):
            length = fitting.bit_length() - 1
            row.append(of_length[length].pop())
            if not of_length[length]:
                left ^= 1 << length
            space -= length
        rows.append(row)
    return [rows[number] for number in rng.permutation(len(rows))]


class Batches:
    """Endless batches: passes over the chosen documents, each in an order drawn from seed and pass.

    The first passes may be over the shortest documents alone (`PretrainingConfig.n_short_epochs`).

    Args:
        documents, chosen: what to read, and int64, the numbers of those that are read.
        training: sizes of rows and batches; documents longer than a row are cut. Without a
            ``sequence_length`` rows are as long as the longest document; packed ones at most 1024.
        packed: several whole documents to a row; else one, padded at random on the left.
        seed: decides order and padding.
    """

    def __init__(self, documents: Documents, chosen: np.ndarray, training: PretrainingConfig, *,
                 packed: bool, seed: int) -> None:
        self.documents, self.chosen, self.training = documents, chosen, training
        self.packed, self.seed = packed, seed
        shortest, longest = _ROW_LENGTHS
        self.sequence_length = training.sequence_length or max(shortest, min(
            int(documents.lengths.max()), longest if training.packed else sys.maxsize))
        self.n_rows = (max(1, training.batch_tokens // self.sequence_length) if packed
                       else training.batch_size)
        self.starts = np.asarray(documents.starts[:-1])[chosen]
        self.lengths = np.minimum(documents.lengths[chosen], self.sequence_length)
        self.short = self.lengths <= np.quantile(self.lengths, training.short_fraction)

    def read(self, n_pass: int = 0, place: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """(pass, place within the pass, batch) from there on."""
        while True:
            rng = np.random.default_rng([self.seed, _ORDER_STREAM, n_pass])
            order = rng.permutation(len(self.chosen))
            if n_pass < self.training.n_short_epochs:
                order = order[self.short[order]]
            batches = self._packed(order, rng) if self.packed else self._padded(order, rng)
            for number, batch in enumerate(batches):
                if number >= place:
                    yield n_pass, number, batch
            n_pass, place = n_pass + 1, 0

    def _ids(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [n, length], tokens padded on the right; int64 [n], how many)"""
        lengths = self.lengths[documents]
        within = np.arange(lengths.max())
        inside = within < lengths[:, None]
        ids = np.zeros(inside.shape, dtype=np.int64)
        ids[inside] = self.documents.tokens[(self.starts[documents][:, None] + within)[inside]]
        return ids, lengths

    def _packed(self, order: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of one shape: the last is filled up from the beginning of its pass."""
        begun, waiting = [], []
        n_parts = self.training.prefix_groups_per_epoch or len(order)
        part = min(-(-len(order) // n_parts), _LARGEST_PART)
        together = part * -(-_PACKED_TOGETHER // part)
        for first in range(0, len(order), together):
            waiting += self._rows(order[first:first + together], part, rng)
            begun = begun or waiting[:self.n_rows]
            while len(waiting) >= self.n_rows:
                yield _joined(waiting[:self.n_rows])
                del waiting[:self.n_rows]
        if waiting:
            yield _joined([*waiting, *islice(cycle(begun), self.n_rows - len(waiting))])

    def _rows(self, documents: np.ndarray, part: int, rng: np.random.Generator) -> list[tuple]:
        """Parts of so many documents as trees in rows: of each its `Batch.arrays` and members."""
        forest = build_prefix_trees(*self._ids(documents),
                                    self.sequence_length,
                                    min_shared_prefix=_LEAST_SHARED,
                                    kinds=np.arange(len(documents)) // part)
        packed = pack_best_fit(forest.sizes, self.sequence_length, rng)
        trees = np.concatenate(packed)
        row = np.repeat(np.arange(len(packed)), [len(members) for members in packed])
        sizes = forest.sizes[trees]
        before = sizes.cumsum() - sizes
        offset = before - before[np.searchsorted(row, row)]  # where in its row a tree begins
        nodes, of_node = forest.nodes_of(trees), np.repeat(np.arange(len(trees)), sizes)
        shift = (offset - forest.starts[:-1][trees])[of_node]
        shape = len(packed), len(_PADDING), self.sequence_length
        arrays = np.broadcast_to(_PADDING[:, None], shape).copy()
        parents = forest.parents[nodes]
        arrays[row[of_node], :, nodes + shift] = np.stack(
            [forest.tokens[nodes], forest.depths[nodes], np.where(parents < 0, -1, parents + shift),
             forest.ends[nodes] + shift, forest.counts[nodes]], axis=1)
        row_of = np.empty(len(trees), dtype=np.int64)
        row_of[trees] = row
        members = row_of[forest.tree]
        by_row = members.argsort(kind="stable")
        borders = np.searchsorted(members[by_row], np.arange(1, len(packed)))
        return list(zip(arrays, np.split(self.chosen[documents[by_row]], borders), strict=True))

    def _padded(self, order: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
        """One document a row; random padding varies positions, which are the places in the row."""
        for first in range(0, len(order), self.n_rows):
            documents = np.take(order, range(first, first + self.n_rows), mode="wrap")
            ids, lengths = self._ids(documents)
            place = np.arange(ids.shape[1])
            offset = rng.integers(0, len(place) - lengths + 1)[:, None]
            within = place - offset
            inside = (within >= 0) & (within < lengths[:, None])
            yield Batch(
                ids=np.where(inside, np.take_along_axis(ids, within.clip(0, place[-1]), axis=1), 0),
                positions=np.where(inside, place, 0),
                parents=np.where(inside & (within > 0), place - 1, -1),
                ends=np.where(inside, offset + lengths[:, None], 0), counts=inside.astype(np.int64),
                members=self.chosen[documents])


def _joined(rows: list[tuple]) -> Batch:
    arrays, members = zip(*rows, strict=True)
    return Batch(*np.stack(arrays, axis=1), np.concatenate(members))


def prefetch(batches: Iterator) -> Generator:
    """The same batches, the next one made in a thread while the last is in use.

    Without it a fast GPU waits for each batch. The thread ends when the generator is closed.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches)
        while True:
            batch, coming = coming.result(), thread.submit(next, batches)
            yield batch
