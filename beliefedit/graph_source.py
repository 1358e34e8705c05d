"""Where an experiment's graph and tokenizer come from: built in, trained, or named."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beliefedit import demo_graph, kg
from beliefedit.config import Experiment, ModelConfig
from beliefedit.kg import Graph
from beliefedit.language import Atom, clause, judged_prompt, label_word
from beliefedit.tokenizer import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEMO = "demo"


def tokenizer_settings(config: Experiment) -> dict[str, Any]:
    """What decides the tokenizer."""
    trained = {"vocab_size": config.model.vocab_size, "n_facts": config.corpus.n_facts}
    return {"tokenizer": config.model.tokenizer, **(trained if config.model.tokenizer == _TRAINED else {})}


_TRAINED = ModelConfig.model_fields["tokenizer"].default


def read_graph(config: Experiment) -> Graph:
    """The built-in graph or a folder's, cut to what the experiment is about."""
    options = config.graph.model_dump(exclude={"source", "demo_subjects", "demo_seed", "max_object_tokens"})
    if config.graph.source != DEMO:
        return kg.read_wikidata5m(config.graph.source, **options)
    with tempfile.TemporaryDirectory() as folder:
        demo_graph.write_demo_graph(Path(folder), n_subjects=config.graph.demo_subjects, seed=config.graph.demo_seed)
        return kg.read_wikidata5m(folder, **options)


def make_tokenizer(config: Experiment, graph: Graph) -> PreTrainedTokenizerFast:
    """The named tokenizer, or one trained on what the corpus will say (before it exists: labels are cut with it)."""
    if config.model.tokenizer != _TRAINED:
        return load_tokenizer(config.model.tokenizer)
    return train_tokenizer(_sample_texts(graph, config.corpus.n_facts), config.model.vocab_size)


def _sample_texts(graph: Graph, n_facts: int) -> Iterator[str]:
    """Facts the corpus covers in all forms, and every object once."""
    for s, r, o in graph.facts.head(n_facts).iter_rows():
        atom = Atom(s, r, o)
        yield str(atom)
        for form in ("atomic", "not", "or", "and"):
            said = clause(form, *([atom] if form in ("atomic", "not") else [atom, atom]))
            yield f"{judged_prompt(said)} {label_word(form != 'not')}"
    yield from (f" {label}" for label in graph.objects)
