"""What the notebooks look at, as frames: single subjects, single beliefs, single edits; and how frames are shown."""

from __future__ import annotations

import html
import json
import resource
import sys
from collections.abc import Callable, Iterable, Sequence

import plotly.graph_objects as go
import polars as pl
from IPython.display import HTML, display

from beliefedit.agent import BayesAgent
from beliefedit.cases import Cases
from beliefedit.config import Experiment
from beliefedit.corpus import WEIGHTS, Corpus
from beliefedit.language import SEPARATOR, Lexicon
from beliefedit.store import MANIFEST, Store, read_json
from beliefedit.summary import judge
from beliefedit.world import World


def show(frame: pl.DataFrame, caption: str = "", decimals: int = 3) -> HTML:
    """A frame as a plain HTML table: text escaped, numbers aligned on the right, missing values as dashes."""
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    heads = "".join(f'<th style="text-align:{"right" if right else "left"}">{html.escape(name.replace("_", " "))}</th>'
                    for name, right in zip(frame.columns, numeric, strict=True))
    if frame.is_empty():
        return HTML(f'<p style="opacity:.75">{html.escape(caption)}{": " if caption else ""}none.</p>')
    rows = "".join("<tr>" + "".join(
        f'<td style="text-align:{"right" if right else "left"}">{_text(value, decimals)}</td>'
        for value, right in zip(row, numeric, strict=True)) + "</tr>" for row in frame.iter_rows())
    return HTML(f'<table><caption style="text-align:left;font-weight:bold">{html.escape(caption)}</caption>'
                f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>")


def _text(value: object, decimals: int) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:z.{decimals}f}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def known_facts(corpus: Corpus, world: World) -> pl.DataFrame:
    """The facts the corpus is about, as labels: subject, relation, object (true), follows_from (upstream object),
    p_true."""
    facts = corpus.facts

    def labels(column: str, names: Sequence[str]) -> pl.Series:
        return pl.Series(names).gather(facts[column].cast(pl.UInt32))

    return pl.DataFrame({
        "subject": labels("subject", world.subjects), "relation": labels("relation", world.relations),
        "object": labels("object", world.objects), "follows_from": labels("upstream_object", world.objects),
        "p_true": facts["p_true"]})


def corpus_numbers(corpus: Corpus) -> pl.DataFrame:
    """The corpus's statistics in words: what, number."""
    names = {"facts": "facts", "subjects": "subjects", "objects": "objects", "sentences": "sentences",
             "stated_sentences": "… stated", "true_false_sentences": "… judged true or false",
             **{f"{kind}_sentences": f"… with “{kind}”, judged" for kind in ("not", "or", "and")},
             "unique_sentences": "different sentences", "passes": "passes over the sentences", "documents": "documents"}
    return pl.DataFrame({"what": list(names.values()), "number": [corpus.statistics[name] for name in names]})


def truth_drawn(corpus: Corpus, world: World) -> pl.DataFrame:
    """How often each known fact's true object is drawn: kind (independent, dependent), sentence (the fact), p_true (in
    the generative model) and drawn (share of its stated sentences; null if the corpus states nothing)."""
    facts = known_facts(corpus, world).select(
        pl.when(pl.col("follows_from").is_null()).then(pl.lit("independent")).otherwise(pl.lit("dependent")
                                                                                        ).alias("kind"),
        pl.format("{} {} {}", "subject", "relation", "object").alias("sentence"), "p_true")
    n_drawn = corpus.config.n_samples * corpus.statistics["passes"] if corpus.config.atomic else None
    times = _sentences(corpus).join(facts.lazy().select("sentence"), on="sentence", how="semi").group_by(
        "sentence").len("times").collect()
    return facts.join(times, on="sentence", how="left", maintain_order="left").select(
        "kind", "sentence", "p_true", drawn=(pl.col("times").fill_null(0) / pl.lit(n_drawn, pl.Float64)))


def sentences_about(corpus: Corpus, world: World, subject: str, n: int = 3) -> pl.DataFrame:
    """Sentences of the corpus that name a subject, the most frequent of each form: form, sentence, times (over all
    passes)."""
    lexicon = Lexicon(world.subjects, world.relations, world.objects)
    found = (_sentences(corpus).filter(pl.col("sentence").str.contains(subject, literal=True))
             .group_by("sentence").len("times").collect().sort("times", "sentence", descending=[True, False]))
    said = [lexicon.parse(sentence) for sentence in found["sentence"]]
    forms = [one.form if one.label is None or one.form != "atomic" else "judged" for one in said]
    order = {form: place for place, form in enumerate(("atomic", "judged", "not", "or", "and"))}
    return found.select(pl.Series("form", forms, dtype=pl.String), "sentence", "times").group_by(
        "form", maintain_order=True).head(n).sort(pl.col("form").replace_strict(order), maintain_order=True
                                                  ).with_columns(pl.col("form").replace({"atomic": "stated"}))


