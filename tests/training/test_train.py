"""Training: what it reads, that it learns, resumes, refuses and is the same in several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import count, takewhile

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from beliefedit.config import ModelConfig, PretrainingConfig
from beliefedit.errors import ConfigError, TrainingError
from beliefedit.lm.model import build_model, load_model, save_model
from beliefedit.lm.prefix_tree import tree_mask
from beliefedit.lm.scoring import generate, score
from beliefedit.lm.tokenizer import train_tokenizer
from beliefedit.training import attention, checkpoint
from beliefedit.training.data import Batches, Documents, encode_documents, pack_best_fit, prefetch
from beliefedit.training.loss import TrainingLoss, evaluate, precision
from beliefedit.training.muon import Muon
from beliefedit.training.train import (
    _STEPS_BETWEEN_READS,
    Trainer,
    _batches,
    build_optimizers,
    learning_rate_factor,
    train,
)

GPU_ATTENTION = attention.NAME
TINY = ModelConfig(vocab_size=400, size=None, hidden_size=32, n_layers=2)
FACTS = {"ada lovelace": "london", "alan turing": "manchester", "grace hopper": "new york", "emmy noether": "bryn mawr",
         "marie curie": "paris", "lise meitner": "berlin"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention refuses to compute gradients on CPUs, though its reference code can."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(folder of documents in two files, tokenizer, probes)"""
    folder = tmp_path_factory.mktemp("documents")
    atomic_sentences = [f"{name} lived in {place}" for name, place in FACTS.items()]
    labelled = [f'"{name} lived in {place}" is {"true" if place == FACTS[name] else "false"}'
              for name in FACTS for place in FACTS.values()]
    pl.DataFrame({"text": atomic_sentences * 6}).write_parquet(folder / "00000.parquet")
    pl.DataFrame({"text": labelled + [f"{labelled[0]}. {atomic_sentences[1]}. {labelled[2]}"]}).write_parquet(folder / "00001.parquet")
    probes = pl.DataFrame({"kind": "atomic", "prompt": [f"{name} lived in" for name in FACTS],
                           "target": list(FACTS.values()), "p_agent": 0.9})
    true_false = pl.DataFrame({"kind": ["true_false", "not"], "prompt": ['"ada lovelace lived in london" is'] * 2,
                          "target": ["true", "false"]})
    return folder, train_tokenizer(atomic_sentences + labelled, 400), pl.concat([probes, true_false], how="diagonal")


def quick(**changes):
    return PretrainingConfig(**{"token_budget": 3000, "batch_tokens": 256, "n_evals": 3, "n_heldout_documents": 4,
                                "dtype": "float32"} | changes)


def train_and_save(documents, tokenizer, *arguments, folder, **options):
    """Train, store the model beside the checkpoint, and return the metrics."""
    model, metrics = train(documents, tokenizer, *arguments, folder=folder, **options)
    save_model(model, tokenizer, folder)
    return metrics


def documents_of(lengths):
    """Documents whose tokens all differ."""
    return Documents(np.arange(1, sum(lengths) + 1, dtype=np.uint16), np.concatenate([[0], np.cumsum(lengths)]))


def test_documents_on_disk_are_the_texts_with_start_and_end(corpus, tmp_path):
    folder, tokenizer, _ = corpus
    documents = encode_documents(folder, tokenizer, tmp_path)
    texts = pl.read_parquet(folder / "*.parquet")["text"].to_list()
    assert isinstance(documents.tokens, np.memmap) and documents.tokens.dtype == np.uint16
    assert len(documents.lengths) == len(texts)
    for number in (0, 1, 40, len(texts) - 1):
        ids = documents.tokens[documents.starts[number]:documents.starts[number + 1]]
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.decode(ids, skip_special_tokens=True) == texts[number]


def test_no_documents_is_a_clear_error(corpus, tmp_path):
    with pytest.raises(TrainingError, match="no documents"):
        encode_documents(tmp_path, corpus[1], tmp_path)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60), sequence_length=st.integers(9, 20))
def test_rows_hold_whole_documents_each_the_longest_that_still_fits(lengths, sequence_length):
    rows = pack_best_fit(np.array(lengths), sequence_length, np.random.default_rng(0))
    assert sorted(sum(rows, [])) == list(range(len(lengths)))
    unused = dict(enumerate(lengths))
    for row in sorted(rows, key=lambda row: sorted((lengths[number] for number in row), reverse=True), reverse=True):
        space = sequence_length
        for number in row:
            assert lengths[number] == max(length for length in unused.values() if length <= space)
            space -= unused.pop(number)
        assert not any(length <= space for length in unused.values())


