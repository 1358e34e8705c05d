"""docs/results.md, written from the JSON files of benchmarks/results; and those files from finished runs.

    python benchmarks/results_page.py                                  # write the page
    python benchmarks/results_page.py --run runs/demo                  # first record a finished run
    python benchmarks/results_page.py --as-published FILE              # … the output of benchmarks/as_published.py runs/demo

Every JSON file has a `provenance`: command, date, commit and machine. A new record takes today, the checkout's commit and
this machine, unless --date, --commit or --machine says otherwise; the date of a run is that of its summary.json.
`pretraining-demo.json` is written by benchmarks/pretraining.py, `editors-*.json` by benchmarks/editors.py; `gpu-h100.json` is put together from the files of benchmarks/gpu.py; `agreement.json` is written by hand.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

import beliefedit as be
from beliefedit.formatting import duration, interval, number
from beliefedit.store import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
EDITED, DOWNSTREAM, OTHER = ("same_subject_same_relation", "same_subject_other_relation", "other_subject_same_relation")
STAYS = ("generalisation", "downstream answer stays")


class Row(NamedTuple):
    """A row of the demo's tables: label, definition, and the cell of `Run.tables` it shows."""

    label: str
    definition: str
    table: str
    group: str
    measure: str
    state: str


OUTCOMES = (
    Row("edit success", "the greedy answer on the edited fact is the requested object",
        "updating", "updating", f"accuracy_{EDITED}", "after"),
    Row("downstream accuracy", "the answer on the downstream fact is the one that the agent expects, where the edit changes it",
        "downstream", "downstream", f"accuracy_{DOWNSTREAM}", "after"),
    Row("same subject, change of accuracy", "the answer on another fact of the subject that should stay",
        *STAYS, f"accuracy_{DOWNSTREAM}", "difference"),
    Row("other subject, change of accuracy", "the answer on the same relation of another subject",
        "updating", "updating", f"accuracy_{OTHER}", "difference"),
    Row("true/false error, change", "absolute difference between the probability of an object as the answer and the credence in the same statement",
        "updating", "updating", "true_false", "difference"))
BELIEFS = (
    Row("p(request)", "the model's probability of the requested object", "updating", "updating", "p_request", "after"),
    Row("edited fact, change of coherence error", "absolute difference between model and agent in the probability of the right object",
        "updating", "updating", f"coherence_{EDITED}", "difference"),
    Row("downstream fact, change of coherence error", "the same, where the edit changes the downstream answer",
        "downstream", "downstream", f"coherence_{DOWNSTREAM}", "difference"),
    Row("other subject, change of coherence error", "the same, on the same relation of another subject",
        "updating", "updating", f"coherence_{OTHER}", "difference"),
    *(Row(f"{name} error, change", definition, "updating", "updating", name, "difference") for name, definition in (
        ("negation", "credence in A and in not A should add up to 1"),
        ("conjunction", "credence in A and B should be the product of both"),
        ("disjunction", "credence in A or B should be p(A) + p(B) − p(A) p(B)"),
        ("commutation", "credence in A and B should equal that in B and A"))))
SEQUENTIAL = (
    ("latest", "accuracy", "edits since the previous length, each right after it was made"),
    ("all_edits", "accuracy", "all edits of the sequence so far"),
    ("unedited_facts", "accuracy", "facts of subjects that no edit concerns"),
    ("corpus_loss", "loss", "loss on documents of the corpus, nats per token"))
TESTS = (
    ("order", "requests a, b against b, a: difference of the probabilities of both"),
    ("repetition", "the same request twice: distance from the agent's belief after twice the evidence"),
    ("retraction", "the request, then its opposite: change of beliefs against those before any edit"),
    ("strength", "evidence for beliefs of 0.6, 0.8, 0.95 and 0.99: distance from the agent's belief"),
    ("slope", "slope of the model's probability over the agent's belief in these edits"),
    ("irrelevance", "change of beliefs in unrelated facts"))
EDITOR_COLUMNS = {
    "success": "edit success",
    "downstream": "downstream accuracy",
    "downstream, other object": "downstream accuracy where the new answer is not the requested object",
    "downstream, unstated": "downstream facts that the corpus does not state",
    "stays": "downstream accuracy where the answer stays",
    "other subject": "accuracy, same relation of another subject",
    "true_false": "true/false statements about the downstream fact",
    "coherence error": "coherence error, mean of four probes"}
LEARNED = {"atomic": "atomic statements", "true_false": "true/false statements", "not": "“not” statements",
           "and": "“and” statements", "or": "“or” statements", "coherence": "coherence error"}


