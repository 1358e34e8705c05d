"""Model folders: what is checked before the first stage, and what is said about damaged ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import beliefedit as be
from beliefedit.config import ModelConfig
from beliefedit.errors import ConfigError, StoreError
from beliefedit.lm.model import build_model, check_existing, load_model, save_model
from beliefedit.lm.tokenizer import load_tokenizer
from tests.conftest import ROOT
from tests.sample_models import sample_tokenizer

SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole model."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    save_model(LlamaForCausalLM(LlamaConfig(**SIZES)), sample_tokenizer(), folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def of(folder):
    return ModelConfig(init_from=str(folder), tokenizer=str(folder))


def test_a_whole_model_is_accepted(whole):
    check_existing(ModelConfig())
    check_existing(of(whole))
    model = build_model(of(whole), load_tokenizer(str(whole)), torch.Generator())
    loaded, _ = load_model(whole)
    weights = load_file(whole / "model.safetensors")
    assert weights.keys() == dict(model.named_parameters()).keys()
    for name, weight in weights.items():
        assert torch.equal(model.get_parameter(name), weight) and torch.equal(loaded.get_parameter(name), weight)
    assert len({path.stat().st_mode for path in whole.iterdir()}) == 1  # as readable as the other files


def weights(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return damage


def config(**values):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return damage


def cut(n):
    def damage(folder):
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:n])
    return damage


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


EARLY = {  # found before the first stage
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "the folder has no weights"),
    "empty": (cut(0), "header too small"), "cut header": (cut(300), "header"), "one byte less": (cut(-1), "not fully covered"),
    "another size": (config(hidden_size=64), r"has the shape \[.*32.*\] in model.safetensors, and \[.*64.*\] by config.json"),
    "another vocabulary": (config(vocab_size=300), r"has the shape \[400, 32\] in .*, and \[300, 32\] by"),
    "a text as a size": (config(hidden_size="x"), "hidden_size"), "no heads": (config(num_attention_heads=0), "zero"),
    "unknown type": (config(model_type="xyz"), "xyz"), "no JSON": (text("config.json", "{"), "JSON"),
    "null": (text("config.json", "null"), "NoneType"), "a list": (text("config.json", "[]"), "Unrecognized model"),
    "empty config": (text("config.json", "{}"), "Unrecognized model")}
LATE = {  # found when the weights are read
    "a missing weight": (weights(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
                         "weights are missing (1), e.g. model.layers.1.mlp.up_proj.weight"),
    "one more layer": (config(num_hidden_layers=3), "weights are missing (9), e.g. model.layers.2."),
    "not finite": (weights(lambda tensors: tensors["model.norm.weight"].fill_(torch.nan)),
                   "model.norm.weight has values that are not finite")}


@pytest.mark.parametrize("damage", [*EARLY, *LATE])
def test_a_damaged_model_is_named(folder, damage):
    change, message = (EARLY | LATE)[damage]
    change(folder)
    for work in ([lambda: check_existing(of(folder))] if damage in EARLY else []) + [
            lambda: build_model(of(folder), sample_tokenizer(), torch.Generator())]:
        with pytest.raises(ConfigError, match="no usable model at '.*model': .+\n.*where: model.init_from\n") as caught:
            work()
    if damage in EARLY:
        with pytest.raises(ConfigError, match=message):
            check_existing(of(folder))
    else:
        check_existing(of(folder))
        assert message in str(caught.value)
    with pytest.raises(StoreError, match="(damaged model: .+|no model in .+)"):
        load_model(folder)


def test_weights_without_a_place_in_the_model_are_named(folder, caplog):
    config(num_hidden_layers=1)(folder)
    check_existing(of(folder))
    build_model(of(folder), sample_tokenizer(), torch.Generator())
    assert "9 weights have no place in the model and are ignored, e.g. model.layers.1." in caplog.text


@pytest.mark.parametrize("damage", [
    text("tokenizer.json", "{"), text("tokenizer.json", "{}"), text("tokenizer_config.json", "[]"),
    lambda folder: [path.unlink() for path in folder.glob("tokenizer*")]])
def test_a_damaged_tokenizer_is_named(folder, damage):
    damage(folder)
    with pytest.raises(ConfigError, match="no tokenizer at '.*': .+\n.*where: model.tokenizer"):
        check_existing(of(folder))
    with pytest.raises(StoreError, match="damaged model: no tokenizer at"):
        load_model(folder)


def test_a_token_id_beyond_the_embeddings_is_named(folder):
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["vocab"]["e"] = 1500
    file.write_text(json.dumps(state))
    for work in (lambda: check_existing(of(folder)),
                 lambda: build_model(of(folder), load_tokenizer(str(folder)), torch.Generator())):
        with pytest.raises(ConfigError, match="has 400 embeddings, the tokenizer ids up to 1500\n.*model.tokenizer"):
            work()


@pytest.mark.parametrize("model", [
    BertModel(BertConfig(**SIZES)),
    T5ForConditionalGeneration(T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4))])
def test_a_model_without_the_weights_of_a_decoder_is_named(model, tmp_path):
    save_model(model, sample_tokenizer(), tmp_path)
    with pytest.raises(ConfigError, match="no usable model at"):
        build_model(of(tmp_path), sample_tokenizer(), torch.Generator())


def test_a_run_checks_the_model_before_its_first_stage(folder, tmp_path):
    cut(-1)(folder)
    run = be.Run(tmp_path / "run", ROOT / "params" / "smoke.yaml", {
        "model.init_from": str(folder), "model.tokenizer": str(folder)})
    for compute in (lambda: run.graph, lambda: run.corpus, lambda: run.tokenizer):
        with pytest.raises(ConfigError, match="no usable model"):
            compute()
    assert list((tmp_path / "run").iterdir()) == []