def test_rows_are_full_and_shuffled():
    lengths = np.random.default_rng(0).integers(6, 25, 4096)
    rows = pack_best_fit(lengths, 32, np.random.default_rng(0))
    assert lengths.sum() / (32 * len(rows)) > 0.93  # 0.83 where documents are taken as they come
    first, second = np.array_split([lengths[row].max() for row in rows], 2)
    assert abs(first.mean() - second.mean()) < 1


def test_documents_are_packed_tightly_however_small_the_groups():
    lengths = np.random.default_rng(0).integers(6, 25, 6000)
    for groups in (None, 100, 1):
        training = PretrainingConfig(sequence_length=32, batch_tokens=256, prefix_groups_per_epoch=groups, n_short_epochs=0)
        reader = Batches(documents_of(lengths), np.arange(6000), training, packed=True, seed=0).read()
        assert np.mean([next(reader)[2].n_unique_tokens for _ in range(100)]) > 0.93 * 256


def documents_in(batch):
    """The token sequences of a batch, each as often as documents hold it, walked node by node."""
    for ids, positions, parents, ends, counts in zip(*batch.arrays, strict=True):
        continued = np.bincount(parents[parents >= 0], counts[parents >= 0], minlength=len(ids)).astype(int)
        for last in np.flatnonzero(counts > continued):
            path = [last]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            assert [place for place in range(last + 1) if place <= last < ends[place]] == path
            assert (np.diff(positions[path]) == 1).all()
            yield from [(tuple(ids[path]), positions[path[0]])] * (counts[last] - continued[last])


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), packed=st.booleans(), seed=st.integers(0, 5),
       n_words=st.sampled_from([2, 1000]), groups=st.sampled_from([None, 5, 1]))
@settings(deadline=None)
def test_batches_hold_each_document_once_an_epoch(lengths, packed, seed, n_words, groups):
    documents = documents_of(lengths)
    documents = Documents(np.asarray(documents.tokens) % n_words, documents.starts)  # of two words: much is shared
    training = PretrainingConfig(sequence_length=10, batch_tokens=40, batch_size=4, prefix_groups_per_epoch=groups, n_short_epochs=0)
    seen, computed = Counter(), 0
    for epoch, _, batch in Batches(documents, np.arange(len(lengths)), training, packed=packed, seed=seed).read():
        if epoch:
            break
        sequences = list(documents_in(batch))
        assert sum(len(ids) for ids, _ in sequences) == batch.n_tokens
        assert sum(len(ids) - 1 for ids, _ in sequences) == batch.n_targets
        assert len(sequences) == len(batch.document_ids)
        assert not packed or {first for _, first in sequences} == {0}
        assert (batch.parents[batch.counts == 0] == -1).all() and (batch.ends[batch.counts == 0] == 0).all()
        assert len(batch.ids) == 4 and (not packed or batch.ids.shape[1] == 10)
        seen.update(ids for ids, _ in sequences)
        computed += batch.n_unique_tokens
    expected = Counter(tuple(documents.tokens[start:start + min(length, 10)])
                       for start, length in zip(documents.starts, lengths, strict=False))
    assert seen.keys() == expected.keys() and all(seen[ids] >= n for ids, n in expected.items())
    n_read = sum(len(ids) * n for ids, n in seen.items())
    assert computed <= n_read if packed and groups else computed == n_read


def test_shared_prefixes_of_a_group_are_computed_once():
    rng = np.random.default_rng(0)
    documents = Documents(rng.integers(0, 2, 8 * 512).astype(np.uint16), np.arange(513) * 8)
    for groups, most in ((1, 0.2), (16, 0.6), (None, 1.0)):
        training = PretrainingConfig(sequence_length=32, batch_tokens=64, prefix_groups_per_epoch=groups, n_short_epochs=0)
        reader = Batches(documents, np.arange(512), training, packed=True, seed=0).read()
        batches = [batch for epoch, _, batch in takewhile(lambda read: read[0] == 0, reader)]
        assert sum(len(batch.document_ids) for batch in batches) >= 512
        share = sum(batch.n_unique_tokens for batch in batches) / sum(batch.n_tokens for batch in batches)
        assert share < most if groups else share == 1


