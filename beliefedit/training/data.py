"""Documents as tokens on disk, and the batches that training reads from them.

A batch depends only on the seed and its number. So a resumed run reads the same batches as an
uninterrupted one, and every process of a parallel run knows the whole batch.
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
from beliefedit.store import Stream

_SEQUENCE_LENGTHS = 32, 1024  # shortest and longest by default
_SLICE = 20_000  # documents tokenized at once
_PACKED_TOGETHER = 4096  # documents, at least
_MAX_GROUP = 65_536  # documents, to limit memory
_MIN_SHARED_PREFIX = 2  # tokens: trees that share only the start token would pack worse
_ARRAYS = "ids", "positions", "parents", "ends", "counts"  # in the order of `Batch.arrays`
_PADDING = np.array([0, 0, -1, 0, 0])  # the same


@dataclass(frozen=True)
class Documents:
    """Tokenized documents, each with the start token of prompts and the end token."""

    tokens: np.ndarray  # [n_tokens], unsigned integers on disk
    starts: np.ndarray  # int64 [n_documents + 1], where each document begins

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [n_documents]."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Batch:
    """Rows of prefix trees: a document is a path in a tree, and shared prefixes occur once.

    All arrays but ``document_ids`` are int64 [rows, length].
    """

    ids: np.ndarray
    positions: np.ndarray
    parents: np.ndarray  # index in the row of the token that predicts this one; -1: none
    ends: np.ndarray  # tokens i to ends[i] - 1 of the row attend to token i; 0 for padding
    counts: np.ndarray  # number of documents with this token; 0 for padding
    document_ids: np.ndarray  # int64, the documents of the batch, by their number in the corpus

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays [rows, length]."""
        return self.ids, self.positions, self.parents, self.ends, self.counts

    def inputs(self, *, length_multiple: int = 1, n_multiple: int = 1) -> dict[str, np.ndarray]:
        """The arguments of `TrainingLoss`: the arrays, ``sources`` and ``n_predicted``.

        ``sources`` (int64 [n]) are the tokens that predict others, as indices of the flattened
        rows, and ``n_predicted`` (int64 [n]) the number of tokens of documents that each predicts.

        Args:
            length_multiple: padding makes the rows a multiple of this long, so that batches have
                few shapes.
            n_multiple: and n a multiple of this.
        """
        columns = -(-self.ids.shape[1] // length_multiple) * length_multiple
        arrays = {name: np.pad(array, ((0, 0), (0, columns - array.shape[1])),
                               constant_values=value)
                  for name, array, value in zip(_ARRAYS, self.arrays, _PADDING, strict=True)}
        parents, counts = arrays["parents"], arrays["counts"]
        row, column = np.nonzero(parents >= 0)
        source = row * columns + parents[row, column]
        n_predicted = np.bincount(source, weights=counts[row, column], minlength=parents.size)
        sources = np.flatnonzero(n_predicted)
        n_predicted = n_predicted[sources].astype(np.int64)
        padding = 0, -len(sources) % n_multiple
        return arrays | {"sources": np.pad(sources, padding),
                         "n_predicted": np.pad(n_predicted, padding)}

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the documents."""
        return int(self.counts.sum())

    @property
    def n_unique_tokens(self) -> int:
        """Number of tokens computed; tokens of shared prefixes count once."""
        return int((self.counts > 0).sum())

    @property
    def n_targets(self) -> int:
        """Number of tokens of the documents that are predicted."""
        return int(self.counts[self.parents >= 0].sum())

    def share(self, rank: int, n_processes: int) -> Batch:
        """The rows of one process."""
        return Batch(*(array[rank::n_processes] for array in self.arrays), self.document_ids)


def encode_documents(source: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Documents:
    """Tokenize the column ``text`` of a Parquet file or of all files of a folder to ``tokens.bin``.

    Each document gets the start token before and the end token after it.

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
            row_of = texts.replace_strict(distinct, range(len(distinct))).to_numpy()
            encoded = tokenizer(distinct.to_list(), return_attention_mask=False)["input_ids"]
            rows = [np.array([*ids, tokenizer.eos_token_id], dtype=dtype) for ids in encoded]
            lengths.append(np.array([len(row) for row in rows], dtype=np.int64)[row_of])
            np.concatenate([rows[row] for row in row_of]).tofile(file)
    starts = np.concatenate(lengths).cumsum()
    if len(starts) == 1:
        raise TrainingError("there are no documents to train on", where=str(source),
                            hint="run the corpus stage")
    return Documents(np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"), starts)


def sequence_length(documents: Documents, training: PretrainingConfig) -> int:
    """Tokens of a row: as configured, or those of the longest document, packed at most 1024."""
    shortest, longest = _SEQUENCE_LENGTHS
    return training.sequence_length or max(shortest, min(
        int(documents.lengths.max()), longest if training.packed else sys.maxsize))


def _texts(source: Path) -> Iterator[pl.Series]:
    for file in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
        frame = pl.scan_parquet(file).select("text")
        for first in range(0, frame.select(pl.len()).collect().item(), _SLICE):
            yield frame.slice(first, _SLICE).collect()["text"]


def pack_best_fit(lengths: np.ndarray, sequence_length: int,
                  rng: np.random.Generator) -> list[list[int]]:
    """Best-fit packing (arXiv 2404.10830): numbers of documents, or of trees, a list per row.

    Each row takes the longest document that still fits, until none does. Lengths are 1 to
    ``sequence_length``. ``rng`` shuffles the finished rows.
    """
    of_length: list[list[int]] = [[] for _ in range(sequence_length + 1)]
    for number, length in enumerate(lengths.tolist()):
        of_length[length].append(number)
    # A bit for each length with documents left.
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
    """Endless batches: epochs over the chosen documents, in an order that depends on the seed.

    The first epochs may read only the shortest documents (`PretrainingConfig.n_short_epochs`), and
    only those of a curriculum (`PretrainingConfig.curriculum`).

    Args:
        documents: the corpus.
        chosen: int64, the numbers of the documents to read.
        training: sizes of rows and batches; documents longer than a row are truncated. Without a
            ``sequence_length`` rows are as long as the longest document; packed rows at most 1024.
        packed: several whole documents per row; else one, with random padding on the left.
        plain: a row is one document without padding on the left, for models that cannot read
            prefix trees.
        seed: determines order and padding.
        curriculum: bool [n_documents], the documents of the first epochs; None: all.
    """

    def __init__(self, documents: Documents, chosen: np.ndarray, training: PretrainingConfig, *,
                 packed: bool, seed: int, curriculum: np.ndarray | None = None,
                 plain: bool = False) -> None:
        self.documents, self.chosen, self.training = documents, chosen, training
        self.packed, self.plain, self.seed = packed, plain, seed
        self.sequence_length = sequence_length(documents, training)
        self.n_rows = (max(1, training.batch_tokens // self.sequence_length) if packed
                       else training.batch_size)
        self.starts = np.asarray(documents.starts[:-1])[chosen]
        self.lengths = np.minimum(documents.lengths[chosen], self.sequence_length)
        self.short = self.lengths <= np.quantile(self.lengths, training.short_fraction)
        self.early = np.ones(len(chosen), dtype=bool) if curriculum is None else curriculum[chosen]

    def read(self, epoch: int = 0, index: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """(epoch, index of the batch in the epoch, batch), from the given epoch and index.

        Raises:
            TrainingError: no document is left for an epoch.
        """
        while True:
            rng = np.random.default_rng([self.seed, Stream.DOCUMENT_ORDER, epoch])
            order = rng.permutation(len(self.chosen))
            if epoch < self.training.n_short_epochs:
                order = order[self.short[order]]
            if epoch < self.training.curriculum:
                order = order[self.early[order]]
            if not len(order):
                raise TrainingError(f"no document is left for epoch {epoch + 1}, which takes only "
                                    "short documents or documents without downstream facts",
                                    where="pretraining.curriculum",
                                    hint="set it to 0, or corpus.sentences_per_doc to 1")
            packed = self.packed and not self.plain
            batches = self._packed(order, rng) if packed else self._padded(order, rng)
            for number, batch in enumerate(batches):
                if number >= index:
                    yield epoch, number, batch
            epoch, index = epoch + 1, 0

    def _ids(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens padded on the right, int64 [n, length]; numbers of tokens, int64 [n])."""
        lengths = self.lengths[documents]
        within = np.arange(lengths.max())
        inside = within < lengths[:, None]
        ids = np.zeros(inside.shape, dtype=np.int64)
        ids[inside] = self.documents.tokens[(self.starts[documents][:, None] + within)[inside]]
        return ids, lengths

    def _packed(self, order: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of one shape; rows from the start of the epoch fill the last batch."""
        first_rows, rows = [], []
        n_groups = self.training.prefix_groups_per_epoch or len(order)
        group_size = min(-(-len(order) // n_groups), _MAX_GROUP)
        together = group_size * -(-_PACKED_TOGETHER // group_size)
        for first in range(0, len(order), together):
            rows += self._rows(order[first:first + together], group_size, rng)
            first_rows = first_rows or rows[:self.n_rows]
            while len(rows) >= self.n_rows:
                yield _joined(rows[:self.n_rows])
                del rows[:self.n_rows]
        if rows:
            yield _joined([*rows, *islice(cycle(first_rows), self.n_rows - len(rows))])

    def _rows(self, documents: np.ndarray, group_size: int,
              rng: np.random.Generator) -> list[tuple]:
        """Rows of prefix trees of groups of documents, as `Batch.arrays` and document ids."""
        prefix_trees = build_prefix_trees(*self._ids(documents), self.sequence_length,
                                          min_shared_prefix=_MIN_SHARED_PREFIX,
                                          kinds=np.arange(len(documents)) // group_size)
        packed = pack_best_fit(prefix_trees.sizes, self.sequence_length, rng)
        trees = np.concatenate(packed)
        row = np.repeat(np.arange(len(packed)), [len(members) for members in packed])
        sizes = prefix_trees.sizes[trees]
        before = sizes.cumsum() - sizes
        offset = before - before[np.searchsorted(row, row)]  # start of each tree in its row
        nodes, of_node = prefix_trees.nodes_of(trees), np.repeat(np.arange(len(trees)), sizes)
        shift = (offset - prefix_trees.starts[:-1][trees])[of_node]
        shape = len(packed), len(_PADDING), self.sequence_length
        arrays = np.broadcast_to(_PADDING[:, None], shape).copy()
        parents = prefix_trees.parents[nodes]
        arrays[row[of_node], :, nodes + shift] = np.stack(
            [prefix_trees.tokens[nodes], prefix_trees.depths[nodes],
             np.where(parents < 0, -1, parents + shift), prefix_trees.ends[nodes] + shift,
             prefix_trees.counts[nodes]], axis=1)
        row_of = np.empty(len(trees), dtype=np.int64)
        row_of[trees] = row
        members = row_of[prefix_trees.tree]
        by_row = members.argsort(kind="stable")
        borders = np.searchsorted(members[by_row], np.arange(1, len(packed)))
        return list(zip(arrays, np.split(self.chosen[documents[by_row]], borders), strict=True))

    def _padded(self, order: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
        """One document per row; random padding varies the positions, the indices in the row.

        Plain rows have no such padding.
        """
        for first in range(0, len(order), self.n_rows):
            documents = np.take(order, range(first, first + self.n_rows), mode="wrap")
            ids, lengths = self._ids(documents)
            index = np.arange(ids.shape[1])
            offset = rng.integers(0, 1 if self.plain else len(index) - lengths + 1,
                                  len(lengths))[:, None]
            within = index - offset
            inside = (within >= 0) & (within < lengths[:, None])
            yield Batch(
                ids=np.where(inside, np.take_along_axis(ids, within.clip(0, index[-1]), axis=1), 0),
                positions=np.where(inside, index, 0),
                parents=np.where(inside & (within > 0), index - 1, -1),
                ends=np.where(inside, offset + lengths[:, None], 0), counts=inside.astype(np.int64),
                document_ids=self.chosen[documents])


def _joined(rows: list[tuple]) -> Batch:
    arrays, document_ids = zip(*rows, strict=True)
    return Batch(*np.stack(arrays, axis=1), np.concatenate(document_ids))


def prefetch(batches: Iterator) -> Generator:
    """The same batches; a thread prepares the next one while the current one is in use.

    A fast GPU would wait for batches otherwise. The thread ends when the generator is closed.
    """
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, batches)
        while True:
            batch, future = future.result(), thread.submit(next, batches)
            yield batch
