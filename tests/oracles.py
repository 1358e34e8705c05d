"""Slow, plain implementations that the tests compare the package with."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import torch

from beliefedit.corpus.language import (
    Fact,
    Form,
    proposition_text,
    true_false_prompt,
    truth_word,
)
from beliefedit.errors import LanguageError


def count_vector(rows: list[tuple[int, float]], n_objects: int) -> np.ndarray:
    """Count vector of one (subject, relation) from its (object, weight) rows (specification, section 5)."""
    counts = np.zeros(n_objects)
    for o, weight in rows:
        others = np.arange(n_objects) != o
        if weight >= 1:
            counts[o] += weight
        elif weight == -1:
            counts[others] += 1 / (n_objects - 1)
        else:
            counts[o] += weight
            counts[others] += (1 - weight) / (n_objects - 1)
    return counts


def mean(counts: np.ndarray, frequency: bool) -> np.ndarray:
    """Posterior mean under the prior of strength 1, or the plain frequency."""
    n_objects, total = len(counts), counts.sum()
    if frequency:
        return counts / total if total > 1e-12 else np.full(n_objects, 1 / n_objects)
    return (1 / n_objects + counts) / (1 + total)


class DenseAgent:
    """Section 5 of the specification on dense arrays of subjects × relations × objects."""

    def __init__(self, evidence: list[tuple[str, str, str, float]], pairs: dict[str, str], objects: list[str],
                 doubled: tuple[tuple[str, str, str, float], ...] = ()) -> None:
        self.evidence, self.pairs, self.objects, self.doubled = list(evidence), pairs, objects, doubled
        self.n = len(objects)
        self.subjects = list(dict.fromkeys(row[0] for row in evidence))

    def rows(self, subject: str, relation: str) -> list[tuple[int, float]]:
        return [(self.objects.index(o), w) for s, r, o, w in self.evidence if (s, r) == (subject, relation)]

    def direct(self, subject: str, relation: str, frequency: bool = False) -> np.ndarray:
        return mean(count_vector(self.rows(subject, relation), self.n), frequency)

    def conditional(self, relation: str, frequency: bool = False) -> np.ndarray:
        """[x, o] q(o | relation, x)."""
        counts = np.zeros((self.n, self.n))
        for subject in self.subjects:
            downstream, upstream = self.rows(subject, relation), self.rows(subject, self.pairs[relation])
            if not downstream or not upstream:
                continue
            downstream += [(self.objects.index(o), w) for s, r, o, w in self.doubled if (s, r) == (subject, relation)]
            shares = np.bincount([x for x, _ in upstream], minlength=self.n) / len(upstream)
            counts += shares[:, None] * count_vector(downstream, self.n)
        return np.array([mean(row, frequency) for row in counts])

    def distribution(self, subject: str, relation: str, view: str, frequency: bool = False) -> np.ndarray:
        upstream = self.pairs.get(relation)
        if view == "direct" or upstream is None or not self.rows(subject, upstream):
            return self.direct(subject, relation, frequency)
        return self.direct(subject, upstream, frequency) @ self.conditional(relation, frequency)

    def after(self, subject: str, relation: str, object: str, weight: float, as_published: bool = False) -> DenseAgent:
        row = (subject, relation, object, weight)
        doubled = (*self.doubled, row) if as_published and relation in self.pairs else self.doubled
        return DenseAgent([*self.evidence, row], self.pairs, self.objects, doubled)


def best_matching(weights: np.ndarray) -> tuple[int, float]:
    """(number of pairs, summed weight) of the largest and then heaviest matching, by exhaustive search."""
    def best(free: tuple[int, ...]) -> tuple[int, float]:
        if len(free) < 2:
            return 0, 0.0
        first, *rest = free
        results = [best(tuple(rest))]  # without a pair for first
        for other in rest:
            n, weight = best(tuple(i for i in rest if i != other))
            results.append((n + 1, weight + weights[first, other]))
        return max(results)

    return best(tuple(range(len(weights))))


def conditional_shares(facts: list[tuple[str, str, str]], downstream: str, upstream: str, min_truth: Fraction
                       ) -> dict[str, dict[str, Fraction]]:
    """q_r(o | x) of the specification, section 3: upstream object to {downstream object: probability}."""
    objects = list(dict.fromkeys(o for _, _, o in facts))
    of = {(s, r): o for s, r, o in facts}
    counts: dict[str, dict[str, int]] = {}
    for subject in dict.fromkeys(s for s, _, _ in facts):
        if (subject, downstream) in of and (subject, upstream) in of:
            row = counts.setdefault(of[subject, upstream], {})
            row[of[subject, downstream]] = row.get(of[subject, downstream], 0) + 1
    shares = {}
    for x, row in counts.items():
        row = {o: row[o] for o in objects if o in row}
        mode = max(row, key=row.get)  # ties: the first object
        if min_truth == 1:
            row = {mode: 1}
        elif Fraction(row[mode], sum(row.values())) < min_truth:
            rest = sum(row.values()) - row[mode]
            row[mode] = math.ceil(rest * min_truth / (1 - min_truth))
        shares[x] = {o: Fraction(n, sum(row.values())) for o, n in row.items()}
    return shares


def false_shares(facts: list[tuple[str, str, str]], relation: str, true: str, share: float) -> dict[str, float]:
    """Probability of each false object: any other object, or a share from other objects of the relation."""
    false = {o for _, _, o in facts} - {true}
    related = {o for _, r, o in facts if r == relation} - {true}
    p = dict.fromkeys(false, (1 - share if related else 1) / len(false))
    for o in related:
        p[o] += share / len(related)
    return p


WEIGHTS = {("atomic", None): 1.0, ("atomic", True): 1.0, ("atomic", False): -1.0, ("not", False): 1.0,
           ("not", True): -1.0, ("or", True): 2 / 3, ("or", False): -1.0, ("and", True): 1.0, ("and", False): 1 / 3}
"""Evidence of a sentence for each of its atoms, by form and label (specification, section 4)."""


@dataclass(frozen=True)
class Proposition:
    """A fact, its negation, or two facts joined; ``label``: labelled true or false, or None."""

    form: Form
    atoms: tuple[Fact, ...]
    label: bool | None = None


class Parser:
    """Parses sentences over given labels, which may contain spaces and words of the grammar."""

    def __init__(self, subjects: Collection[str], relations: Collection[str],
                 objects: Collection[str]) -> None:
        self.subjects, self.relations, self.objects = set(subjects), set(relations), set(objects)

    def parse(self, sentence: str) -> Proposition:
        """The proposition that a sentence states.

        Raises:
            LanguageError: the sentence is not in the grammar over these labels, or is ambiguous.
        """
        readings = self._readings(sentence)
        if len(readings) != 1:
            reason = "can be read in several ways" if readings else "is not in the corpus's grammar"
            raise LanguageError(f"the sentence {reason}: {sentence!r}",
                                hint="use subjects, relations and objects of this graph")
        return readings.pop()

    def _readings(self, sentence: str) -> set[Proposition]:
        readings = set(self._propositions(sentence, None))
        for label in (True, False):
            ending = f'" is {truth_word(label)}'
            if sentence.startswith('"') and sentence.endswith(ending):
                readings |= set(self._propositions(sentence[1:-len(ending)], label))
        return readings

    def _propositions(self, text: str, label: bool | None) -> list[Proposition]:
        propositions = [Proposition("atomic", (fact,), label) for fact in self._facts(text)]
        if text.startswith("not "):
            propositions += [Proposition("not", (fact,), label) for fact in self._facts(text[4:])]
        forms: tuple[Form, Form] = ("or", "and")
        return propositions + [Proposition(form, (a, b), label)
                               for form in forms for first, second in _splits(text, f" {form} ")
                               for a in self._facts(first) for b in self._facts(second)]

    def _facts(self, text: str) -> list[Fact]:
        return [Fact(subject, relation, object_)
                for subject, rest in _splits(text, " ") if subject in self.subjects
                for relation, object_ in _splits(rest, " ")
                if relation in self.relations and object_ in self.objects]


def _splits(text: str, separator: str) -> list[tuple[str, str]]:
    """All ways to split a text in two at a separator."""
    splits, at = [], text.find(separator)
    while at >= 0:
        splits.append((text[:at], text[at + len(separator):]))
        at = text.find(separator, at + 1)
    return splits


def verbalise(proposition: Proposition) -> str:
    """The sentence of a proposition, the inverse of `Parser.parse`."""
    text = proposition_text(proposition.form, *proposition.atoms)
    if proposition.label is None:
        return text
    return f"{true_false_prompt(text)} {truth_word(proposition.label)}"


def evidence_in(sentences: Iterable[str], parser: Parser) -> Counter:
    """Number of occurrences of each (subject, relation, object, weight) in the sentences."""
    counted: Counter = Counter()
    for sentence in sentences:
        proposition = parser.parse(sentence)
        weight = WEIGHTS[proposition.form, proposition.label]
        counted.update((atom.subject, atom.relation, atom.object, weight) for atom in proposition.atoms)
    return counted


def exact_norms(model) -> None:
    """Compute norms without a cast to float32, whose rounding error 40 steps of Adam amplify to 1e-6."""
    def forward(norm, hidden):
        return norm.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)

    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(forward, module)


class PublishedLoop:
    """The published evaluation of edits (arXiv 2406.19354; specification, sections 7 to 9).

    Single edits and single prompts on plain modules, with two errors of the published code: the labels of the logic prompts
    are those of the first case of each batch, and the conjunction uses p(A's label) also if the label is false.
    """

    def __init__(self, model, tokenizer, queries: list[dict], *, max_answer_tokens: int, batch_size: int) -> None:
        self.model, self.tokenizer, self.max_answer_tokens = model, tokenizer, max_answer_tokens
        self.batch_size, self.of_case = batch_size, {}
        for row in queries:
            self.of_case.setdefault(row["case"], {})[row["probe"], row["kind"]] = row

    @torch.no_grad()
    def p(self, prompt: str, target: str) -> float:
        """Probability of a target after a prompt: the product over its tokens."""
        start, ids = (self.tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {target}"))
        assert ids[:len(start)] == start
        p = self.model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
        return math.prod(float(p[position - 1, ids[position]]) for position in range(len(start), len(ids)))

    @torch.no_grad()
    def answer(self, prompt: str) -> str:
        """The greedy answer of a fixed number of tokens."""
        ids = self.tokenizer(prompt)["input_ids"]
        n = len(ids)
        for _ in range(self.max_answer_tokens):
            ids = [*ids, int(self.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == self.tokenizer.eos_token_id:
                break
        return self.tokenizer.decode(ids[n:], skip_special_tokens=True)

    def metrics(self, case: int, state: str) -> dict[str, float]:
        """p of the three tracked objects of each probe, substring accuracies, and logical errors."""
        rows, values = self.of_case[case], {}
        first = self.of_case[case // self.batch_size * self.batch_size]
        for (probe, kind), row in rows.items():
            if kind in ("true_object", "requested", "agent_mode"):
                values[f"p.{probe}.{kind}"] = self.p(row["prompt"], row["target"])
        for probe in dict.fromkeys(probe for probe, kind in rows if kind == "agent_mode"):
            kind_after = "requested" if probe == "same_subject_same_relation" else "agent_mode"
            row = rows[probe, "true_object" if state == "before" else kind_after]
            answer = self.answer(row["prompt"]).lower().strip()
            values[f"substring_accuracy_{probe}"] = float(row["target"].lower().strip() in answer)
        of_label, q = {}, {}
        for name in ("a", "b", "not_a", "a_and_b", "a_or_b"):
            label = first[f"logic_{name}", "true"]["label"]
            of_label[name] = self.p(rows[f"logic_{name}", "true"]["prompt"], label)
            q[name] = of_label[name] if label == "true" else 1 - of_label[name]
        atomic = rows["atomic_a", "stated"]
        values["true_false"] = abs(self.p(atomic["prompt"], atomic["target"]) - q["a"])
        values["negation"] = abs(q["a"] - (1 - q["not_a"]))
        values["conjunction"] = abs(q["a_and_b"] - of_label["a"] * q["b"])
        values["disjunction"] = abs(q["a_or_b"] - (q["a"] + q["b"] - q["a"] * q["b"]))
        return values

    def edited(self, prompt: str, target: str, start: list[torch.Tensor], *, alpha: float, lr: float,
               steps: int) -> PublishedLoop:
        """The loop with a LoRA edit of the model for one request; ``start`` is the initial A of each projection."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        down = [torch.nn.Parameter(value.detach().clone()) for value in start]
        up = [torch.nn.Parameter(torch.zeros(layer.mlp.down_proj.out_features, len(a), dtype=a.dtype))
              for layer, a in zip(model.model.layers, down, strict=True)]

        def hook(a, b):
            return lambda _, inputs, output: output + alpha / len(a) * inputs[0] @ a.T @ b.T

        for layer, a, b in zip(model.model.layers, down, up, strict=True):
            layer.mlp.down_proj.register_forward_hook(hook(a, b))
        optimizer = torch.optim.AdamW([*down, *up], lr=lr, weight_decay=1e-4)
        first, ids = (self.tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {target}"))
        for _ in range(steps):
            log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            nll = -sum(log_p[position - 1, ids[position]] for position in range(len(first), len(ids)))
            loss = nll / (len(ids) - 1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*down, *up], 1.0)
            optimizer.step()
        after = copy.copy(self)
        after.model = model.requires_grad_(False)
        return after
