"""Fill in the generated parts of these pages: ``python docs/generate.py``.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` and holds a table
of parameters, an editor's parameters, or the measures. mkdocs uses this file as a hook, so the
site always shows the current tables; tests/test_docs.py compares the committed pages with it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import polars as pl
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from beliefedit.analysis.measures import MEASURES, PROBES, Measure
from beliefedit.config import EDITOR_PARAMETERS, PRESETS, Experiment
from beliefedit.evaluation.cases import PARAPHRASE
from beliefedit.evaluation.metrics import divergence, total_variation

DOCS = Path(__file__).resolve().parent
PART = re.compile(r"(<!-- generated: ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)

# Parameters


def parameters(section: str) -> str:
    """The table of a section of the configuration; "experiment" is its top level."""
    group: Any = Experiment
    for name in [] if section == "experiment" else section.split("."):
        group = group.model_fields[name].annotation
    rows = [(f"`{name}`", _type(field), _value(_default(field)), field.description or "")
            for name, field in group.model_fields.items() if not _is_section(field)]
    return _table(("key", "type", "default", "description"), rows)


def editor(name: str) -> str:
    """The table of an editor's parameters, with the published values where it has them."""
    published = PRESETS.get(name, {}).get("published")
    rows = []
    for key, field in EDITOR_PARAMETERS[name].model_fields.items():
        row = [f"`{key}`", _value(_default(field))]
        if published is not None:
            row.append(_value(published[key]) if key in published else "")
        rows.append((*row, field.description or ""))
    heads = ("key", "default", *["published"] * (published is not None), "description")
    return _table(heads, rows)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and (
        field.annotation.__name__ != "Editors")


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _value(value: Any) -> str:
    """A value as it is written in a parameter file."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
        value = {name: {} for name in value} if isinstance(value, dict) else value
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return str(value)


def _type(field: FieldInfo) -> str:
    """The kind of values, for example "integer ≥ 1"; choices are listed."""
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _kind(arguments[0], annotation.__metadata__)
    if origin is Literal:
        return " · ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _kind(part) for part in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    limits = [f"{sign} {getattr(limit, name):g}" for info in metadata
              for limit in getattr(info, "metadata", [info])
              for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
              if hasattr(limit, name)]
    return " ".join((_TYPES.get(annotation, "mapping"), " and ".join(limits))).strip()


_TYPES = {int: "integer", float: "number", bool: "boolean", str: "text"}

# Measures

class Answer(NamedTuple):
    """What the example's model and agent believe after the edit, of three objects there are."""

    prompt: str
    decoded: str
    target: str
    p_lm: tuple[float, float, float]  # of the correct object first
    p_agent: tuple[float, float, float]


EXAMPLE = {
    "same_subject_same_relation": Answer(
        "Olga Galland is a citizen of …", "Denmark", "Denmark", (0.92, 0.05, 0.03),
        (0.95, 0.03, 0.02)),
    "same_subject_other_relation": Answer(
        "Olga Galland speaks …", "Norwegian", "Danish", (0.03, 0.90, 0.07), (0.67, 0.13, 0.20)),
    "other_subject_same_relation": Answer(
        "Hector Salmond is a citizen of …", "Germany", "Germany", (0.75, 0.20, 0.05),
        (0.85, 0.05, 0.10)),
    "other_subject_other_relation": Answer(
        "Hector Salmond works as …", "baker", "baker", (0.90, 0.05, 0.05), (0.82, 0.08, 0.10))}
"""Probe -> beliefs."""

PARAPHRASED = "The home country of Olga Galland is …", "Norway"
"""The paraphrase of the edited fact's prompt, and the answer."""

STATEMENTS = {"logic_a": (0.68, 0.17), "logic_b": (0.81, 0.09), "logic_not_a": (0.18, 0.72),
              "logic_a_and_b": (0.60, 0.30), "logic_b_and_a": (0.54, 0.36),
              "logic_a_or_b": (0.85, 0.05)}
"""Logic prompt -> (p("true"), p("false")) after it; all but "not A" are true sentences."""

STATED = 0.92  # p of A's object after A's atomic prompt
DOWNSTREAM = {"true_false": (0.70, 0.35), "negation": (0.20, 0.45), "conjunction": (0.60, 0.30),
              "disjunction": (0.65, 0.60)}
"""Form of the downstream fact -> credence in it with the old object and with the new one."""
STATED_DOWNSTREAM = 0.30  # p("true") after the downstream fact with the new object, p("false") 0.55


class Entry(NamedTuple):
    """What the glossary adds to a family of measures."""

    meaning: str
    formula: str
    elsewhere: str


