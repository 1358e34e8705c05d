"""README and documentation: links, words, generated parts, and every command."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from beliefedit.config import EDITOR_PARAMETERS, Experiment, fields_of
from beliefedit.store import read_json

from .conftest import ROOT

README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PACKAGE = sorted((ROOT / "beliefedit").rglob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

FORBIDDEN = re.compile(r"\b(told|in a row|goes on where|somebody else|what follows|busy cores|rational reader"
                       r"|judged rightly|reads on)\b", re.IGNORECASE)

NOT_RUN = {
    r"git clone ": "needs a network",
    r"cd ": "enters the clone",
    r"pip install ": "needs a network; .ci/run installs",
    r"pytest( -n 2 --dist loadfile)?$": "runs this test",
    r"pytest tests/fuzz --hypothesis-profile=long$": "takes an hour",
    r"conda ": "needs conda and a network",
    r"beliefedit playground": "starts a server; tests/e2e/test_playground.py opens the page",
    r"jupyter lab": "starts a server; tests/e2e/test_playground.py opens JupyterLab",
    r"python -m beliefedit.graph download ": "needs a network",
    r"python run_all.py .*data/wikidata5m": "needs the download",
    r"python benchmarks/gpu.py ": "needs a GPU; tests/e2e/test_benchmarks.py runs its steps on a small model",
    r"python run_all.py .*--engine ray": "tests/batch/test_cluster.py runs sweeps with Ray",
    r"export RAY_AUTH_MODE|ray (get-auth-token|start|stop)": "for several machines",
    r"torchrun ": "tests/batch/test_run_all.py starts two processes",
    r"beliefedit report .*--figures": "needs kaleido and a browser",
    r"beliefedit tune ": "takes a minute; tests/batch/test_tune.py tunes",
}
"""Beginnings of commands that are not run, and why."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """A page without code blocks, and links as their texts."""
    text = FENCE.sub("", text)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def headings(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    anchors: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        anchors[slug] = anchors.get(slug, -1) + 1
        if anchors[slug]:
            anchors[f"{slug}-{anchors[slug]}"] = 0
    return set(anchors)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_within_the_repository_resolve(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in headings(file)):
            broken.append(target)
    assert broken == []


def remarks(source: str) -> Iterator[tuple[int, str]]:
    """Comments and docstrings of a module, docstrings of attributes among them, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_docstrings_and_comments_cite_files_and_sections_that_exist():
    sections = set(re.findall(r"^## (\d+)\.", (DOCS / "specification.md").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for path in PACKAGE:
        for line, text in remarks(path.read_text(encoding="utf-8")):
            cited = re.findall(r"\b(?:SPEC|EDITORS|REPORTS|LOG|NAMES|HOUSE|FACTS)\b(?!\()", text)
            files = {name for name in re.findall(r"[\w./-]+\.md\b", text)}
            files |= set(re.findall(r"\b(?:docs|benchmarks|params|notebooks|tests)/[\w./-]+\.\w+", text))
            cited += [name for name in files if not any((base / name).exists() for base in (ROOT, DOCS))]
            numbers = re.findall(r"specification(?:\.md)?,\s+sections?\s+(\d+)(?:(?:,| and) (\d+))?", text)
            cited += [f"section {n}" for pair in numbers for n in pair if n and n not in sections]
            wrong += [f"{name_of(path)}:{line}: {name}" for name in cited]
    assert wrong == []


def plain_files() -> list[Path]:
    """Files whose words are checked."""
    docs = [path for path in PAGES if "experiments" not in path.parts and path.parent in (ROOT, DOCS)]
    package = [path for path in (ROOT / "beliefedit").rglob("*")
               if path.suffix in (".py", ".css", ".js", ".j2", ".html")]
    return [*docs, *package, *sorted((ROOT / "notebooks").glob("*.ipynb")), *sorted((ROOT / "params").glob("*.yaml"))]


@pytest.mark.parametrize("path", plain_files(), ids=name_of)
def test_words_are_plain(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"{n}: {match[0]}" for n, line in enumerate(lines, start=1) for match in FORBIDDEN.finditer(line)]
    assert found == []


def test_generated_parts_are_current():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [path.name for path, text in generate.pages() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "write them again: python docs/generate.py"


def is_key(dotted: str) -> bool:
    """Whether a parameter exists."""
    group = Experiment
    parts = dotted.split(".")
    if parts[:2] == ["edit", "editors"]:
        return len(parts) < 4 or parts[3] in ("preset", *fields_of(EDITOR_PARAMETERS.get(parts[2])))
    for part in parts:
        fields = getattr(group, "model_fields", {})
        if part not in fields:
            return False
        group = fields[part].annotation
    return True


@pytest.mark.parametrize("path", [page for page in PAGES if "experiments" not in page.parts], ids=name_of)
def test_parameters_that_are_named_exist(path):
    sections = "|".join(name for name, field in Experiment.model_fields.items() if fields_of(field.annotation))
    codes = re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))
    named = {key for code in codes for key in re.findall(rf"(?<![\w./])(?:{sections})(?:\.[a-z]\w*)+", code)}
    assert {key for key in named if not is_key(key) and not key.endswith((".py", ".md"))} == set()


def test_readme_is_short_and_its_sentences_are():
    text = re.sub(r"^(#|\||<|>).*$", "", prose(README.read_text(encoding="utf-8")), flags=re.MULTILINE)
    text = text.replace("et al.", "et al")
    assert len(text.split()) <= 900
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    sentences = [part for block in blocks for part in re.split(r"(?<=[.!?])[)\"']*\s+", " ".join(block.split()))
                 if re.search(r"\w", part)]
    lengths = [len([word for word in sentence.split() if re.search(r"\w", word)]) for sentence in sentences]
    assert [sentence for sentence, n in zip(sentences, lengths, strict=True) if n > 30] == []
    assert statistics.mean(lengths) < 18


# Commands


def commands(path: Path) -> list[str]:
    """The shell commands of a page, one by one."""
    found = []
    for language, block in FENCE.findall(path.read_text(encoding="utf-8")):
        if language in ("sh", "bash", "shell"):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"(^|\s)#\s.*$", "", line).strip()
                found += [part.strip() for part in line.split(" && ") if part.strip()]
    return found