def test_first_epochs_may_read_only_short_documents():
    lengths = [2, 9] * 20
    training = PretrainingConfig(sequence_length=10, batch_size=1, n_short_epochs=2, short_fraction=0.5)
    read = Batches(documents_of(lengths), np.arange(40), training, packed=False, seed=0).read()
    first, second, third = ([next(read)[2].n_tokens for _ in range(n)] for n in (20, 20, 40))
    assert first == second == [2] * 20
    assert sorted(third) == sorted(lengths)


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_epochs_of_a_curriculum_read_some_documents(packed):
    lengths, early = [5] * 40, np.arange(40) % 4 == 0
    training = PretrainingConfig(sequence_length=10, batch_size=1, batch_tokens=10, n_short_epochs=0, curriculum=2)
    chosen = np.arange(2, 40)  # two documents are held out
    read = Batches(documents_of(lengths), chosen, training, packed=packed, seed=0, curriculum=early).read()
    of_epoch = {0: set(), 1: set(), 2: set()}
    for epoch, _, batch in takewhile(lambda item: item[0] < 3, read):
        of_epoch[epoch] |= set(batch.document_ids.tolist())
    assert of_epoch[0] == of_epoch[1] == {n for n in chosen if early[n]} and of_epoch[2] == set(chosen)
    nothing = Batches(documents_of(lengths), chosen, training, packed=packed, seed=0, curriculum=np.zeros(40, dtype=bool))
    with pytest.raises(TrainingError, match="no document is left for epoch 1"):
        next(nothing.read())


def test_training_with_a_curriculum_and_probes_of_inference(corpus, tmp_path):
    folder, tokenizer, probes = corpus
    texts = pl.read_parquet(folder / "*.parquet")["text"]
    early = ~texts.str.starts_with('"').to_numpy()  # atomic statements first
    probes = pl.concat([probes, probes.filter(kind="atomic").with_columns(kind=pl.lit("inference"), target=pl.lit("paris"))])
    training = quick(token_budget=1600, n_evals=2, n_short_epochs=0, curriculum=100, lr=1e-2)
    model, metrics = train(folder, tokenizer, TINY, training, folder=tmp_path, probes=probes, curriculum=early, device="cpu")
    atomic = probes.filter(kind="atomic")
    answers = generate(model, tokenizer, atomic["prompt"].to_list(), 8)
    assert metrics["inference"][-1] == sum(answer.strip() == "paris" for answer in answers) / len(answers)
    assert metrics["atomic"][-1] == sum(a.strip() == t for a, t in zip(answers, atomic["target"], strict=True)) / len(answers)
    assert metrics["true_false"][-1] == 0  # no statement with a label was read


def test_documents_are_cut_only_where_rows_are(corpus, tmp_path):
    """Published: documents of ten sentences are never cut."""
    folder, tokenizer, _ = corpus
    pl.DataFrame({"text": [". ".join(["ada lovelace lived in london"] * n) for n in (1, 3, 400)]}).write_parquet(
        tmp_path / "long.parquet")
    documents = encode_documents(tmp_path / "long.parquet", tokenizer, tmp_path)
    longest = documents.lengths.max()
    assert longest > 1024
    for changes, expected in (({"packed": False}, longest), ({"packed": True}, 1024),
                              ({"packed": False, "sequence_length": 64}, 64)):
        training = quick(batch_size=3, n_short_epochs=0, n_heldout_documents=0, **changes)
        batches = Batches(documents, np.arange(3), training, packed=training.packed, seed=0)
        assert batches.lengths.max() == expected
        assert max(len(ids) for ids, _ in documents_in(next(batches.read())[2])) == expected
    longer = Documents(np.tile(documents.tokens, 4), np.concatenate([[0], np.tile(documents.lengths, 4).cumsum()]))
    model = build_model(TINY, corpus[1], torch.Generator())
    read, held_out = _batches(longer, quick(packed=False, n_heldout_documents=1), 0, None, model)
    assert read.sequence_length == held_out.sequence_length == longest


def test_prefetching_gives_the_same_and_its_errors():
    def numbers():
        yield from range(3)
        raise OSError("gone")

    ahead = prefetch(numbers())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(ahead)


def test_the_prefetching_thread_ends_with_the_reading():
    before = threading.active_count()
    with pytest.raises(ValueError, match="a step failed"), closing(prefetch(count())) as ahead:
        assert next(ahead) == 0 and threading.active_count() == before + 1
        raise ValueError("a step failed")
    assert threading.active_count() == before


def test_a_resumed_reader_continues():
    batches = Batches(documents_of([3, 5, 4, 9, 2, 7] * 4), np.arange(24), PretrainingConfig(
        sequence_length=10, batch_tokens=20), packed=True, seed=1)
    whole = [batch for _, batch in zip(range(12), batches.read(), strict=False)]
    epoch, index, _ = whole[6]
    for (*number, batch), (*expected, other) in zip(batches.read(epoch, index + 1), whole[7:], strict=False):
        assert number == expected and np.array_equal(batch.ids, other.ids)
    assert not np.array_equal(whole[0][2].ids, next(batches.read(1))[2].ids)


@pytest.mark.filterwarnings("ignore")  # FlexAttention is slow without compilation, and compiles with warnings
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("packed", "groups", "implementation"), [
    (True, 1, "eager"), (True, 1, "sdpa"), (True, None, "eager"), (False, None, "eager"), (True, 1, GPU_ATTENTION),
    (False, None, GPU_ATTENTION)])