FAMILIES = {
    "p_request": Entry("the model's probability of the requested object",
                       "p_LM(o* given s, r)",
                       "probability of the new target; CounterFact's efficacy compares it with the "
                       "old object's"),
    "accuracy": Entry("the model's answer equals the correct object. Before the edit the true "
                      "object is correct; after it the requested object on the edited fact, and "
                      "the agent mode on the other probes",
                      "answer = target, after lowercasing and stripping",
                      "see the next table"),
    "substring_accuracy": Entry("the answer contains the correct object; the published measure",
                                "target in answer",
                                "accuracy of the published code; \"contains\" in other toolkits"),
    "p_lm_goal": Entry("the model's probability of the object that is correct after the edit, the "
                       "same object in both states", "p_LM(goal)", ""),
    "p_agent_goal": Entry("the agent's probability of that object", "p_agent(goal)", ""),
    "downstream": Entry("the model classifies sentences with the downstream fact correctly: with "
                        "the old object, and with the new one",
                        "mean of (credence > ½) = label",
                        "RippleEdits asks for similar compositions"),
    "stated_downstream": Entry("probability that the model calls the downstream fact with the new "
                               "object true", "p_LM(\"true\" given \"s r o\" is)", ""),
    "credence_downstream": Entry("the same without what the model gives to neither word "
                                 "([2406.03442](https://arxiv.org/abs/2406.03442))",
                                 "p(\"true\") / (p(\"true\") + p(\"false\"))", ""),
    "coherence": Entry("distance from the agent's probability of the correct object",
                       "|p_LM(target) − p_agent(target)|",
                       "probabilistic coherence in the paper"),
    "tv": Entry("total variation between the distributions of model and agent over all objects",
                "½ Σ |p_LM(o) − p_agent(o)|", ""),
    "kl": Entry("Kullback-Leibler divergence of the model's distribution from the agent's",
                "Σ p_agent(o) · ln(p_agent(o) / p_LM(o))", ""),
    "true_false": Entry("the model states A with the probability that it calls A true",
                        "|p(o given A's atomic prompt) − p(A)|", "T/F coherence in the paper"),
    "negation": Entry("A and not A sum to 1", "|p(A) − (1 − p(not A))|", "as in the paper"),
    "conjunction": Entry("A and B, which are independent, multiply", "|p(A and B) − p(A) · p(B)|",
                         "as in the paper"),
    "disjunction": Entry("A or B follows from A and from B",
                         "|p(A or B) − (p(A) + p(B) − p(A) · p(B))|", "as in the paper"),
    "commutation": Entry("the order of A and B does not matter",
                         "|p(A and B) − p(B and A)|", ""),
}
"""Family -> entry; `family` finds a measure's."""

PROBE_NAMES_ELSEWHERE = {
    "same_subject_same_relation": (
        "edited fact: edit success", "efficacy (ROME, MEMIT), reliability (EasyEdit)"),
    "same_subject_other_relation": (
        "same subject, other relation: downstream accuracy where the edit changes the downstream "
        "fact, otherwise locality", "portability (EasyEdit), ripple effects (RippleEdits)"),
    "other_subject_same_relation": (
        "other subject, same relation: locality",
        "neighbourhood score, specificity (CounterFact); locality (EasyEdit)"),
    "other_subject_other_relation": (
        "other subject, other relation: locality", "locality (EasyEdit), drawdown"),
    PARAPHRASE: (
        "edited fact, paraphrase: the prompt is in another template than the request",
        "paraphrase score (CounterFact), generalization (EasyEdit)")}


def family(name: str) -> str:
    """The family of a measure: its name without probe, form or "_published"."""
    name = name.removesuffix("_published")
    for probe in (*PROBES, PARAPHRASE):
        name = name.removesuffix(f"_{probe}")
    return "downstream" if name.startswith("downstream_") else name


def example_frame() -> pl.DataFrame:
    """One row of `beliefedit.analysis.measures.wide_frame`: an edited model's answers."""
    row: dict[str, Any] = {"state": "after", "as_published": False}
    for probe, answer in EXAMPLE.items():
        p_lm, p_agent = answer.p_lm[0], answer.p_agent[0]
        row |= {f"decoded.{probe}": answer.decoded, f"target.{probe}": answer.target,
                f"p_lm.{probe}": p_lm, f"p_agent.{probe}": p_agent, f"p_lm_goal.{probe}": p_lm,
                f"p_agent_goal.{probe}": p_agent, f"p.{probe}.requested": p_lm,
                f"tv.{probe}": float(total_variation(answer.p_lm, answer.p_agent)),
                f"kl.{probe}": float(divergence(answer.p_agent, answer.p_lm))}
    for name, (p_true, p_false) in STATEMENTS.items():
        row |= {f"p.{name}.true": p_true, f"p.{name}.false": p_false,
                f"credence.{name}": p_true / (p_true + p_false),
                f"published_true.{name}": name != "logic_not_a"}
    row |= {"p.atomic_a.stated": STATED, "p.downstream_true_false.new": STATED_DOWNSTREAM}
    for form, credences in DOWNSTREAM.items():
        for kind, credence in zip(("old", "new"), credences, strict=True):
            truth = (kind == "new") != (form == "negation")
            row |= {f"credence.downstream_{form}.{kind}": credence,
                    f"true.downstream_{form}.{kind}": truth}
    row[f"decoded.{PARAPHRASE}"] = PARAPHRASED[1]
    return pl.DataFrame(row)


