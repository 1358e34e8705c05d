"""Documents as tokens on disk, and the batches that training reads from them.

A batch depends on the seed and its number alone, so a resumed run reads on where the killed one stopped, and every
process of a parallel run knows the whole batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from beliefedit.config import PretrainingConfig
from beliefedit.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""Target of a place where nothing is predicted."""

_ROW_LENGTHS = 32, 1024
_SLICE = 20_000  # documents tokenized at once
_WINDOW = 4096  # documents packed together
_ORDER_STREAM, _PADDING_STREAM = 11, 12


@dataclass(frozen=True)
class Documents:
    """Tokenized documents.

    Attributes:
        tokens: [n_tokens] unsigned integers on disk; a document begins as prompts do and ends with the end token.
        starts: int64 [n_documents + 1], where each document begins.
    """

    tokens: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n_documents]"""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens.

    Attributes:
        ids: int64 [rows, length].
        positions: int64 [rows, length].
        document: int32 [rows, length], number of the document within its row; -1 for padding.
        targets: int64 [rows, length], the next token of the same document, or `IGNORED`.
        members: int64, the documents read, by their number in the corpus.
    """

    ids: np.ndarray
    positions: np.ndarray
    document: np.ndarray
    targets: np.ndarray
    members: np.ndarray

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return int((self.document >= 0).sum())

    @property
    def n_targets(self) -> int:
        """Tokens predicted."""
        return int((self.targets != IGNORED).sum())

    def share(self, rank: int, n_processes: int) -> Batch:
        """The rows of one process."""
        mine = slice(rank, None, n_processes)
        return replace(self, ids=self.ids[mine], positions=self.positions[mine], document=self.document[mine],
                       targets=self.targets[mine])