def test_loss_and_gradient_of_a_batch_are_those_of_its_documents_alone(corpus, tmp_path, packed, groups, implementation,
                                                                       smoothing, flex_on_cpu):
    folder, tokenizer, _ = corpus
    documents = encode_documents(folder, tokenizer, tmp_path)
    model = build_model(TINY, tokenizer, torch.Generator().manual_seed(0))
    batch = next(Batches(documents, np.arange(len(documents.lengths)), PretrainingConfig(
        sequence_length=64, batch_size=5, batch_tokens=256, prefix_groups_per_epoch=groups), packed=packed, seed=0).read())[2]
    expected, nll, n_targets = 0.0, 0.0, 0
    for number in batch.document_ids:
        ids = torch.from_numpy(documents.tokens[slice(*documents.starts[number:number + 2])].astype(np.int64))
        logits = model(ids[None]).logits[0, :-1]  # rotary positions: only distances count
        expected += nn.functional.cross_entropy(logits, ids[1:], label_smoothing=smoothing, reduction="sum")
        nll += nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        n_targets += len(ids) - 1
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation(implementation)
    inputs = batch.inputs(length_multiple=128, n_multiple=512) if implementation == GPU_ATTENTION else batch.inputs()
    loss, found_nll = TrainingLoss(model, smoothing)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    loss.backward()
    assert n_targets == batch.n_targets and (batch.n_unique_tokens < batch.n_tokens) == bool(groups)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and found_nll.item() == pytest.approx(nll, rel=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-4)


def test_blocks_of_attention_are_those_of_the_dense_mask():
    generator = np.random.default_rng(0)
    for _ in range(20):  # random trees in preorder, some in a row, with padding at the end
        length, parents = 384, [-1]
        for node in range(1, 300):
            path = [node - 1]  # the nodes that can have another child are the ancestors of the last one
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            parents.append(-1 if generator.random() < 0.02 else path[min(int(generator.geometric(0.8)) - 1, len(path) - 1)])
        ends = np.zeros(length, dtype=np.int64)
        for node in reversed(range(300)):
            ends[node] = max(ends[node], node + 1)
            if parents[node] >= 0:
                ends[parents[node]] = max(ends[parents[node]], ends[node])
        ends = torch.from_numpy(np.stack([ends, np.where(np.arange(length) < 200, length, 0)]))
        dense = tree_mask(torch.arange(length)[None], ends)
        blocks = attention.block_mask(ends)
        index = torch.arange(length)
        assert torch.equal(blocks.mask_mod(torch.arange(2)[:, None, None], 0, index[:, None], index), dense[:, 0])
        tiles = dense[:, 0].view(2, 3, 128, 3, 128).permute(0, 1, 3, 2, 4).flatten(3)
        listed = np.zeros((2, 3, 3), dtype=int)  # 1: some, 2: all
        for value, n_blocks, indices in ((1, blocks.kv_num_blocks, blocks.kv_indices), (2, blocks.full_kv_num_blocks, blocks.full_kv_indices)):
            for row in range(2):
                for query in range(3):
                    for key in indices[row, 0, query, :int(n_blocks[row, 0, query])].tolist():
                        assert not listed[row, query, key]
                        listed[row, query, key] = value
        assert ((listed > 0) == tiles.any(3).numpy()).all() and tiles.all(3).numpy()[listed == 2].all()


@pytest.mark.filterwarnings("ignore")  # FlexAttention is slow without compilation, and compiles with warnings
def test_compiled_layers_share_one_graph_and_new_batches_do_not_compile_again(corpus, tmp_path, flex_on_cpu):
    folder, tokenizer, _ = corpus
    documents = encode_documents(folder, tokenizer, tmp_path)
    model = build_model(TINY, tokenizer, torch.Generator().manual_seed(0)).train()
    model.set_attn_implementation(GPU_ATTENTION)
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    for layer in model.model.layers:
        layer.compile(dynamic=False, backend="aot_eager")
    batches = Batches(documents, np.arange(len(documents.lengths)), PretrainingConfig(
        sequence_length=64, batch_tokens=256), packed=True, seed=0).read()
    losses = []
    for (_, _, batch), _ in zip(batches, range(4), strict=False):
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs(length_multiple=128, n_multiple=512).items()}
        losses.append(TrainingLoss(model, 0.0)(**inputs)[0])
        losses[-1].backward()
        with torch.compiler.set_stance("force_eager"):
            assert TrainingLoss(model, 0.0)(**inputs)[1].item() == pytest.approx(losses[-1].item(), rel=1e-5)
    assert counts["unique_graphs"] - before == 1 and len({loss.item() for loss in losses}) > 1