# Records

def describe_machine() -> str:
    """The GPU, or the number and model of CPUs."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    bfloat16 = "with" if re.search(r"avx512_bf16|amx_bf16", info) else "without"
    return f"{os.cpu_count()} {model[1] if model else platform.processor()} cores {bfloat16} bfloat16"


def provenance(command: str, date: str = "", commit: str = "", machine: str = "") -> dict[str, str]:
    """Where a record comes from; what is not given is today, the checkout's commit and this machine."""
    if not commit:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True,
                                text=True, check=True).stdout.strip()
    return {"command": command, "date": date or datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit, "machine": machine or describe_machine()}


def record_run(folder: Path, **given: str) -> dict[str, Any]:
    """What the page shows of a finished run, as `demo.json` has it."""
    run = be.Run.open(folder, read_only=True)
    summary, last = read_json(folder / "summary.json"), run.training_metrics.row(-1, named=True)
    pooled = run.tables.filter(pl.col("seed").is_null())
    cells = pl.DataFrame([row[2:] for row in (*OUTCOMES, *BELIEFS)], orient="row",
                         schema=["table", "group", "measure", "state"])
    given["date"] = given.get("date") or summary["finished"].split()[0]
    command = "python run_all.py" + (
        "" if summary["params_file"] == "demo.yaml" else f" --params params/{summary['params_file']}")
    return {
        "provenance": provenance(command, **given), "versions": summary["versions"], "seed": summary["seed"],
        "label_smoothing": run.config.pretraining.label_smoothing, "data": summary["data"], "model": summary["model"], "seconds": summary["seconds"],
        "training": {name: last[name] for name in ("tokens", "n_unique_tokens", "seconds", *LEARNED)},
        "edits": _rows(cells.join(pooled, on=cells.columns, maintain_order="left").select(
            *cells.columns, "editor", "n", "mean", "low", "high")),
        "sequential": _rows(run.sequential.join(
            pl.DataFrame([row[:2] for row in SEQUENTIAL], orient="row", schema=["group", "measure"]),
            on=["group", "measure"], how="semi", maintain_order="left")),
        "rationality": _rows(run.rationality)}


def record_as_published(text: str, **given: str) -> dict[str, Any]:
    """The largest differences that benchmarks/as_published.py prints, as `as-published.json` has them."""
    largest: dict[str, float] = {}
    for dtype, value in re.findall(r"^(\w+), .*: (\S+)$", text, flags=re.MULTILINE):
        largest[dtype] = max(largest.get(dtype, 0.0), float(value))
    return {"provenance": provenance("python benchmarks/as_published.py runs/demo", **given), "cases": 32,
            "largest_difference": largest}


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, floats rounded to six decimals."""
    return frame.with_columns(pl.col(pl.Float64).round(6) + 0.0).to_dicts()


# Page

def table(head: Sequence[str], rows: Iterable[Sequence[str]], n_text: int = 1) -> str:
    """A Markdown table; its first columns hold text, the others numbers."""
    lines = [head, ["---"] * n_text + ["---:"] * (len(head) - n_text), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def source(record: Mapping[str, Any]) -> str:
    """A line that says where a record comes from."""
    found = record["provenance"]
    command = f"`{found['command']}`, " if found["command"] else "Measured on "
    return f"{command}{found['date']}, commit {found['commit']}, {found['machine']}."


def cell(row: Mapping[str, Any] | None, signed: bool = False, decimals: int = 2) -> str:
    """A mean with its interval."""
    return interval(None, None, None) if row is None else interval(
        row["mean"], row["low"], row["high"], decimals, signed)


def find(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """The first row with these values."""
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def editors_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The editors of some rows, in order."""
    return list(dict.fromkeys(row["editor"] for row in rows))


