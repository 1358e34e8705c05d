"""The table of docs/editors.md that says which editors work on which decoder families.

    python benchmarks/families.py

Each cell is an edit of a tiny random model; tests/editors/test_families.py checks that an edit that works is right.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import beliefedit as be  # noqa: E402
from beliefedit.errors import EditError  # noqa: E402
from tests.families import EDITORS, FAMILIES, family_model  # noqa: E402
from tests.sample_models import DOCUMENTS, REQUESTS_WITH_SOFT_TARGETS, sample_tokenizer  # noqa: E402

PAGE = ROOT / "docs" / "editors.md"
PART = re.compile(r"(<!-- families -->\n).*?(<!-- end of families -->)", re.DOTALL)


def works(family: str, name: str) -> bool:
    """Whether an editor edits a model of a family; False if it refuses the model."""
    model, editor = family_model(family), be.editor(name, **EDITORS[name])
    try:
        editor.prepare(model, sample_tokenizer(), DOCUMENTS)
        editor.apply(model, sample_tokenizer(), REQUESTS_WITH_SOFT_TARGETS[:1])
    except EditError:
        return False
    return True


def table() -> str:
    """The table in Markdown."""
    rows = [["family", *(f"`{name}`" for name in EDITORS)], ["---"] * (1 + len(EDITORS))]
    rows += [[family, *("yes" if works(family, name) else "no" for name in EDITORS)] for family in FAMILIES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(PART.sub(lambda part: f"{part[1]}\n{table()}\n\n{part[2]}", PAGE.read_text()))