@pytest.fixture(scope="module")
def checkout(smoke_run, tmp_path_factory) -> Path:
    """A copy of the checkout whose parameter files are those of the smoke run, which is its runs/demo.

    Without --only, a run there is of notebook 01.
    """
    folder = tmp_path_factory.mktemp("docs") / "beliefedit"
    folder.mkdir()
    shutil.copy(ROOT / "run_all.py", folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    shutil.copytree(smoke_run, folder / "runs" / "demo")
    config = read_json(smoke_run / "summary.json")["config"] | {"notebooks": ["01_corpus"]}
    (folder / "params").mkdir()
    for path in (ROOT / "params").glob("*.yaml"):
        (folder / "params" / path.name).write_text(yaml.safe_dump(config | {"name": config["name"]}), encoding="utf-8")
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def test_commands_of_readme_and_pages_work(checkout):
    [(_, requests)] = [block for block in FENCE.findall((DOCS / "requests.md").read_text(encoding="utf-8")) if block[0] == "csv"]
    (checkout / "family.csv").write_text(requests, encoding="utf-8")
    pages = [README, *(DOCS / name for name in ("requests.md", "editors.md", "running.md"))]  # the last one removes models
    written = list(dict.fromkeys(command for page in pages for command in commands(page)))
    todo = [command for command in written if not any(re.match(pattern, command) for pattern in NOT_RUN)]
    assert "python run_all.py" in todo
    for command in todo:
        result = shell(command, checkout)
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


@pytest.mark.parametrize("path", ["running.md", "playground.md", "requests.md"])
def test_python_examples_of_a_finished_run_work(path, checkout):
    blocks = [block for language, block in FENCE.findall((DOCS / path).read_text(encoding="utf-8"))
              if language == "python" and set(re.findall(r'"runs/(\w+)', block)) == {"demo"}]
    assert blocks
    result = shell(f"{sys.executable} - <<'END'\n" + "\n".join(blocks) + "\nEND\n", checkout)
    assert result.returncode == 0, result.stderr[-3000:]


def test_registrations_in_the_page_on_extending_work(tmp_path):
    blocks = [block for language, block in FENCE.findall((DOCS / "extending.md").read_text(encoding="utf-8"))
              if language == "python" and "be.register_" in block]
    assert len(blocks) == 4
    result = shell(f"{sys.executable} - <<'END'\n" + "\n".join([
        *blocks, "assert be.editor('one_layer', steps=2).config.steps == 2",
        "assert {'log_odds_request', 'sum_to_one'} <= set(be.analysis.MEASURES)"]) + "\nEND\n", tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