def demo_section(record: Mapping[str, Any]) -> str:
    """What the model of a run has learned, and what its editors do."""
    training, edits = record["training"], record["edits"]
    editors, columns = editors_of(edits), [f"`{editor}`" for editor in editors_of(edits)]

    def outcome(row: Row) -> list[str]:
        found = [find(edits, editor=editor, **{key: getattr(row, key) for key in ("table", "group", "measure", "state")})
                 for editor in editors]
        n = next((one["n"] for one in found if one), 0)
        return [f"**{row.label}**: {row.definition}", str(n), *(cell(one, row.state == "difference") for one in found)]

    head = ["measure", "edits", *columns]
    return f"""## The demo

{source(record)}

Data: {record["data"]}. Model: {record["model"]}. One seed ({record["seed"]}), label smoothing {record["label_smoothing"]} (arXiv 1512.00567; the [reason](experiments/2026-11-22-coherence-floor.md)).
The notebooks take {duration(record["seconds"])}, of which training takes {duration(training["seconds"])}. It processes {number(training["tokens"], 0)} tokens of documents and computes {number(training["n_unique_tokens"], 0)} of them, as documents share prefixes.

**What the model has learned.** Accuracy on statements by kind, and the mean distance between model and agent in the probability of a true object:

{table(list(LEARNED.values()), [[number(training[name], 3) for name in LEARNED]], n_text=0)}

**What an edit does.** All rows count requests that contradict the model's answer. The column `edits` is their number. "Change" is after minus before. Brackets hold 95 % bootstrap intervals clustered by subject (Efron and Tibshirani 1993).
Credence in a statement is p("true") / (p("true") + p("false")) (arXiv 2406.03442).

{table(head, map(outcome, OUTCOMES))}

**Distance from the agent, and logical errors.** A positive change of an error means that the edit moves the model away from the agent, or makes its statements less consistent. The right object is the original one before the edit. After it, it is the requested object, or the one that the agent expects.

{table(head, map(outcome, BELIEFS))}
"""


def sequential_section(record: Mapping[str, Any]) -> str:
    """Accuracy and loss of a run's sequential edits."""
    rows = record["sequential"]
    lengths = list(dict.fromkeys(row["n_edits"] for row in rows))
    lines = [[f"`{editor}`", text, *(cell(find(rows, editor=editor, group=group, measure=measure, n_edits=length))
                                     for length in lengths)]
             for editor in editors_of(rows) for group, measure, text in SEQUENTIAL]
    n = max((row["n"] for row in rows), default=0)
    return f"""## Sequential edits

{source(record)}

One model takes edits one after another; the columns are numbers of edits. All rows but the last of an editor are accuracies. Means over {n} sequences with 95 % intervals over sequences (Student's t).

{table(["editor", "measured on", *map(str, lengths)], lines, n_text=2)}
"""


def rationality_section(record: Mapping[str, Any]) -> str:
    """The rationality tests of a run's editors."""
    rows = record["rationality"]
    editors = editors_of(rows)
    lines = [[f"**{test}**: {text}", *(cell(find(rows, editor=editor, test=test, who="lm"), decimals=3) for editor in editors),
              cell(find(rows, editor=editors[0], test=test, who="agent"), decimals=3)] for test, text in TESTS]
    n = max((row["n"] for row in rows), default=0)
    return f"""## Rationality tests

{source(record)}

A Bayesian agent passes each test, so its column is the reference. The distance from it is the error. Means over {n} subjects with 95 % intervals.

{table(["test", *(f"`{editor}`" for editor in editors), "agent"], lines)}
"""


SCOREBOARDS = {
    "demo": "## All editors\n\n**The demo's world**", "inference": "**The world of `params/inference.yaml`**, where the model "
    "infers downstream facts that it has not read", "graph": "**FB13**, a real graph of people, places and professions "
    "(`params/graph.yaml`)"}
"""File editors-NAME.json -> the head of its section."""


def editors_section(record: Mapping[str, Any], head: str = SCOREBOARDS["demo"]) -> str:
    """All editors on the same requests."""
    columns = {name: text for name, text in EDITOR_COLUMNS.items()
               if any(row[name][0] is not None for row in record["rows"])}
    if all(abs(row["downstream"][0] - row["downstream, other object"][0]) < 0.02 for row in record["rows"]):
        del columns["downstream, other object"]
    lines = []
    for row in record["rows"]:
        name = f"`{row['editor']}`" if row["editor"].isidentifier() else row["editor"]
        lines.append([name, number(row["n"], 0), *(interval(*row[column]) for column in columns),
                      "yes" if row["trained_on"] == 1 else "no"])
    note = f"\n{record['note']}\n" if "note" in record else ""
    explained = """ Means with 95 % intervals clustered by subject. [Editors](editors.md) describes each method.
The last column says whether the editor is trained on the downstream fact itself. If it is, a right answer is not an inference.""" if head.startswith("#") else ""
    return f"""{head}. {source(record)}

{number(record["n"], 0)} requests{f" to {record['n_runs']} models of different seeds" * (record["n_runs"] > 1)}; half of them change the downstream answer.{explained}
{note}
{table(["editor", "edits", *columns.values(), "trained on it"], lines)}
"""