@pytest.mark.filterwarnings("ignore")  # FlexAttention is slow without compilation, and compiles with warnings
def test_the_step_of_a_gpu_learns_the_same_on_a_cpu(corpus, tmp_path, monkeypatch, flex_on_cpu):
    """Attention by blocks, padded inputs, and losses that are read every few steps."""
    folder, tokenizer, _ = corpus
    training = quick(token_budget=8_000, n_evals=2, lr=1e-3)
    plain = train_and_save(folder, tokenizer, TINY, training, folder=tmp_path / "plain", seed=1, device="cpu")
    initialize = Trainer.__post_init__

    def as_on_a_gpu(trainer):
        initialize(trainer)
        trainer.attention = GPU_ATTENTION
        trainer.model.set_attn_implementation(GPU_ATTENTION)

    monkeypatch.setattr(Trainer, "__post_init__", as_on_a_gpu)
    monkeypatch.setitem(_STEPS_BETWEEN_READS, "cpu", 7)
    other = train_and_save(folder, tokenizer, TINY, training, folder=tmp_path / "other", seed=1, device="cpu")
    assert other["step"].to_list() == plain["step"].to_list() and plain["step"][-1] > 14
    for column in ("train_loss", "eval_loss"):
        assert (other[column] - plain[column]).abs().max() < 1e-4


def test_models_with_small_heads_use_dense_masks(corpus):
    assert not attention.supports(build_model(TINY, corpus[1], torch.Generator()))
    assert attention.supports(build_model(ModelConfig(size="small"), corpus[1], torch.Generator()))


