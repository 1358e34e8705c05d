"""A few sentences and a tiny model with large random weights, for tests of editors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import polars as pl
import pytest
import torch
from transformers import MistralForCausalLM, PreTrainedTokenizerFast

from beliefedit.config import ModelConfig
from beliefedit.corpus.corpus import SampledDocuments
from beliefedit.editors.base import Editor, EditRequest, SoftTarget
from beliefedit.errors import EditError
from beliefedit.evaluation.cases import Cases
from beliefedit.lm.model import build_model
from beliefedit.lm.tokenizer import train_tokenizer

REQUESTS = [EditRequest.from_pair(*pair) for pair in (
    ("Ada works as", "poet", "Ada"), ("Bo Berg is a citizen of", "New Norway", "Bo Berg"),
    ("Ada", "x", "Ada"), ("Cy speaks", "Norwegian", "Cy"))]
REQUESTS_WITH_SOFT_TARGETS = [replace(request, soft_targets=(
    SoftTarget(request.prompt, (request.target, "cook"), (0.8, 0.1)), SoftTarget("Cy speaks", ("Danish",), (0.9,))))
    for request in REQUESTS]
ASKED = [("Ada works as", "poet"), ("Cy speaks", "Danish"), ('"Ada works as poet" is', "true")]
SENTENCES = [request.sentence for request in REQUESTS] + [
    "Cy speaks Danish", '"Ada works as poet" is true', '"not Cy speaks Danish" is false',
    '"Ada works as poet and Cy speaks Danish" is true', '"Cy speaks Danish or Ada works as cook" is true']
DOCUMENTS = SampledDocuments(SENTENCES * 3, 3 * [
    *[[]] * 5, [('"', '"')], [('"', '"'), ("not", '"not ')], [('"', '"'), (" and ", '"Ada works as poet and ')],
    [('"', '"'), (" or ", '"Cy speaks Danish or ')]])


@cache
def sample_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES * 3, 400)


def sample_model(n_layers: int = 2) -> MistralForCausalLM:
    config = ModelConfig(size=None, hidden_size=32, n_layers=n_layers, n_heads=4)
    model = build_model(config, sample_tokenizer(), torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 8 if parameter.ndim > 1 else 1  # edits of small initial weights would have no visible effect
        model.lm_head.weight *= 4
    return model


def sample_cases(requests: list[tuple[str, str, str]]) -> Cases:
    """Cases of (subject, relation, request), each with a probe of its fact and a logic prompt."""
    cases, queries = [], []
    for number, (subject, relation, request) in enumerate(requests):
        cases.append({"case": number, "subject": subject, "relation": relation, "object": "cook", "request": request,
                      "weight": 3.0, "downstream_relation": None, "confirms_truth": False,
                      "downstream_changes": False})
        prompt = f"{subject} {relation}"
        for kind, target in (("true_object", "cook"), ("requested", "poet")):
            queries.append({"case": number, "probe": "same_subject_same_relation", "kind": kind, "prompt": prompt,
                            "target": target, "label": "cook", "subject": subject, "relation": relation})
        queries.append({"case": number, "probe": "logic_a", "kind": "true", "prompt": f'"{prompt} poet" is',
                        "target": "true", "label": "true"})
    ids = {"case": pl.UInt32}
    return Cases(pl.DataFrame(cases, schema_overrides=ids), pl.DataFrame(queries, schema_overrides=ids))


def check_statistics_are_of_one_model(editor: Editor) -> None:
    """A prepared editor of `sample_model(3)` keeps its statistics for equal weights, and refuses other weights."""
    first, other = editor.statistics, sample_model(3)
    editor.prepare(sample_model(3), sample_tokenizer(), DOCUMENTS)
    assert editor.statistics is first
    with torch.no_grad():
        other.model.embed_tokens.weight += 0.1
    with pytest.raises(EditError, match="has no statistics"):
        editor.apply(other, sample_tokenizer(), REQUESTS)