def scoreboards(results: Mapping[str, Any]) -> list[str]:
    """The sections of the editors, by world."""
    return [editors_section(results[f"editors-{name}"], head) for name, head in SCOREBOARDS.items()
            if f"editors-{name}" in results]


def pretraining_section(record: Mapping[str, Any]) -> str:
    """Training of the demo's model against the published recipe."""
    learned, ours, published = record["learned"], record["ours"][-1], record["published"][-1]
    lines = [[f"seconds until accuracy 0.9 on {' and '.join(LEARNED[kind] for kind in kinds.split(' and '))}, and kept",
              number(found["seconds"], 1),
              number(found["published_seconds"], 0) if found["published_seconds"] else
              f"not within {found['published_at_least']:.0f}"] for kinds, found in record["race"].items()]
    return f"""## Pretraining against the published loop

{source(record)}

Three trainings of the demo's model on the same documents. Two are this package's: one to the end of its budget, one until it reaches 0.9. The third is the published loop until it reaches 0.9, within a time limit: AdamW (arXiv 1711.05101) at 5e-5, one padded document per sequence. Seconds include evaluations.

At the end of its budget, this package's model has, after {number(learned["tokens"], 0)} tokens and {duration(learned["seconds"])}, in {number(record["peak_gigabytes"])} GB of memory:

{table(list(LEARNED.values()), [[number(learned[name], 3) for name in LEARNED]], n_text=0)}

{table(["", "this package", "published loop"], [
    ["tokens of documents per second", *(number(row["tokens"] / row["seconds"], 0) for row in (ours, published))], *lines])}

The package computes {number(record["computed_ratio"], 1)} times as many tokens per second as the published loop. As documents share prefixes, that is {number(record["throughput_ratio"], 1)} times as many tokens of documents.
"""


def families_line(found: Mapping[str, Mapping[str, float | str]]) -> str:
    """The differences of edits between a card and the CPU, in a sentence."""
    values = {(family, editor): value for family, row in found.items() for editor, value in row.items()
              if not isinstance(value, str)}
    far = {key: value for key, value in values.items() if value > 1e-3}
    rest = max(value for key, value in values.items() if key not in far)
    named = ", ".join(f"`{editor}` on {family} {value:.0e}" for (family, editor), value in far.items())
    return (f"Log-probabilities after an edit of a tiny random model of each decoder family ({len(found)} families, "
            f"{len({editor for _, editor in values})} editors, {len(values)} combinations) differ by at most {rest:.0e} nats between "
            f"card and CPU{', but for ' + named if far else ''}; "
            f"{sum(value <= 2e-5 for value in values.values())} of them by at most 2e-05.")


def gpu_section(record: Mapping[str, Any]) -> str:
    """The published setting on one GPU."""
    training, corpus = record["pretraining"], record["corpus"]
    speeds, edits = record["throughput"], record["edits"]
    seconds = {"corpus, agent's targets": sum(corpus["seconds"].values()), "pretraining": training["seconds"],
               "5,000 edits, scores, tables": sum(record["tables"]["seconds"].values())}
    curve = [[number(row["tokens"] / 1e6, 0), number(row["seconds"], 0), *(number(row[kind], 3) for kind in LEARNED)]
             for row in training["metrics"]]
    names = {"short": "one sentence per document", "published": "ten sentences per document, as published"}
    rates = [[f"{names[corpus]}: {variant}", number(row["tokens_per_second"] / 1e3, 0),
              number(row["unique_tokens_per_second"] / 1e3, 0), f"{100 * row['mfu']:.0f} %", number(row["peak_gib"], 0)]
             for name, row in speeds.items() for corpus, variant in [name.split(": ")]]
    published = speeds["published: documents, 64k"]["tokens_per_second"]
    return f"""## The setting of the paper on one GPU

{source(record)} {record["note"]}

Data: FB13 ({number(corpus["statistics"]["facts"], 0)} facts about {number(corpus["statistics"]["subjects"], 0)} people, `min_truth` 0.6), all kinds of sentences, `params/paper-fast.yaml`. Model: 83m: 12 layers × 512, 32,000 tokens. One seed.
The paper's graph, Wikidata5m, was not available. The published recipe, `params/paper.yaml`, was not run: at the measured {number(published / 1e3, 0)}k tokens of documents per second its 10⁹ tokens would take {number(1e9 / published / 60, 0)} minutes, and one pass over 204M tokens {number(204e6 / published / 60, 1)} minutes.

**Time from the graph to the tables:** {duration(sum(seconds.values()))} ({", ".join(f"{what}: {number(value, 0)} s" for what, value in seconds.items())}).

**Training.** Accuracies by tokens of documents. A pass over the corpus has 26M tokens.

{table(["million tokens", "seconds", *LEARNED.values()], curve, n_text=0)}

**Edits.** {number(record["edits_per_second"], 0)} LoRA edits of 40 steps per second, with the scores of all queries; {", ".join(f"{number(row['edits_per_second'], 0)} in batches of {size}" for size, row in sorted(edits.items(), key=lambda item: int(item[0])))} in a separate measurement of 512 edits. The learning rate, 2e-3, is that of the demo; it was not tuned for this size.

{table(["measure", "edits", "`lora`"], [[f"**{row.label}**", number(found["n"], 0), cell(found, signed=row.state == "difference")] for row, found in zip(OUTCOMES, record["outcomes"], strict=True)])}

**Speed of training steps**, in thousands of tokens per second. Tokens of shared prefixes are computed once. MFU is 6 FLOP per weight and computed token as a share of the {number(record["ceiling"]["tflops"], 0)} TFLOP/s of a large bfloat16 matrix product on this card. No step waits for the device (`torch.cuda.set_sync_debug_mode`).

{table(["documents: variant", "tokens of documents", "computed", "MFU", "GiB"], rates)}

With torch's Muon, which orthogonalizes one matrix after the other, batches of 32k tokens reach {number(record["throughput_torch_muon"]["short: trees, 32k, muon"]["tokens_per_second"] / 1e3, 0)}k.
Against the plain path on the CPU in float32, the loss of a batch differs by {record["equality"]["loss"]:.0e} (relative), its gradient by {record["equality"]["gradient"]:.0e}, log-probabilities by {record["equality"]["log_p"]:.0e} nats, and those after an edit by {record["equality"]["log_p_after_edit"]:.0e}.
{families_line(record["families"])}
"""