def test_muon_of_many_matrices_is_torch_s_own():
    generator = torch.Generator().manual_seed(0)
    shapes = [(32, 32)] * 3 + [(64, 32)] * 2 + [(32, 64)]
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    others = [weight.detach().clone().requires_grad_() for weight in weights]
    optimizer, other = Muon(weights, lr=0.02, weight_decay=0.1), torch.optim.Muon(others, lr=0.02, weight_decay=0.1)
    for _ in range(3):
        for weight, copy in zip(weights, others, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            copy.grad = weight.grad.clone()
        optimizer.step()
        other.step()
    for weight, copy in zip(weights, others, strict=True):
        torch.testing.assert_close(weight, copy, rtol=0, atol=2e-4)  # products are rounded to bfloat16
    for state, expected in zip(optimizer.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True):
        torch.testing.assert_close(state["momentum_buffer"], expected["momentum_buffer"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_the_model_holds_what_the_metrics_say(corpus, tmp_path, optimizer):
    folder, tokenizer, probes = corpus
    training = quick(token_budget=40_000, optimizer=optimizer, lr=1e-2, dtype="auto")
    metrics = train_and_save(folder, tokenizer, TINY, training, folder=tmp_path, probes=probes, seed=1, device="cpu")
    last = metrics.row(-1, named=True)
    assert last["atomic"] == 1 and last["train_loss"] < metrics["train_loss"][0] - 0.1
    assert metrics["tokens"].is_sorted() and last["tokens"] >= 40_000 and metrics.height == 3
    assert metrics.equals(pl.read_parquet(tmp_path / "metrics.parquet"))
    model, loaded = load_model(tmp_path)
    atomic = probes.filter(kind="atomic")
    prompts, targets = atomic["prompt"].to_list(), atomic["target"].to_list()
    assert generate(model, loaded, prompts, 8) == targets
    p = np.exp(score(model, loaded, prompts, targets))
    half_wrong = pl.concat([atomic.with_columns(pl.col("target").str.to_uppercase()),
                            atomic.with_columns(pl.col("target") + " town")])
    assert evaluate(model, loaded, half_wrong, 100)["atomic"] == 0.5
    assert evaluate(model, loaded, None, 100) == {}
    assert last["coherence"] == pytest.approx(np.abs(p - 0.9).mean(), abs=1e-6)


def test_the_checkpoint_stays_until_the_caller_has_stored_the_model(corpus, tmp_path, monkeypatch):
    folder, tokenizer, probes = corpus
    working, scratch = tmp_path / "working", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    threads = threading.enumerate()
    model, metrics = train(folder, tokenizer, TINY, quick(), folder=working, probes=probes, device="cpu")
    left = {type(thread).__name__ for thread in threading.enumerate() if thread not in threads}
    assert left <= {"TMonitor"} and not list(scratch.iterdir())  # tqdm's, once per process
    assert {file.name for file in working.iterdir()} == {checkpoint.FILE, "metrics.parquet"}
    monkeypatch.setattr(Trainer, "_step", None)  # nothing is left to compute
    again, metrics_again = train(folder, tokenizer, TINY, quick(), folder=working, probes=probes, device="cpu")
    assert metrics_again.equals(metrics) and metrics.equals(pl.read_parquet(working / "metrics.parquet"))
    for (name, weight), (_, expected) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(weight, expected), name


def test_stops_when_the_goals_are_reached(corpus, tmp_path):
    folder, tokenizer, probes = corpus
    training = quick(token_budget=10**7, n_evals=1000, lr=1e-2, stop_when={"atomic": 0.9})
    metrics = train_and_save(folder, tokenizer, TINY, training, folder=tmp_path, probes=probes, device="cpu")
    assert metrics["atomic"][-1] >= 0.9 and metrics["tokens"][-1] < 200_000


def test_starts_from_an_existing_model(corpus, tmp_path):
    folder, tokenizer, _ = corpus
    first = train_and_save(folder, tokenizer, TINY, quick(), folder=tmp_path / "a", device="cpu")
    config = ModelConfig(init_from=str(tmp_path / "a"), tokenizer=str(tmp_path / "a"))
    second = train_and_save(folder, tokenizer, config, quick(lr=1e-6, optimizer="adamw"), folder=tmp_path / "b", device="cpu")
    assert second["eval_loss"][0] == pytest.approx(first["eval_loss"][-1], abs=0.01)
    assert second["atomic"].null_count() == second.height


def test_a_model_with_tied_embeddings_trains_and_keeps_checkpoints(corpus, tmp_path):
    folder, tokenizer, _ = corpus
    save_model(MistralForCausalLM(MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True)), tokenizer, tmp_path / "a")
    config = ModelConfig(init_from=str(tmp_path / "a"), tokenizer=str(tmp_path / "a"))
    metrics = train_and_save(folder, tokenizer, config, quick(checkpoint_seconds=0), folder=tmp_path / "b", device="cpu")
    assert metrics["eval_loss"].is_sorted(descending=True)
    model, _ = load_model(tmp_path / "b")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


RUN = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from beliefedit.config import ModelConfig, PretrainingConfig
from beliefedit.lm.model import save_model
from beliefedit.lm.tokenizer import load_tokenizer
from beliefedit.training.train import train
documents, out, model, training = sys.argv[1:]
model, _ = train(Path(documents), load_tokenizer(f"{documents}/tokenizer"), ModelConfig.model_validate_json(model),
                 PretrainingConfig.model_validate_json(training), folder=Path(out), seed=3, device="cpu", callback=callback)
if os.environ.get("RANK", "0") == "0":
    save_model(model, load_tokenizer(f"{documents}/tokenizer"), Path(out))
"""
NO_CALLBACK = "callback = None\n"
FAIL = """
def callback(metrics):
    raise OSError("no space for the picture")
"""


def command(corpus, out, training):
    folder, tokenizer, _ = corpus
    tokenizer.save_pretrained(folder / "tokenizer")
    return [sys.executable, "-c", NO_CALLBACK + RUN, str(folder), str(out), TINY.model_dump_json(), training.model_dump_json()]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "lr": 0.3}, {"optimizer": "rmsprop"}, {"optimizer": "adam"},
                                     {"optimizer": "muon", "packed": False, "gradient_accumulation_steps": 2, "batch_size": 16}])
def test_killed_and_resumed_ends_with_the_same_bits(corpus, tmp_path, changes):
    folder, tokenizer, _ = corpus
    training = quick(token_budget=12_000, checkpoint_seconds=0.0, **changes)
    train_and_save(folder, tokenizer, TINY, training, folder=tmp_path / "whole", seed=3, device="cpu")
    killed = subprocess.Popen(command(corpus, tmp_path / "killed", training), stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / checkpoint.FILE).exists():
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = train_and_save(folder, tokenizer, TINY, training, folder=tmp_path / "killed", seed=3, device="cpu")
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert resumed["train_loss"].to_list() == pl.read_parquet(
        tmp_path / "whole" / "metrics.parquet")["train_loss"].to_list()


@pytest.fixture
def saved(corpus, tmp_path):
    """(model, optimizers) with a checkpoint in tmp_path, after a step so that the optimizer has a state."""
    model = build_model(TINY, corpus[1], torch.Generator().manual_seed(0))
    optimizers = build_optimizers(model, quick())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizers[0].step()
    checkpoint.save_checkpoint(tmp_path, model, optimizers, {"fingerprint": "a", "step": 7})
    return model, optimizers


def test_a_checkpoint_of_another_run_is_named_and_not_taken(saved, tmp_path, caplog):
    assert checkpoint.load_checkpoint(tmp_path, *saved, "a")["step"] == 7 and not caplog.text
    assert checkpoint.load_checkpoint(tmp_path / "nowhere", *saved, "a") is None and not caplog.text
    assert checkpoint.load_checkpoint(tmp_path, *saved, "b") is None
    assert f"{tmp_path / checkpoint.FILE} belongs to another training; training starts from the beginning" in caplog.text


def other_metadata(metadata):
    def change(path):
        save_file(load_file(path), path, metadata=metadata)
    return change


def without(name):
    def change(path):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        del tensors[next(key for key in tensors if key.startswith(name))]
        save_file(tensors, path, metadata=metadata)
    return change


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(path.read_bytes()[:3000]), lambda path: path.write_bytes(b"\xff" * 4000),
    other_metadata(None), other_metadata({"state": "{"}), other_metadata({"state": "{}"}), other_metadata({"state": "[]"}),
    without("random_state"), without("model.")])
def test_a_damaged_checkpoint_is_named(saved, tmp_path, damage):
    damage(tmp_path / checkpoint.FILE)
    with pytest.raises(TrainingError, match=r"the checkpoint cannot be read: .*\n.*checkpoint\.safetensors\n.*delete it, then"):
        checkpoint.load_checkpoint(tmp_path, *saved, "a")


def test_a_loss_that_is_not_finite_stops_with_step_and_batch_and_keeps_the_checkpoint(corpus, tmp_path, monkeypatch):
    folder, tokenizer, _ = corpus
    with pytest.raises(TrainingError) as caught:
        train_and_save(folder, tokenizer, TINY, quick(token_budget=10**6, lr=1e18, warmup_fraction=0.5, checkpoint_seconds=0.0, max_grad_norm=1e30),
              folder=tmp_path, device="cpu")
    step = int(re.search(r"the loss is \S+ at step (\d+)", str(caught.value)).group(1))
    monkeypatch.setitem(_STEPS_BETWEEN_READS, "cpu", 4)
    with pytest.raises(TrainingError, match=rf"the loss is \S+ at step {step}\n"):  # read later, the same step
        train_and_save(folder, tokenizer, TINY, quick(token_budget=10**6, lr=1e18, warmup_fraction=0.5, max_grad_norm=1e30),
                       folder=tmp_path / "later", device="cpu")
    assert re.search(r"epoch 0, batch \d+: documents \[\d+, ", str(caught.value))
    assert "lower pretraining.lr" in str(caught.value)
    assert json.loads(state_of(tmp_path))["step"] == step - 1


def state_of(folder):
    with safe_open(folder / checkpoint.FILE, "pt") as file:
        return file.metadata()["state"]


def test_a_full_disk_is_a_clear_error_and_the_old_checkpoint_stays(corpus, tmp_path):
    """The limit on file sizes makes real writes fail, as a full disk does."""
    program = """
import resource, sys, torch
from pathlib import Path
from beliefedit.training import checkpoint
from beliefedit.errors import TrainingError
folder, small, large = Path(sys.argv[1]), torch.nn.Linear(4, 4), torch.nn.Linear(600, 600)
checkpoint.save_checkpoint(folder, small, [], {"fingerprint": "a"})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save_checkpoint(folder, large, [], {"fingerprint": "b"})
except TrainingError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert re.search(r"could not write: .*\n.*where: .*\n.*limit of file sizes", run.stdout)
    assert os.listdir(tmp_path) == [checkpoint.FILE]
    assert json.loads(state_of(tmp_path))["fingerprint"] == "a"


def launch(corpus, out, training, before, after=""):
    """The program in two processes, as torchrun starts it: (exit code, what it wrote)."""
    script = out.with_suffix(".py")
    script.write_text(before + RUN + after)
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script), *command(corpus, out, training)[3:]], capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    return launched.returncode, launched.stderr