def encode_documents(source: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Documents:
    """Tokenize the text column of a Parquet file, or of all in a folder, slice by slice onto the disk.

    Args:
        source: file or folder.
        tokenizer: its start token goes before and its end token after each document.
        folder: gets ``tokens.bin`` and ``starts.npy``.

    Raises:
        TrainingError: no documents.
    """
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    folder.mkdir(parents=True, exist_ok=True)
    lengths = [np.zeros(1, dtype=np.int64)]
    with open(folder / "tokens.bin", "wb") as file:
        for texts in _texts(Path(source)):
            # The corpus repeats sentences: each distinct one is tokenized once.
            distinct = texts.unique(maintain_order=True)
            place = texts.to_frame("text").join(distinct.to_frame("text").with_row_index("place"), on="text",
                                                maintain_order="left")["place"].to_numpy()
            rows = [np.array([*ids, tokenizer.eos_token_id], dtype=dtype)
                    for ids in tokenizer(distinct.to_list(), return_attention_mask=False)["input_ids"]]
            lengths.append(np.array([len(row) for row in rows], dtype=np.int64)[place])
            np.concatenate([rows[row] for row in place]).tofile(file)
    starts = np.concatenate(lengths).cumsum()
    if len(starts) == 1:
        raise TrainingError("there are no documents to train on", where=str(source), remedy="run the corpus stage")
    np.save(folder / "starts.npy", starts)
    return Documents(np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"), np.load(folder / "starts.npy", "r"))


def _texts(source: Path) -> Iterator[pl.Series]:
    for file in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
        frame = pl.scan_parquet(file).select("text")
        for first in range(0, frame.select(pl.len()).collect().item(), _SLICE):
            yield frame.slice(first, _SLICE).collect()["text"]


def packed_rows(lengths: np.ndarray, row_length: int, rng: np.random.Generator) -> list[list[int]]:
    """Rows of whole documents, each filled with the longest that still fits; window by window, so that order is kept.

    Args:
        lengths: int64 [n], none above ``row_length``.
        row_length: tokens.
        rng: shuffles the rows of a window, which come out by falling length.

    Returns:
        Numbers of documents, a list per row.
    """
    rows = []
    for first in range(0, len(lengths), _WINDOW):
        window = lengths[first:first + _WINDOW]
        left, waiting, filled = (window.argsort(kind="stable") + first).tolist(), np.sort(window).tolist(), []
        while waiting:
            row, space = [], row_length
            while fitting := bisect_right(waiting, space):
                row.append(left.pop(fitting - 1))
                space -= waiting.pop(fitting - 1)
            filled.append(row)
        rows += [filled[number] for number in rng.permutation(len(filled))]
    return rows


class Batches:
    """Batches without end: passes over the chosen documents, each in a fresh order drawn from seed and pass.

    The first pass reads the shortest documents, `PretrainingConfig.short_first` of all, before the others.

    Args:
        documents: to read.
        chosen: int64, numbers of the documents to read.
        training: sizes of rows and batches; documents longer than a row are cut.
        packed: several whole documents to a row; else one, padded at random on the left, rows as long as the longest.
        seed: decides order and padding.
    """

    def __init__(self, documents: Documents, chosen: np.ndarray, training: PretrainingConfig, *, packed: bool,
                 seed: int) -> None:
        self.documents, self.chosen, self.packed, self.seed = documents, chosen, packed, seed
        self.row_length = training.row_length or int(np.clip(documents.lengths.max(), *_ROW_LENGTHS))
        self.n_rows = max(1, training.batch_tokens // self.row_length) if packed else training.batch_size
        self.starts = np.asarray(documents.starts[:-1])[chosen]
        self.lengths = np.minimum(documents.lengths[chosen], self.row_length)
        self.short = np.quantile(self.lengths, training.short_first) if training.short_first else np.inf

    def read(self, n_pass: int = 0, place: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """(pass, place within the pass, batch) from there on."""
        while True:
            rng = np.random.default_rng([self.seed, _ORDER_STREAM, n_pass])
            order = rng.permutation(len(self.chosen))
            if n_pass == 0:
                order = order[np.argsort(self.lengths[order] > self.short, kind="stable")]
            packed = packed_rows(self.lengths[order], self.row_length, rng) if self.packed else range(len(order))
            n_batches = -(-len(packed) // self.n_rows)
            while place < n_batches:
                # The last batch of a pass is filled up from its beginning, so that all have one shape.
                rows = np.arange(place * self.n_rows, (place + 1) * self.n_rows) % len(packed)
                yield n_pass, place, self._batch([np.atleast_1d(order[packed[row]]) for row in rows], (n_pass, place))
                place += 1
            n_pass, place = n_pass + 1, 0

    def _batch(self, rows: list[np.ndarray], number: tuple[int, int]) -> Batch:
        """Rows of documents as arrays, without a loop over tokens."""
        counts = np.array([len(row) for row in rows])
        documents = np.concatenate(rows)
        lengths = self.lengths[documents]
        row = np.repeat(np.arange(len(rows)), counts)
        within_row = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        before = np.cumsum(lengths) - lengths
        offset = before - before[np.cumsum(counts) - counts][row]
        width = self.row_length if self.packed else int(lengths.max())
        if not self.packed:
            rng = np.random.default_rng([self.seed, _PADDING_STREAM, *number])
            offset = rng.integers(0, width - lengths + 1)
        within = np.arange(lengths.sum()) - np.repeat(before, lengths)
        source = np.repeat(self.starts[documents], lengths) + within
        goal = np.repeat(row * width + offset, lengths) + within
        ids, targets = np.zeros((2, len(rows) * width), dtype=np.int64)
        positions, document = np.zeros_like(ids), np.full(len(ids), -1, dtype=np.int32)
        ids[goal] = self.documents.tokens[source]
        targets.fill(IGNORED)
        inner = within < np.repeat(lengths, lengths) - 1
        targets[goal[inner]] = ids[goal[inner] + 1]
        document[goal] = np.repeat(within_row, lengths)
        # Padded rows keep the place in the row as position: that is what random padding varies.
        positions[goal] = within if self.packed else goal % width
        shape = len(rows), width
        return Batch(ids.reshape(shape), positions.reshape(shape), document.reshape(shape), targets.reshape(shape),
                     self.chosen[documents])
