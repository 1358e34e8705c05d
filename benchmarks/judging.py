"""How a model classifies true/false statements: by the type of the object, by the statement, or by the recalled fact.

First table: share of statements classified as true, for the true object, other objects of the relation (with and without
evidence for this subject in the corpus), and any other object. Second table, activation patching: '"A r b" is', where b
is true of subject B and false of A, with the hidden states of one position patched from '"B r b" is' at the input of a
layer. Positions where this turns "false" into "true" determine the answer. Third table, logit lens: share of facts whose
object is the prediction from the hidden state of the relation's last token at the input of a layer.

    python benchmarks/judging.py runs/demo [facts, 350]
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import beliefedit as be
from beliefedit.corpus.corpus import Corpus
from beliefedit.corpus.language import Fact, proposition_text, true_false_prompt, truth_word
from beliefedit.corpus.world import World
from beliefedit.lm.scoring import score

Ids = tuple[int, int, int]
"""Ids of a subject, a relation and an object."""


def labelled(world: World, fact: Ids) -> Fact:
    """The labels of a fact."""
    return Fact(world.subjects[fact[0]], world.relations[fact[1]], world.objects[fact[2]])


def variants(world: World, corpus: Corpus, facts: list[Ids], rng: np.random.Generator) -> dict[str, list[Ids]]:
    """The facts with true and with other objects."""
    observed = set(corpus.evidence.select(pl.col("subject", "relation", "object").to_physical()).rows())
    related = {}
    for r, o in world.facts.select("relation", "graph_object").unique().sort("relation", "graph_object").rows():
        related.setdefault(r, []).append(o)
    result = {"true object": facts, "same relation, observed": [], "same relation, unobserved": [], "any other": []}
    for s, r, o in facts:
        for name, is_observed in (("same relation, observed", True), ("same relation, unobserved", False)):
            objects = [x for x in related[r] if x != o and ((s, r, x) in observed) == is_observed]
            result[name] += [(s, r, int(rng.choice(objects)))] if objects else []
        result["any other"].append((s, r, int(rng.choice([x for x in range(len(world.objects)) if x != o]))))
    return result


def share_true(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Share of statements for which "true" is likelier than "false"."""
    prompts = [true_false_prompt(text) for text in texts]
    true, false = (score(model, tokenizer, prompts, [truth_word(label)] * len(prompts)) for label in (True, False))
    return float((true > false).mean())


def positions(world: World, tokenizer: PreTrainedTokenizerFast, fact: Ids) -> tuple[list[int], dict[str, slice]]:
    """Tokens of the true/false prompt, and the positions of the last tokens of its parts and of its end."""
    labels = labelled(world, fact)
    parts = [f'"{labels.subject}', f" {labels.relation}", f" {labels.object}", '" is']
    encoded = [tokenizer(part, add_special_tokens=not n)["input_ids"] for n, part in enumerate(parts)]
    ends = np.cumsum([len(part) for part in encoded])
    names = ("subject", "relation", "object")
    return sum(encoded, []), {name: slice(end - 1, end) for name, end in zip(names, ends, strict=False)} | {
        "end": slice(-len(encoded[-1]), None)}


@torch.no_grad()
def answers_true(model: PreTrainedModel, ids: list[int], labels: list[int], layer: int = 0,
                 position: slice = slice(0),
                 values: torch.Tensor | None = None) -> tuple[bool, tuple[torch.Tensor, ...]]:
    """(whether "true" is likelier, hidden states), with hidden states patched at the input of a layer."""
    def patch(module: torch.nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        hidden = (inputs[0] if inputs else named["hidden_states"]).clone()
        hidden[0, position] = values
        return ((hidden, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": hidden})

    layers = model.base_model.layers
    handle = None if values is None else layers[layer].register_forward_pre_hook(patch, with_kwargs=True)
    try:
        out = model(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True)
    finally:
        if handle is not None:
            handle.remove()
    true, false = out.logits[0, -1, labels]
    return bool(true > false), out.hidden_states


def patched_shares(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, facts: list[Ids],
                   rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Position to the share of "true", [layers], for statements that are true of the other subject only."""
    labels = [tokenizer(f" {truth_word(label)}", add_special_tokens=False)["input_ids"][0] for label in (True, False)]
    answers: dict[str, list[list[bool]]] = {}
    for s, r, o in facts:
        candidates = [fact for fact in facts if fact[1] == r and fact[2] != o]
        if not candidates:
            continue
        other, _, b = candidates[rng.integers(len(candidates))]
        ids, target_positions = positions(world, tokenizer, (s, r, b))
        source_ids, source_positions = positions(world, tokenizer, (other, r, b))
        unpatched, _ = answers_true(model, ids, labels)
        _, hidden = answers_true(model, source_ids, labels)
        answers.setdefault("nothing", []).append([unpatched] * (len(hidden) - 1))
        for name, position in target_positions.items():
            answers.setdefault(name, []).append([
                answers_true(model, ids, labels, layer, position, hidden[layer][0, source_positions[name]])[0]
                for layer in range(len(hidden) - 1)])
    return {name: np.mean(rows, axis=0) for name, rows in answers.items()}


@torch.no_grad()
def recalled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, facts: list[Ids]) -> np.ndarray:
    """Share of facts with the object's first token as prediction, at each layer's input and the output, [layers + 1]."""
    correct = []
    for fact in (labelled(world, ids) for ids in facts):
        ids = tokenizer(fact.prompt, return_tensors="pt")["input_ids"].to(model.device)
        first = tokenizer(f" {fact.object}", add_special_tokens=False)["input_ids"][0]
        *inner, last = model(input_ids=ids, output_hidden_states=True).hidden_states
        states = torch.stack([*(model.base_model.norm(state[0, -1]) for state in inner), last[0, -1]])
        correct.append((model.get_output_embeddings()(states).argmax(-1) == first).tolist())
    return np.mean(correct, axis=0)


def main() -> None:
    folder, n = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 350
    run = be.Run.open(folder)
    world, model, tokenizer, rng = run.world, run.model, run.tokenizer, np.random.default_rng(0)
    facts = run.corpus.facts.select("subject", "relation", "object").sample(min(n, run.corpus.facts.height), seed=0).rows()
    print(f"classified as true, {len(facts)} facts{'n':>11}{'atomic':>10}{'negated':>10}")
    for name, chosen in variants(world, run.corpus, facts, rng).items():
        shares = [share_true(model, tokenizer, [proposition_text(form, labelled(world, fact)) for fact in chosen])
                  for form in ("atomic", "not")] if chosen else [float("nan")] * 2
        print(f"{name:<30}{len(chosen):>10}" + "".join(f"{share:>10.3f}" for share in shares))
    print("\nclassified as true with one position patched at the input of layer 0, 1, …")
    for name, shares in patched_shares(model, tokenizer, world, facts[:100], rng).items():
        print(f"{name:<30}" + "".join(f"{share:>8.2f}" for share in shares))
    print("\ntrue object predicted at the relation, from the input of layer 0, 1, … and from the output")
    print(" " * 30 + "".join(f"{share:>8.2f}" for share in recalled(model, tokenizer, world, facts)))


if __name__ == "__main__":
    main()