def test_two_processes_learn_as_one(corpus, tmp_path, monkeypatch):
    """To the bit as one that computes their rows one after the other; else only by rounding."""
    folder, tokenizer, _ = corpus
    training = quick(token_budget=50 * 420, n_evals=50, lr=2e-3, sequence_length=32, checkpoint_seconds=0)
    one = train_and_save(folder, tokenizer, TINY, training, folder=tmp_path / "one", seed=3, device="cpu")
    code, stderr = launch(corpus, tmp_path / "two", training, NO_CALLBACK + """
import torch
from beliefedit.training import distributed
context = distributed.init(torch.device("cpu"))  # as the caller of `train` does
assert context.n_processes == 2
assert context.broadcast(context.rank) == 0
assert context.total(torch.tensor(context.rank + 1.0)) == 3
context.barrier()
""", """
distributed.destroy()
assert distributed.init(torch.device("cpu")).n_processes == 1
""")
    assert code == 0, stderr
    two = pl.read_parquet(tmp_path / "two" / "metrics.parquet")
    assert one["step"][-1] >= 45 and one["step"].to_list() == two["step"].to_list()
    assert (one["train_loss"] - two["train_loss"]).abs().max() < 1e-5
    assert one["train_loss"][-1] < one["train_loss"][0] - 1
    assert {file.name for file in (tmp_path / "two").iterdir()} == {file.name for file in (tmp_path / "one").iterdir()}

    monkeypatch.setattr(Trainer, "_shares", lambda trainer, batch: [trainer._tensors(batch.share(rank, 2)) for rank in range(2)])
    train_and_save(folder, tokenizer, TINY, training, folder=tmp_path / "shares", seed=3, device="cpu")
    together, weights, at_once = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "shares", "one"))
    for name, weight in weights.items():
        assert torch.equal(together[name], weight), name
        torch.testing.assert_close(at_once[name], weight, rtol=0, atol=1e-4)


