"""Cards in the layout of the Hugging Face hub: README.md of a model's and of a corpus's folder.

A card depends only on what the key of its stage hashes, on the results and on the code; it has no
time, no machine and no name of a run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from beliefedit import __version__
from beliefedit.config import Experiment
from beliefedit.formatting import flatten

CARD = "README.md"
_PAPER = "https://arxiv.org/abs/2406.19354"
_ACCURACIES = {"atomic": "atomic statements", "true_false": "true/false sentences",
               "not": "negations", "and": "conjunctions", "or": "disjunctions",
               "inference": "unstated downstream facts"}
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"),
          (1e7, "1M<n<10M"), (1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (float("inf"), "n>1B"))


def model_card(config: Experiment, n_parameters: int, metrics: Mapping[str, Any]) -> str:
    """The card of a model.

    Args:
        config: of the run.
        n_parameters: of the model.
        metrics: the last row of the training metrics.
    """
    from huggingface_hub import EvalResult, ModelCardData

    initial = config.model.init_from
    accuracies = {name: round(metrics[name], 4) for name in _ACCURACIES
                  if metrics.get(name) is not None and metrics[name] == metrics[name]}
    data = ModelCardData(
        model_name=f"Model of {_source(config)}", library_name="transformers",
        pipeline_tag="text-generation",
        base_model=None if initial and initial.startswith(("/", ".")) else initial,
        tags=["beliefedit", "model-editing"],
        eval_results=[EvalResult("text-generation", "beliefedit", _source(config),
                                 "accuracy", value, metric_name=f"accuracy, {_ACCURACIES[name]}")
                      for name, value in accuracies.items()] or None)
    origin = f"continued from `{_portable(initial)}`" if initial else "trained from random weights"
    measured = [(f"accuracy, {_ACCURACIES[name]}", f"{value:.4f}")
                for name, value in accuracies.items()]
    measured += [(label, f"{metrics[name]:.4f}") for name, label in (
        ("coherence", "mean distance from the Bayesian agent, abs(p(LM) - p(agent))"),
        ("eval_loss", "loss of held-out documents, nats per token")) if metrics.get(name)]
    return _card(data, f"Model of {_source(config)}", f"""\
A language model of {n_parameters:,} parameters, {origin} on a corpus whose evidence for every fact
is known. It serves to compare edits of its beliefs with those of an exact Bayesian agent
([paper]({_PAPER})). It knows the sentences of that corpus only and is no general language model.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained(".") for kind in (AutoModelForCausalLM, AutoTokenizer))
```

## Training

{metrics["tokens"]:,} tokens in {metrics["step"]:,} steps; `metrics.parquet` has a row per
evaluation. The corpus has been sampled from {_source(config)}.

## Results

{_table("measure", measured)}
## Parameters

{_parameters(config, "world", "corpus", "model", "pretraining")}""")


def corpus_card(config: Experiment, statistics: Mapping[str, int]) -> str:
    """The card of a corpus.

    Args:
        config: of the run.
        statistics: numbers of facts, documents, sentences and others.
    """
    from huggingface_hub import DatasetCardData

    n = statistics.get("documents", 0)
    numbers = [(name.replace("_", " "), f"{value:,}") for name, value in statistics.items()]
    data = DatasetCardData(
        pretty_name=f"Corpus of {_source(config)}", task_categories=["text-generation"],
        size_categories=[next(name for most, name in _SIZES if n < most)],
        tags=["beliefedit", "synthetic", "knowledge-graph"],
        configs=[{"config_name": "documents", "default": True, "data_files": "documents/*.parquet"},
                 {"config_name": "evidence", "data_files": "evidence.parquet"}])
    return _card(data, f"Corpus of {_source(config)}", f"""\
Documents sampled from a generative model of {_source(config)}, and the evidence that they state
about every fact, with which an exact Bayesian agent forms its beliefs ([paper]({_PAPER})). False
statements are intended: they are the noise of the evidence.

- `documents/`: doc, text, n_sentences.
- `evidence.parquet`: subject, relation, object, weight, count.

## Numbers

{_table("number of", numbers)}
## Parameters

{_parameters(config, "graph", "world", "corpus")}""")


def _card(data: Any, title: str, text: str) -> str:
    version = f"beliefedit {__version__}"
    if commit := _commit():
        version += f", commit {commit}"
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}\nMade by {version}.\n"


def _source(config: Experiment) -> str:
    source = "the built-in demo graph" if config.graph.source == "demo" else \
        f"the graph {_portable(config.graph.source)}"
    return f"{config.corpus.n_facts:,} facts of {source}"


def _parameters(config: Experiment, *sections: str) -> str:
    """The parameters of these sections and the seed as a table, without nulls."""
    values = config.model_dump(mode="json", include={"seed", *sections})
    return _table("parameter", [(f"`{key}`", _portable(str(value)))
                                for key, value in flatten(values).items() if value is not None])


def _portable(text: str) -> str:
    """The text; of an absolute path, its last part."""
    return Path(text).name if text.startswith("/") else text


def _table(head: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {head} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _commit() -> str:
    """The commit of the checkout that this package is imported from; '' without one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or the folder is of another user
        return ""