def agreement_section(published: Mapping[str, Any], toolkits: Mapping[str, Any]) -> str:
    """Agreement with the published code and with public toolkits."""
    limits = ", ".join(f"{value:.1e} in {dtype}" for dtype, value in published["largest_difference"].items())
    editors = [[row["setting"], *(f"{number(row[who]['success'])}, {number(row[who]['p'], 3)}" for who in ("toolkit", "ours")),
                number(row["cosine"], 4), number(row["cosine_least"], 4), number(row["p_difference"], 4)]
               for row in toolkits["editors"]]
    return f"""## Agreement with the published code

{source(published)}

With `edit.as_published`, before and after 40 steps of LoRA, on {published["cases"]} cases of the demo. Largest absolute difference in probabilities, substring accuracies and logical errors: {limits}.

{source(toolkits)} {toolkits["note"]}

{table(["compared", "result"], [[row["what"], row["result"]] for row in toolkits["published_code"]], n_text=2)}

## Agreement with public toolkits

{source(toolkits)} {toolkits["toolkit_note"]}

{table(["editor and setting", "EasyEdit: success, p(request)", "this package", "cosine of weight changes, median", "least", "largest difference of p"], editors)}

{table(["LoRA against", "learning rate", "largest difference of p", "largest difference of weights"],
       [[row["against"], row["lr"], row["p_difference"], row["weight_difference"]] for row in toolkits["lora"]])}
"""


def load_results(folder: Path = RESULTS) -> dict[str, Any]:
    """The JSON files by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def page(results: Mapping[str, Any]) -> str:
    """docs/results.md."""
    demo = results["demo"]
    return "\n".join(["""# Results

Today's figures. `python benchmarks/results_page.py` writes this page from the JSON files in `benchmarks/results`, so change those. Each section gives command, date, commit and machine.
Measures are defined in the [glossary](glossary.md) and in the [specification](specification.md), section 8. Older figures and trials that failed: [experiments](experiments/README.md).
""", demo_section(demo), sequential_section(demo), rationality_section(demo), *scoreboards(results),
        pretraining_section(results["pretraining-demo"]), gpu_section(results["gpu-h100"]),
        agreement_section(results["as-published"], results["agreement"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a finished demo run")
    parser.add_argument("--as-published", type=Path, help="saved output of benchmarks/as_published.py")
    for name in ("date", "commit", "machine"):
        parser.add_argument(f"--{name}", default="", help="of the new records")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("date", "commit", "machine")}
    if arguments.run:
        write_json(RESULTS / "demo.json", record_run(arguments.run, **given))
    if arguments.as_published:
        write_json(RESULTS / "as-published.json", record_as_published(arguments.as_published.read_text(), **given))
    PAGE.write_text(page(load_results()), encoding="utf-8")


if __name__ == "__main__":
    main()