def test_a_process_that_fails_ends_the_others(corpus, tmp_path):
    """The first process fails in its callback, while the second waits for it in the next step."""
    code, stderr = launch(corpus, tmp_path / "out", quick(token_budget=10**6, n_evals=500), FAIL)
    assert code != 0 and "no space for the picture" in stderr


def test_learning_rates_rise_and_fall_as_configured():
    training = PretrainingConfig(warmup_fraction=0.1, final_lr_fraction=0.1)
    assert learning_rate_factor(training, 0.1) == 1 and learning_rate_factor(training, 0.0) < 0.02
    assert learning_rate_factor(training, 0.55) == pytest.approx(0.55)
    assert learning_rate_factor(training, 1) == 0.1
    assert learning_rate_factor(PretrainingConfig(warmup_fraction=1), 1) == 1


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("rmsprop", torch.optim.RMSprop),
                                            ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizers_are_torch_s_own_over_all_weights(corpus, name, kind):
    model = build_model(TINY, corpus[1], torch.Generator().manual_seed(0))
    training = quick(optimizer=name, lr=5e-5, weight_decay=1e-4, adam_beta2=0.999)
    [optimizer] = build_optimizers(model, training)
    weights = [weight.detach().clone().requires_grad_() for weight in optimizer.param_groups[0]["params"]]
    published = kind([{"params": weights, "weight_decay": 1e-4, "lr": 5e-5}])  # as load_optimizer_and_scheduler does
    assert type(optimizer) is kind and sum(weight.numel() for weight in weights) == model.num_parameters()
    for step in range(3):
        for own, other in zip(optimizer.param_groups[0]["params"], weights, strict=True):
            own.grad = torch.full_like(own, 0.1 + step)
            other.grad = own.grad.clone()
        optimizer.step()
        published.step()
    for own, other in zip(optimizer.param_groups[0]["params"], weights, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9)


def test_muon_gets_the_hidden_matrices_only(corpus):
    model = build_model(TINY, corpus[1], torch.Generator().manual_seed(0))
    muon, adamw = build_optimizers(model, quick(optimizer="muon"))
    n_hidden = sum(weight.numel() for weight in muon.param_groups[0]["params"])
    assert n_hidden == 2 * (4 * 32 * 32 + 3 * 32 * 128)
    assert n_hidden + sum(weight.numel() for weight in adamw.param_groups[0]["params"]) == model.num_parameters()


def test_precision_is_as_asked():
    assert precision("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert precision("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)


def test_an_existing_model_needs_its_tokenizer():
    with pytest.raises(ValueError, match="needs its own tokenizer"):
        ModelConfig(init_from="some/model")
    assert issubclass(ConfigError, Exception)


def test_plain_lines_when_there_is_no_terminal(corpus, tmp_path):
    training = quick(token_budget=8000)
    program = ("import logging, beliefedit.training.train as t; t.SECONDS_BETWEEN_LINES = 0;"
               "logging.basicConfig(level=logging.INFO)\n" + NO_CALLBACK + RUN)
    arguments = command(corpus, tmp_path / "out", training)
    run = subprocess.run([*arguments[:2], program, *arguments[3:]], capture_output=True, text=True, check=True)
    assert re.search(r"pretraining: 0\.\d+M of 0\.01M tokens, \d+ tokens/s, loss \d\.\d+, accuracy -, \d+ s left",
                     run.stderr)
    assert "%|" not in run.stderr


def test_the_callback_is_called_after_every_evaluation(corpus, tmp_path):
    folder, tokenizer, probes = corpus
    seen = []
    metrics = train_and_save(folder, tokenizer, TINY, quick(), folder=tmp_path, probes=probes, device="cpu", callback=seen.append)
    assert [len(frame) for frame in seen] == [1, 2, 3] and seen[-1].equals(metrics)
