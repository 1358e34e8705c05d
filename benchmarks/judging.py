"""What a model judges by: an object's type, what it remembers of the statement, or what it recalls of the subject.

First table: how often it calls a fact true with the right object, with others of the same relation (heard of this
subject in the corpus, or never), and with any other object. Second table: '"A r b" is', b being true of B and not of A,
with the hidden states of one place taken from '"B r b" is' as they enter a layer: where that turns "false" into "true",
the judgement comes from what stands there. Third table: how often a plain read-out of the relation's last token, as it
enters a layer, gives the right object: from where on the fact is recalled.

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
    """The fact as labels."""
    return Fact(world.subjects[fact[0]], world.relations[fact[1]], world.objects[fact[2]])


def variants(world: World, corpus: Corpus, facts: list[Ids], rng: np.random.Generator) -> dict[str, list[Ids]]:
    """The facts with the right and with other objects."""
    heard = set(corpus.evidence.select(pl.col("subject", "relation", "object").to_physical()).rows())
    related = {}
    for r, o in world.facts.select("relation", "graph_object").unique().sort("relation", "graph_object").rows():
        related.setdefault(r, []).append(o)
    found = {"right": facts, "same relation, heard": [], "same relation, never heard": [], "any other": []}
    for s, r, o in facts:
        for name, wanted in (("same relation, heard", True), ("same relation, never heard", False)):
            others = [x for x in related[r] if x != o and ((s, r, x) in heard) == wanted]
            found[name] += [(s, r, int(rng.choice(others)))] if others else []
        found["any other"].append((s, r, int(rng.choice([x for x in range(len(world.objects)) if x != o]))))
    return found


def share_true(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """How often "true" is likelier than "false"."""
    prompts = [true_false_prompt(text) for text in texts]
    true, false = (score(model, tokenizer, prompts, [truth_word(label)] * len(prompts)) for label in (True, False))
    return float((true > false).mean())


def places(world: World, tokenizer: PreTrainedTokenizerFast, fact: Ids) -> tuple[list[int], dict[str, slice]]:
    """Tokens of the judged prompt, and where its words' last tokens and its end stand."""
    said = labelled(world, fact)
    parts = [f'"{said.subject}', f" {said.relation}", f" {said.object}", '" is']
    encoded = [tokenizer(part, add_special_tokens=not n)["input_ids"] for n, part in enumerate(parts)]
    ends = np.cumsum([len(part) for part in encoded])
    names = ("subject", "relation", "object")
    return sum(encoded, []), {name: slice(end - 1, end) for name, end in zip(names, ends, strict=False)} | {
        "end": slice(-len(encoded[-1]), None)}


@torch.no_grad()
def says_true(model: PreTrainedModel, ids: list[int], labels: list[int], layer: int = 0, place: slice = slice(0),
              values: torch.Tensor | None = None) -> tuple[bool, tuple[torch.Tensor, ...]]:
    """(whether "true" is likelier, hidden states), with some hidden states replaced as they enter a layer."""
    def replaced(module: torch.nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        hidden = (inputs[0] if inputs else named["hidden_states"]).clone()
        hidden[0, place] = values
        return ((hidden, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": hidden})

    layers = model.base_model.layers
    handle = None if values is None else layers[layer].register_forward_pre_hook(replaced, with_kwargs=True)
    try:
        out = model(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True)
    finally:
        if handle is not None:
            handle.remove()
    true, false = out.logits[0, -1, labels]
    return bool(true > false), out.hidden_states


def exchanges(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, facts: list[Ids],
              rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Place to how often "true" is said, [layers], of statements that are true of the other subject alone."""
    labels = [tokenizer(f" {truth_word(label)}", add_special_tokens=False)["input_ids"][0] for label in (True, False)]
    turned: dict[str, list[list[bool]]] = {}
    for s, r, o in facts:
        others = [fact for fact in facts if fact[1] == r and fact[2] != o]
        if not others:
            continue
        other, _, b = others[rng.integers(len(others))]
        (ids, here), (source, there) = places(world, tokenizer, (s, r, b)), places(world, tokenizer, (other, r, b))
        plain, _ = says_true(model, ids, labels)
        _, hidden = says_true(model, source, labels)
        turned.setdefault("nothing", []).append([plain] * (len(hidden) - 1))
        for name, place in here.items():
            turned.setdefault(name, []).append([
                says_true(model, ids, labels, layer, place, hidden[layer][0, there[name]])[0]
                for layer in range(len(hidden) - 1)])
    return {name: np.mean(rows, axis=0) for name, rows in turned.items()}


@torch.no_grad()
def recalled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, facts: list[Ids]) -> np.ndarray:
    """How often the object's first token is the likeliest as each layer is entered and at the end, [layers + 1]."""
    right = []
    for said in (labelled(world, fact) for fact in facts):
        ids = tokenizer(said.prompt, return_tensors="pt")["input_ids"].to(model.device)
        first = tokenizer(f" {said.object}", add_special_tokens=False)["input_ids"][0]
        *inner, last = model(input_ids=ids, output_hidden_states=True).hidden_states
        states = torch.stack([*(model.base_model.norm(state[0, -1]) for state in inner), last[0, -1]])
        right.append((model.get_output_embeddings()(states).argmax(-1) == first).tolist())
    return np.mean(right, axis=0)


def main() -> None:
    folder, n = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 350
    run = be.Run.open(folder)
    world, model, tokenizer, rng = run.world, run.model, run.tokenizer, np.random.default_rng(0)
    facts = run.corpus.facts.select("subject", "relation", "object").sample(min(n, run.corpus.facts.height), seed=0).rows()
    print(f"called true, {len(facts)} facts{'n':>18}{'stated':>10}{'denied':>10}")
    for name, some in variants(world, run.corpus, facts, rng).items():
        shares = [share_true(model, tokenizer, [proposition_text(form, labelled(world, fact)) for fact in some])
                  for form in ("atomic", "not")] if some else [float("nan")] * 2
        print(f"{name:<30}{len(some):>10}" + "".join(f"{share:>10.3f}" for share in shares))
    print("\ncalled true with one place taken from the statement about the other subject, entering layer 0, 1, …")
    for name, shares in exchanges(model, tokenizer, world, facts[:100], rng).items():
        print(f"{name:<30}" + "".join(f"{share:>8.2f}" for share in shares))
    print("\nright object read out at the relation, entering layer 0, 1, …, and at the end")
    print(" " * 30 + "".join(f"{share:>8.2f}" for share in recalled(model, tokenizer, world, facts)))


if __name__ == "__main__":
    main()
