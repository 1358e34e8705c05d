"""Documents for the language model, evidence for the agent (docs/specification.md, section 4)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from beliefedit.config import CorpusConfig
from beliefedit.corpus.language import (
    SEPARATOR,
    check_sentences,
    fact_prompts,
    proposition_text,
    true_false_prompt,
    truth_word,
)
from beliefedit.corpus.sampler import AND, ATOMIC, FORMS, NOT, OR, UNLABELLED, Sampler, Sentences
from beliefedit.corpus.world import World
from beliefedit.errors import ConfigError, StoreError
from beliefedit.progress import tqdm
from beliefedit.store import Stream, read_json, write_json

WEIGHTS: dict[tuple[str, bool | None], float] = {
    ("atomic", None): 1.0, ("atomic", True): 1.0, ("atomic", False): -1.0,
    ("not", False): 1.0, ("not", True): -1.0, ("or", True): 2 / 3, ("or", False): -1.0,
    ("and", True): 1.0, ("and", False): 1 / 3}
"""Maps form and label of a sentence to the evidence weight for each of its facts."""


@dataclass(frozen=True)
class Corpus:
    """A sampled corpus.

    Attributes:
        config: the parameters of the sampling.
        facts: the facts of the corpus, rows of ``world.facts``.
        evidence: subject, relation, object (enumerations of the world's labels), weight float64,
            count uint32.
        statistics: numbers of facts, documents, sentences of each kind, and so on.
        sentences: what each sentence was made from, a row per sentence of one pass: the arrays of
            `beliefedit.corpus.sampler.Sentences`.
        documents: folder of Parquet files (doc, text, n_sentences, sentences: list of rows of
            ``sentences``); None: no documents.
    """

    config: CorpusConfig
    facts: pl.DataFrame
    evidence: pl.DataFrame
    statistics: dict[str, int]
    sentences: pl.LazyFrame
    documents: Path | None = None


class SampledDocuments(tuple[str, ...]):
    """Texts of documents.

    Attributes:
        contexts: for each document, the texts in it that precede a subject, as (kind, text). Kinds
            are a quotation mark, "not", " or ", " and " and `SEPARATOR`.
    """

    contexts: tuple[tuple[tuple[str, str], ...], ...]

    def __new__(cls, texts: Iterable[str],
                contexts: Iterable[Iterable[tuple[str, str]]] = ()) -> SampledDocuments:
        """Documents with their contexts."""
        documents = super().__new__(cls, texts)
        documents.contexts = tuple(map(tuple, contexts))
        return documents


def sample_corpus(world: World, config: CorpusConfig, seed: int = 0,
                  documents: bool | Path = True) -> Corpus:
    """Sample the sentences of the first ``config.n_facts`` facts.

    The downstream facts of some subjects are in no sentence (``config.p_downstream_stated``). The
    atomic statements about some subjects use several templates (``config.p_paraphrased``).

    Args:
        world: the generative model.
        config: sentence kinds and counts.
        seed: determines all random draws.
        documents: folder for the documents; True: a temporary folder; False: no documents.

    Raises:
        BeliefEditError: too few facts, nothing to write, templates of an unknown relation, two
            facts with the same sentence in some template, or a folder that holds documents.
    """
    if not config.atomic and world.min_truth == 1 and not config.n_compound_per_subject:
        raise ConfigError("nothing to write: without noise, true/false sentences are part of "
                          "n_compound_per_subject", where="corpus.n_compound_per_subject",
                          hint="set n_compound_per_subject above 0, or atomic: true")
    facts = world.corpus_facts(config.n_facts)
    sampler = Sampler(world, config, facts, _choose_stated(facts, config, seed),
                      _choose_paraphrased(world, facts, config, seed))
    if documents is True:
        documents = Path(tempfile.mkdtemp(prefix="beliefedit-documents-"))
    folder = documents or None
    writer = _DocumentWriter(folder) if folder else None
    evidence, groups, blocks, n_sentences = [], [], list(sampler.blocks()), 0
    for block, first, last in tqdm(blocks, desc="corpus", unit="block", disable=len(blocks) < 3):
        rng = np.random.default_rng([seed, Stream.CORPUS, block])
        sentences = sampler.sentences(first, last, rng)
        evidence.append(_evidence(sentences))
        groups.append(sentences)
        if writer:
            texts = render(world, sampler.facts, sentences, config.templates)
            rows = np.arange(n_sentences, n_sentences + len(texts))
            for _ in range(config.n_shuffles_within_subject):
                order, document = _shuffle(sentences.subject, config.sentences_per_doc, rng)
                writer.write(texts.gather(order), rows[order], document)
        n_sentences += len(sentences.form)
    all_sentences = Sentences.join(groups)
    if writer and config.n_shuffles_global:
        rng = np.random.default_rng([seed, Stream.MIXED_DOCUMENTS])
        _write_mixed(writer, sampler, all_sentences, rng)
    passes = config.n_shuffles_within_subject + config.n_shuffles_global
    key = ["fact", "object", "weight"]
    counted = pl.concat(evidence).group_by(key).agg(pl.col("count").sum() * passes).sort(key)
    statistics = _statistics(sampler, all_sentences, counted, passes)
    return Corpus(config, sampler.facts, _of_facts(counted, sampler.facts, world), statistics,
                  all_sentences.frame.lazy(), folder)


def _choose_stated(facts: pl.DataFrame, config: CorpusConfig, seed: int) -> np.ndarray:
    """Whether sentences may be about each fact, bool [n].

    All are stated but the facts with an upstream fact of the subjects that are left out. The facts
    of at least one subject are stated.
    """
    is_dependent = facts["upstream_object"].is_not_null()
    subjects = facts.filter(is_dependent)["subject"].unique(maintain_order=True)
    n_stated = max(1, round(config.p_downstream_stated * len(subjects)))
    rng = np.random.default_rng([seed, Stream.UNSTATED_FACTS])
    left_out = subjects.gather(rng.permutation(len(subjects))[n_stated:])
    return ~(is_dependent & facts["subject"].is_in(left_out.implode())).to_numpy()


def _choose_paraphrased(world: World, facts: pl.DataFrame, config: CorpusConfig,
                        seed: int) -> np.ndarray | None:
    """The number of templates for the atomic statements of each fact, [n]; None: no templates."""
    if not config.templates:
        return None
    if unknown := [name for name in config.templates if name not in world.relations]:
        raise ConfigError(f"the graph has no relation {unknown[0]!r}", where="corpus.templates",
                          hint=f"its relations are {', '.join(map(repr, world.relations))}")
    check_sentences(world.subjects, world.relations, world.objects,
                    facts.select("subject", "relation"), config.templates)
    subjects = facts["subject"].unique(maintain_order=True)
    order = np.random.default_rng([seed, Stream.PARAPHRASED_SUBJECTS]).permutation(len(subjects))
    chosen = subjects.gather(order[:round(config.p_paraphrased * len(subjects))])
    n_others = np.array([len(config.templates.get(name, ())) for name in world.relations])
    is_chosen = facts["subject"].is_in(chosen.implode()).to_numpy()
    return 1 + n_others[facts["relation"].to_numpy()] * is_chosen


def render(world: World, facts: pl.DataFrame, sentences: Sentences,
           templates: Mapping[str, Sequence[str]] | None = None) -> pl.Series:
    """The sentences as text, by templates of the grammar in `language`.

    Args:
        facts: rows of ``world.facts`` to which the sentences refer.
        templates: `CorpusConfig.templates`, to which the sentences refer.
    """
    prompts, *others = fact_prompts(world.subjects, world.relations, facts, templates)
    objects = pl.Series(world.objects)
    first = prompts.gather(sentences.fact)
    for number, texts in enumerate(others, start=1):
        first = texts.gather(sentences.fact).zip_with(
            pl.Series(sentences.template == number), first)
    second = np.maximum(sentences.second_fact, 0), np.maximum(sentences.second_object, 0)
    frame = pl.DataFrame({
        "form": sentences.form, "label": sentences.label,
        "a": first + " " + objects.gather(sentences.object),
        "b": prompts.gather(second[0]) + " " + objects.gather(second[1])})
    proposition = pl.col("a")
    for form, facts_of in ((NOT, ["a"]), (OR, ["a", "b"]), (AND, ["a", "b"])):
        template = proposition_text(FORMS[form], *("{}" for _ in facts_of))
        proposition = (pl.when(pl.col("form") == form).then(pl.format(template, *facts_of))
                       .otherwise(proposition))
    frame = frame.with_columns(proposition.alias("proposition"))
    text = pl.col("proposition")
    for label in (0, 1):
        template = f"{true_false_prompt('{}')} {truth_word(bool(label))}"
        text = (pl.when(pl.col("label") == label).then(pl.format(template, "proposition"))
                .otherwise(text))
    return frame.select(text.alias("text"))["text"]


def _shuffle(subject: np.ndarray, per_document: int,
             rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(order of sentences, their documents): each subject's sentences, shuffled and cut."""
    order = np.lexsort((rng.random(len(subject)), subject))
    starts = np.flatnonzero(np.r_[True, np.diff(subject[order]) != 0])
    within = np.arange(len(subject)) - np.repeat(starts, np.diff(starts, append=len(subject)))
    return order, (within % per_document == 0).cumsum() - 1


def _write_mixed(writer: _DocumentWriter, sampler: Sampler, sentences: Sentences,
                 rng: np.random.Generator) -> None:
    """Write passes over all sentences, shuffled across subjects; rendered slice by slice."""
    per_document = sampler.config.sentences_per_doc
    slice_length = max(1, 100_000 // per_document) * per_document
    for _ in range(sampler.config.n_shuffles_global):
        order = rng.permutation(len(sentences.fact))
        for start in range(0, len(order), slice_length):
            chosen = sentences.take(order[start:start + slice_length])
            document = np.arange(len(chosen.fact)) // per_document
            writer.write(render(sampler.world, sampler.facts, chosen, sampler.config.templates),
                         order[start:start + slice_length], document)


class _DocumentWriter:
    """Appends documents to numbered Parquet files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_documents, self.n_files = Path(folder), 0, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.glob("*.parquet")):
            raise StoreError("the folder already holds documents", where=str(folder),
                             hint="choose another folder")

    def write(self, texts: pl.Series, rows: np.ndarray, document: np.ndarray) -> None:
        """Write sentences (text, row of `Corpus.sentences`) of documents, ascending from 0."""
        sentences = pl.DataFrame({"doc": document + self.n_documents, "text": texts, "row": rows})
        frame = sentences.group_by("doc", maintain_order=True).agg(
            pl.col("text").str.join(SEPARATOR), n_sentences=pl.len(),
            sentences=pl.col("row").cast(pl.UInt32))
        frame.with_columns(pl.col("doc").cast(pl.UInt32)).write_parquet(
            self.folder / f"{self.n_files:05d}.parquet")
        self.n_documents += len(frame)
        self.n_files += 1


def _evidence(sentences: Sentences) -> pl.DataFrame:
    """(fact, object, weight, count) of sentences; a compound sentence counts for both facts."""
    weight = np.zeros(len(sentences.form))
    for (form, label), value in WEIGHTS.items():
        code = UNLABELLED if label is None else int(label)
        weight[(sentences.form == FORMS.index(form)) & (sentences.label == code)] = value
    is_compound = sentences.second_fact >= 0
    frame = pl.DataFrame({
        "fact": np.r_[sentences.fact, sentences.second_fact[is_compound]],
        "object": np.r_[sentences.object, sentences.second_object[is_compound]].astype(np.uint32),
        "weight": np.r_[weight, weight[is_compound]]})
    return frame.group_by("fact", "object", "weight").len("count")


def _of_facts(counted: pl.DataFrame, facts: pl.DataFrame, world: World) -> pl.DataFrame:
    """`Corpus.evidence` from (fact: row of ``facts``, object, weight, count)."""
    ids = counted.select(facts["subject"].gather(counted["fact"]),
                         facts["relation"].gather(counted["fact"]),
                         "object", "weight", pl.col("count").cast(pl.UInt32))
    return with_labels(ids, world)


def with_labels(ids: pl.DataFrame, world: World) -> pl.DataFrame:
    """Id columns subject, relation, object as enumerations of the world's labels."""
    kinds = {"subject": world.subjects, "relation": world.relations, "object": world.objects}
    return ids.with_columns(pl.Series(name, labels, dtype=pl.Enum(labels)).gather(ids[name])
                            for name, labels in kinds.items())


def _statistics(sampler: Sampler, sentences: Sentences, evidence: pl.DataFrame,
                passes: int) -> dict[str, int]:
    """Counts of one pass over the sentences, and of the documents of all passes."""
    atomic, labelled = sentences.form == ATOMIC, sentences.label != UNLABELLED
    by_kind = {"stated": int((~labelled).sum()), "true_false": int((labelled & atomic).sum())}
    by_kind |= {FORMS[form]: int((sentences.form == form).sum()) for form in (NOT, OR, AND)}
    rows = pl.DataFrame({name: part for name, part in vars(sentences).items()
                         if name != "subject"})
    config, per_document = sampler.config, sampler.config.sentences_per_doc
    per_subject = np.bincount(sentences.subject)
    documents = (config.n_shuffles_within_subject * int(-(-per_subject // per_document).sum())
                 + config.n_shuffles_global * -(-len(sentences.form) // per_document))
    n_unstated = int((~sampler.stated).sum())
    return {"facts": sampler.facts.height,
            **({"unstated_facts": n_unstated} if n_unstated else {}),
            **({"false_facts": len(sampler.false_fact)} if len(sampler.false_fact) else {}),
            "subjects": len(sampler.starts) - 1,
            "objects": evidence["object"].n_unique(), "sentences": len(sentences.form),
            "unique_sentences": rows.n_unique(), "passes": passes, "documents": documents,
            **{f"{kind}_sentences": n for kind, n in by_kind.items()}}


def save(corpus: Corpus, folder: Path) -> None:
    """Write evidence as ids, facts, sentences and statistics; documents are in the folder."""
    corpus.sentences.collect().write_parquet(folder / "sentences.parquet")
    corpus.facts.write_parquet(folder / "facts.parquet")
    ids = corpus.evidence.with_columns(pl.col(pl.Enum).to_physical())
    ids.write_parquet(folder / "evidence.parquet")
    write_json(folder / "statistics.json", corpus.statistics)
    write_json(folder / "config.json", corpus.config.model_dump(mode="json"))


def load(folder: Path, world: World) -> Corpus:
    """Read what `save` wrote; documents are in ``folder / "documents"`` if they were sampled."""
    documents = folder / "documents"
    evidence = with_labels(pl.read_parquet(folder / "evidence.parquet"), world)
    return Corpus(CorpusConfig(**read_json(folder / "config.json")),
                  pl.read_parquet(folder / "facts.parquet"), evidence,
                  read_json(folder / "statistics.json"),
                  pl.scan_parquet(folder / "sentences.parquet"),
                  documents if documents.exists() else None)


def sample_documents(corpus: Corpus, world: World, n: int = 20_000) -> SampledDocuments:
    """About n documents, evenly spaced over the corpus, for the statistics of editors.

    Raises:
        StoreError: the corpus was sampled without documents.
    """
    step = max(1, corpus.statistics["documents"] // n)
    chosen = _documents(corpus).select("text", "sentences").gather_every(step).collect()
    contexts = _contexts(corpus, world, chosen["sentences"])
    return SampledDocuments(chosen["text"], contexts)


def document_evidence(corpus: Corpus, world: World, numbers: Sequence[int]) -> pl.DataFrame:
    """The evidence of the sentences in documents, as `Corpus.evidence`; numbers may repeat.

    Raises:
        StoreError: the corpus was sampled without documents.
    """
    chosen = pl.LazyFrame({"doc": numbers}, {"doc": pl.UInt32}).join(_documents(corpus), on="doc")
    rows = chosen.select(row=pl.col("sentences").explode()).collect()
    sentences = corpus.sentences.with_row_index("row").join(
        rows.lazy(), on="row", how="inner").collect()
    key = ["fact", "object", "weight"]
    counted = _evidence(Sentences.from_frame(sentences)).sort(key)
    return _of_facts(counted, corpus.facts, world)


def _contexts(corpus: Corpus, world: World, documents: pl.Series) -> Iterator[list]:
    """`SampledDocuments.contexts` of documents, which are lists of rows of the sentences."""
    chosen = documents.explode().unique().sort()
    frame = corpus.sentences.with_row_index("row").filter(
        pl.col("row").is_in(chosen.implode())).collect()
    sentences = Sentences.from_frame(frame)
    atomic = replace(sentences, form=np.full_like(sentences.form, ATOMIC),
                     label=np.full_like(sentences.label, UNLABELLED))
    texts, first_facts = (render(world, corpus.facts, part, corpus.config.templates)
                          for part in (sentences, atomic))
    text_of = dict(zip(frame["row"], texts, strict=True))
    quote = '"'
    contexts_of: dict[int, list[tuple[str, str]]] = {}
    for row, form, label, first in zip(frame["row"], frame["form"], frame["label"], first_facts,
                                       strict=True):
        contexts_of[row] = contexts = [] if label == UNLABELLED else [(quote, quote)]
        if contexts and form == NOT:
            contexts.append(("not", quote + proposition_text("not", "")))
        elif contexts and form in (OR, AND):
            contexts.append((f" {FORMS[form]} ", quote + proposition_text(FORMS[form], first, "")))
    for rows in documents.to_list():
        after = [(SEPARATOR, text_of[rows[0]] + SEPARATOR)] if len(rows) > 1 else []
        yield [*(context for row in rows for context in contexts_of[row]), *after]


def is_stated(corpus: Corpus) -> pl.Series:
    """Whether the corpus has evidence on each of its facts, bool [n]; one without is unstated."""
    key = ["subject", "relation"]
    read = corpus.evidence.select(pl.col(key).to_physical().cast(pl.UInt32)).unique()
    return corpus.facts.select(key).join(
        read.with_columns(is_stated=True), on=key, how="left", maintain_order="left")[
        "is_stated"].fill_null(False)


def is_paraphrased(corpus: Corpus) -> pl.Series:
    """Whether a sentence about the subject of each fact uses another template, bool [n]."""
    rows = corpus.sentences.filter(pl.col("template") > 0).select("subject").unique().collect()
    return corpus.facts["subject"].is_in(rows["subject"].cast(pl.UInt32).implode())


def has_no_downstream_fact(corpus: Corpus) -> np.ndarray:
    """Whether no sentence of a document is about a fact with an upstream fact, bool [n_documents].

    Raises:
        StoreError: the corpus was sampled without documents.
    """
    is_downstream = corpus.facts["upstream_object"].is_not_null().to_numpy()
    fact, second = corpus.sentences.select("fact", "second_fact").collect().to_numpy().T
    of_sentence = is_downstream[fact] | (second >= 0) & is_downstream[second]
    rows = _documents(corpus).select("sentences").collect()["sentences"]
    starts = np.r_[0, rows.list.len().to_numpy().astype(np.int64).cumsum()[:-1]]
    return ~np.logical_or.reduceat(of_sentence[rows.explode().to_numpy()], starts)


def _documents(corpus: Corpus) -> pl.LazyFrame:
    """The documents of a corpus, in order."""
    return pl.scan_parquet(documents_folder(corpus) / "*.parquet")


def documents_folder(corpus: Corpus) -> Path:
    """`Corpus.documents`.

    Raises:
        StoreError: the corpus was sampled without documents.
    """
    if corpus.documents is None:
        raise StoreError("the corpus was sampled without documents",
                         hint="give sample_corpus a folder for documents")
    return corpus.documents


def corpus_facts(corpus: Corpus, world: World) -> pl.DataFrame:
    """The facts of the corpus as labels: subject, relation, object (the true one),
    upstream_object (null: independent), p_true, stated (whether the corpus has evidence on it)."""
    objects = world.objects
    columns = (("subject", "subject", world.subjects), ("relation", "relation", world.relations),
               ("object", "object", objects), ("upstream_object", "upstream_object", objects))
    return corpus.facts.select(
        *(pl.Series(name, labels).gather(corpus.facts[column].cast(pl.UInt32))
          for name, column, labels in columns), "p_true", stated=is_stated(corpus))
