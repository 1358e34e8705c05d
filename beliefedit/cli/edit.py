"""`beliefedit edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beliefedit.config import ModelConfig, parse_override
from beliefedit.errors import ConfigError, EditError
from beliefedit.formatting import interval, number, text_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from beliefedit.requests.scoreboard import Scoreboard


@click.command()
@click.argument("model")
@click.argument("requests", type=click.Path(path_type=Path))
@click.option("--editors", default="lora", show_default=True, metavar="NAME,NAME",
              help="The editors to compare.")
@click.option("--set", "settings", multiple=True, metavar="EDITOR.KEY=VALUE",
              help="Change a hyperparameter, e.g. lora.lr=1e-3; may be repeated.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="For the page and the scores.  [runs/NAME OF THE REQUESTS]")
@click.option("--format", "layout", metavar="NAME", help=(
    "The layout of the requests: plain, counterfact, mquake, zsre, knowedit or rippleedits.  "
    "[recognised]"))
@click.option("--limit", type=click.IntRange(1), help="Read only this many items.")
@click.option("--texts", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help=(
    "A text per line, for editors that need a corpus.  [prompts and answers of the requests]"))
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1),
              help="Edits computed together; fewer need less memory.")
@click.option("--max-new-tokens", type=click.IntRange(1),
              help="The length limit of answers.  [the longest right answer]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", default=0, show_default=True, help="Of the intervals.")
def edit(*, model: str, requests: Path, editors: str, settings: tuple[str, ...],
         out: Path | None, layout: str | None, limit: int | None, texts: Path | None,
         batch_size: int, max_new_tokens: int | None, device: str, seed: int) -> None:
    """Edit MODEL by REQUESTS from a file, and score the edited models.

    MODEL is a folder with a model, the name of one on Hugging Face, or the folder of a run.
    REQUESTS is a .csv, .tsv, .json, .jsonl or .parquet file. Running it again reuses the results
    of editors that did not change.
    """
    from beliefedit.requests.files import read_requests
    from beliefedit.requests.scoreboard import edit as edit_model

    hyperparameters = editor_settings(editors, settings)
    cases = read_requests(requests, format=layout, limit=limit)
    lines = None if texts is None else read_texts(texts)
    loaded, tokenizer = open_model(model, device)
    folder = out or Path("runs") / requests.stem
    board = edit_model(loaded, tokenizer, cases, hyperparameters, texts=lines, out=folder,
                       batch_size=batch_size, max_new_tokens=max_new_tokens, seed=seed, name=model)
    click.echo(board_text(board))
    click.echo(f"\nOpen {folder / 'index.html'}")


def editor_settings(editors: str, settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The hyperparameters of each named editor.

    Raises:
        ConfigError: a setting is of no named editor, or is not EDITOR.KEY=VALUE.
    """
    chosen: dict[str, dict[str, Any]] = {
        name.strip(): {} for name in editors.split(",") if name.strip()}
    for text in settings:
        key, value = parse_override(text)
        name, _, parameter = key.removeprefix("edit.editors.").partition(".")
        if name not in chosen or not parameter:
            raise ConfigError(f"{key!r} sets no hyperparameter of an editor", where="--set", hint=(
                f"write EDITOR.KEY=VALUE with an editor of --editors: {', '.join(chosen)}"))
        chosen[name][parameter] = value
    return chosen


def read_texts(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        EditError: it cannot be read, or has no text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise EditError(f"cannot read the texts: {getattr(error, 'strerror', None) or error}",
                        where=str(path), hint="give a file in UTF-8 with a text per line") from None
    if not any(lines):
        raise EditError("the file has no text", where=str(path), hint="write a text per line")
    return [line for line in lines if line]


def open_model(name: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model and its tokenizer, from a run folder, a model folder or Hugging Face.

    Raises:
        ConfigError: no usable model or tokenizer of that name, or an unknown device.
        StoreError: the run has no model, or a damaged one.
    """
    import torch

    from beliefedit.lm.model import build_model, load_model, resolve_device
    from beliefedit.lm.tokenizer import load_tokenizer
    from beliefedit.record import SUMMARY
    from beliefedit.run import Run

    chosen = resolve_device(device)
    if (Path(name) / SUMMARY).exists():
        return load_model(Run.open(name, read_only=True).path("model"), chosen)
    tokenizer = load_tokenizer(name)
    model = build_model(ModelConfig(init_from=name, tokenizer=name), tokenizer, torch.Generator())
    return model.to(chosen), tokenizer


def board_text(board: Scoreboard) -> str:
    """The scoreboard as text: a row per editor, a column per measure."""
    shown = board.table.filter(scoring="exact")
    measures = shown["measure"].unique(maintain_order=True).to_list()
    cells = {(row["editor"], row["measure"]): interval(row["mean"], row["low"], row["high"])
             for row in shown.iter_rows(named=True)}
    of_editor = {row["editor"]: row for row in board.edits.iter_rows(named=True)}
    rows = []
    for editor in board.scores["editor"].unique(maintain_order=True):
        counts = of_editor.get(editor, {})
        rows.append([editor, *(cells.get((editor, measure), "–") for measure in measures),
                     *(f"{counts[key]:,}" if counts else "–" for key in ("refused", "diverged")),
                     number(counts.get("ms"), 1)])
    return text_table(["", *measures, "refused", "diverged", "ms per edit"], rows)