def example() -> str:
    """The example's answers and credences."""
    probes = [(f"`{probe}`", answer.prompt, answer.decoded, answer.target,
               *(", ".join(map(_number, p)) for p in (answer.p_lm, answer.p_agent)))
              for probe, answer in EXAMPLE.items()]
    edited = EXAMPLE[PROBES[0]].target
    probes.append((f"`{PARAPHRASE}`", *PARAPHRASED, edited, "", ""))
    text = {"logic_a": "A", "logic_b": "B", "logic_not_a": "not A", "logic_a_and_b": "A and B",
            "logic_b_and_a": "B and A", "logic_a_or_b": "A or B"}
    statements = [(text[name], *map(_number, (p_true, p_false, p_true / (p_true + p_false))))
                  for name, (p_true, p_false) in STATEMENTS.items()]
    return "\n\n".join((
        _table(("probe", "prompt", "answer", "correct object", "p_LM", "p_agent"), probes),
        "The probabilities are those of three objects, the correct one first. "
        "A is *Olga Galland is a citizen of Denmark*, and the model gives Denmark the probability "
        f"{_number(STATED)} after the atomic prompt of A. B is *Hector Salmond works as baker*.",
        _table(("sentence", 'P("true")', 'P("false")', "credence"), statements)))


def measures() -> str:
    """A table for each group of measures."""
    frame, parts = example_frame(), []
    groups: dict[str, list[Measure]] = {}
    for measure in MEASURES.values():
        groups.setdefault(measure.group, []).append(measure)
    for group, members in groups.items():
        parts.append(f"### {_sentence(group)}\n\n{_families(members)}")
        rows = [(f"`{m.name}`", m.short, _number(m.values(frame)[0]), m.unit or "",
                 {"higher": "higher", "lower": "lower", None: "–"}[m.better]) for m in members]
        parts.append(_table(("measure", "of", "example", "unit", "better"), rows))
        if group == "accuracy":
            parts.append(_table(
                ("probe", "name in reports", "elsewhere"),
                [(f"`{probe}`", *names) for probe, names in PROBE_NAMES_ELSEWHERE.items()]))
    return "\n\n".join(parts)


def _families(members: list[Measure]) -> str:
    """What the measures of a group are: a sentence, or a line for each family."""
    names = list(dict.fromkeys(family(member.name) for member in members))
    published = all(member.name.endswith("_published") for member in members)
    lines = []
    for name in names:
        entry = FAMILIES[name]
        head = f"- *{name.replace('_', ' ')}*: {entry.meaning}" if len(names) > 1 else _sentence(
            entry.meaning)
        elsewhere = f" Elsewhere: {entry.elsewhere}." if entry.elsewhere and not published else ""
        lines.append(f"{head}. Formula: `{entry.formula}`.{elsewhere}")
    if published:
        lines += ["", "Here p is the probability of the sentence's correct label, as in the "
                  "published code, not the credence."]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """The text with a capital, unless it begins with a symbol such as p."""
    return text if text[1:2] in " (" else f"{text[0].upper()}{text[1:]}"


def _number(value: float) -> str:
    return f"{value:.2f}"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads),
             *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Pages

PARTS = {"parameters": parameters, "editor": editor, "measures": measures, "example": example}


def filled(text: str) -> str:
    """A page with its generated parts as they should be."""
    def fill(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        return f"{found[1]}\n{PARTS[name](*arguments).strip()}\n\n{found[3]}"

    return PART.sub(fill, text)


def pages() -> Iterator[tuple[Path, str]]:
    """The pages with generated parts, and what they should be."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if PART.search(text):
            yield path, filled(text)


# Hooks of mkdocs


def on_config(config: Any) -> Any:
    """Add the notes on experiments to the navigation, newest first."""
    notes = sorted((path.name for path in (DOCS / "experiments").glob("[0-9]*.md")), reverse=True)
    index = ["experiments/README.md"] * (DOCS / "experiments" / "README.md").exists()
    if notes or index:
        config.nav.append({"Experiments": [*index, *(f"experiments/{name}" for name in notes)]})
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill in generated parts, and make links to files that are not part of the site plain text."""
    folder = PurePosixPath(page.file.src_uri).parent

    def unlink(found: re.Match[str]) -> str:
        target = (DOCS / folder / found[2].partition("#")[0]).resolve()
        return found[0] if target.is_relative_to(DOCS) else found[1]

    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!\w+:)([^)#][^)]*)\)", unlink, filled(markdown))


def main() -> None:
    """Write the pages."""
    for path, text in pages():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
