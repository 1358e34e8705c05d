"""Continued pretraining of a model with its own tokenizer, from a folder to edits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

import beliefedit as be
from beliefedit.errors import EditError
from beliefedit.lm.model import save_model
from tests.families import FAMILIES
from tests.sample_models import sample_tokenizer
from tests.test_run import experiment

END = "<|endoftext|>"


def gpt2(folder: Path, texts: list[str]) -> str:
    """The folder of a random GPT-2 and of a byte-level tokenizer trained on texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=500, special_tokens=[END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer) + 12, n_embd=32, n_layer=2, n_head=2, n_positions=512,
                                           bos_token_id=0, eos_token_id=0))
    save_model(model.bfloat16(), tokenizer, folder)
    return str(folder)


def test_a_gpt2_learns_the_corpus_and_is_edited(tmp_path) -> None:
    """The tokenizer has a space before every text, and neither a start nor a padding token; the weights are in bfloat16."""
    graph = be.Run(tmp_path / "graph", experiment()).graph
    texts = [" ".join(fact) for fact in graph.facts.iter_rows()]
    folder = gpt2(tmp_path / "gpt2", texts)
    run = be.Run(tmp_path / "run", experiment(
        model={"init_from": folder, "tokenizer": folder}, pretraining__n_evals=3, pretraining__token_budget=10_000,
        pretraining__lr=1e-2, edit__n_cases=3, edit__n_trajectories=0, edit__n_distributions=2, edit__batch_size=4,
        edit__editors={"lora": {"lr": 1e-2, "steps": 20}, "memit": {"steps": 2}, "grace": {"steps": 2}}))
    losses = run.training_metrics["eval_loss"]
    assert losses.is_sorted(descending=True) and losses[-1] < losses[0] - 0.3
    assert run.model.dtype == torch.float32 and run.model.config.model_type == "gpt2"
    assert set(run.edits["editor"]) == {"lora", "memit", "grace"}


@pytest.mark.parametrize(("name", "editor", "says"), [
    ("Gemma 2", "memit", "the layer does not add the output of its MLP as it is"),
    ("OPT, norms after the sums", "alphaedit", "the layer does not add the output of its MLP as it is"),
    ("Mixtral", "lora", "MixtralForCausalLM has layers with several MLPs"), ("Llama", "lora", "the rank 33 is above the 32")])
def test_editors_are_checked_before_the_first_stage(tmp_path, name, editor, says) -> None:
    tokens = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "Mixtral":
        model = MixtralForCausalLM(MixtralConfig(
            **tokens, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4))
    else:
        model = AutoModelForCausalLM.from_config(FAMILIES[name](**tokens))
    save_model(model, sample_tokenizer(), tmp_path / "model")
    folder, settings = str(tmp_path / "model"), {"rank": 33} if name == "Llama" else {}
    run = be.Run(tmp_path / "run", experiment(model={"init_from": folder, "tokenizer": folder},
                                              edit__editors={"in_context": {}, editor: settings}))
    with pytest.raises(EditError, match=says):
        run.graph  # noqa: B018
    assert list((tmp_path / "run").iterdir()) == []
