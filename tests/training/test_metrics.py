"""Metrics of a real training run in TensorBoard's and Weights & Biases' own files."""

import importlib.util
import struct

import pytest

import beliefedit as be
from beliefedit.errors import ConfigError
from beliefedit.training import metrics

SMALL = {"graph.demo_subjects": 300, "graph.min_cooccurrence": 10, "corpus.n_facts": 20, "model.size": None,
         "model.hidden_size": 32, "model.n_layers": 1, "model.vocab_size": 500, "pretraining.token_budget": 4000,
         "pretraining.n_evals": 2, "pretraining.n_eval_facts": 5}


def run(folder, **settings):
    return be.Run(folder, be.Experiment(), SMALL | settings)


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"pip install 'beliefedit[{package}]'")


@needs("tensorboard")
def test_tensorboard_reads_every_evaluation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = run(tmp_path, metrics=["tensorboard"])
    seen = []
    trained.pretrain(on_evaluation=seen.append)
    rows = trained.training_metrics
    assert len(seen) == len(rows) == 2
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    for name in ("train_loss", "eval_loss", "atomic", "coherence", "learning_rate"):
        scalars = events.Scalars(f"pretraining/{name}")
        assert [scalar.step for scalar in scalars] == rows["tokens"].to_list()
        assert [scalar.value for scalar in scalars] == pytest.approx(rows[name].to_list(), rel=1e-6)
    assert run(tmp_path).key("model") == trained.key("model") and run(tmp_path).config.hash == trained.config.hash


@needs("wandb")
def test_weights_and_biases_records_offline(tmp_path, monkeypatch):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    rows = run(tmp_path, metrics=["wandb"]).training_metrics
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    losses, tokens = [], []
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if "train_loss" in items:
            losses.append(float(items["train_loss"]))
            tokens.append(int(items["tokens"]))
    assert tokens == rows["tokens"].to_list() and losses == pytest.approx(rows["train_loss"].to_list())


def log_records(content, block=32768):
    """Records of a file in the log format of LevelDB; seven bytes of the first block are a header of the file."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # padding
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield record
            record = b""


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_computed(tmp_path, monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(metrics, "find_spec", lambda package: None if package == name else found(package))
    with pytest.raises(ConfigError, match=rf"{name} is not installed[\s\S]*pip install 'beliefedit\[{name}\]'"):
        run(tmp_path, metrics=[name]).model  # noqa: B018 - the stage is computed
    assert list(tmp_path.iterdir()) == []


def test_unknown_packages_are_refused():
    with pytest.raises(ConfigError, match="metrics"):
        be.config.with_overrides({}, {"metrics": ["mlflow"]})