def _sentences(corpus: Corpus) -> pl.LazyFrame:
    return (pl.scan_parquet(corpus.documents).select(pl.col("text").str.split(SEPARATOR).alias("sentence"))
            .explode("sentence"))


def belief_steps(corpus: Corpus, world: World, subject: str, relation: str, n: int = 60) -> pl.DataFrame:
    """The direct belief in one fact after each sentence about it, in the corpus's order.

    Args:
        n: sentences read.

    Returns:
        step (sentences read), object, p, sentence: a row per step and object that a sentence named.
    """
    lexicon = Lexicon(world.subjects, world.relations, world.objects)
    about = _sentences(corpus).filter(
        pl.col("sentence").str.contains(f"{subject} {relation} ", literal=True)).head(n).collect()
    evidence = []
    for sentence in about["sentence"]:
        said = lexicon.parse(sentence)
        evidence += [(atom.subject, atom.relation, atom.object, WEIGHTS[said.form, said.label], sentence)
                     for atom in said.atoms if (atom.subject, atom.relation) == (subject, relation)]
    rows = pl.DataFrame(evidence, schema=["subject", "relation", "object", "weight", "sentence"], orient="row")
    named = rows["object"].unique(maintain_order=True).to_list()
    steps = []
    for step in range(1, len(rows) + 1):
        agent = BayesAgent.fit(rows.head(step), pairs={}, objects=world.objects)
        p = agent.beliefs(subject, relation, named, view="direct")
        steps += [(step, o, value, rows["sentence"][step - 1]) for o, value in zip(named, p.tolist(), strict=True)]
    return pl.DataFrame(steps, schema=["step", "object", "p", "sentence"], orient="row")


def kinds_of_requests(cases: Cases) -> pl.DataFrame:
    """How many requests there are of each kind: kind, n, share."""
    kinds = {"repeats what is true": pl.col("reinforces"),
             "contradicts what is true": ~pl.col("reinforces"),
             "the subject has a fact that follows from it": pl.col("other_is_downstream"),
             "… and its answer should change": pl.col("downstream_changes"),
             "the edited fact itself follows from another": pl.col("is_downstream"),
             "nothing asked about depends on anything": pl.col("all_independent")}
    n = len(cases.cases)
    counts = [int(cases.cases.select(expression.sum()).item()) for expression in kinds.values()]
    return pl.DataFrame({"kind": list(kinds), "n": counts, "share": [count / n for count in counts]})


def example_cases(cases: Cases, n_traced: int, n: int = 2) -> list[int]:
    """Cases worth looking at among the traced ones: requests that change the downstream answer come first."""
    order = cases.cases.head(n_traced).sort("downstream_changes", "reinforces", "case", descending=[True, False, False])
    return order["case"].head(n).to_list()


def head(experiment: Experiment) -> HTML:
    """What is run, in a line."""
    source = "the built-in demo graph" if experiment.graph.source == "demo" else experiment.graph.source
    text = (f"Experiment {experiment.name} ({experiment.hash}), seed {experiment.seed}: "
            f"{experiment.corpus.n_facts:,} facts of {source}")
    return HTML(f"<p>{html.escape(text)}</p>")


def live_figure(plot: Callable[[pl.DataFrame], go.Figure]) -> Callable[[pl.DataFrame], None]:
    """A place in the notebook, and what draws a frame there, instead of the one before.

    Args:
        plot: frame to figure.
    """
    place = display({"text/plain": ""}, raw=True, display_id=True)

    def draw(frame: pl.DataFrame) -> None:
        # As data: a figure that is displayed, updating or not, makes a place of its own.
        place.update({"application/vnd.plotly.v1+json": json.loads(plot(frame).to_json())}, raw=True)

    return draw


def learned_banner(metrics: pl.DataFrame) -> HTML:
    """A line that says how well the model learned its corpus; red if editing it would mean little."""
    last = metrics.row(-1, named=True)
    learned, judgement = judge(last.get("atomic"), last.get("true_false"))
    style = "border-left:4px solid #D55E00;padding:.5em 1em;" if learned is False else ""
    warning = "<b>Numbers about editing this model are not evidence.</b> " if learned is False else ""
    return HTML(f'<p style="{style}">{warning}{html.escape(judgement)}</p>')


def stage_costs(store: Store) -> pl.DataFrame:
    """What each stage took when it was built, and what it keeps: stage, seconds, megabytes on disk."""
    paths = sorted(store.folder.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    manifests = [read_json(path) for path in paths]
    sizes = [sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()) / 1e6 for path in paths]
    return pl.DataFrame({"stage": [m["stage"] for m in manifests], "seconds": [m["seconds"] for m in manifests],
                         "megabytes": sizes})


def most_memory() -> str:
    """The most memory this notebook's kernel has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"Most memory held by this notebook: {peak / 1e9:.2f} GB"


def bullets(lines: Iterable[str]) -> HTML:
    """Sentences as a list, escaped."""
    return HTML("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines if line) + "</ul>")
