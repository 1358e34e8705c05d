"""The house rules that a machine can check: who imports whom, what is never written, how long things get."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import beliefedit

PACKAGE = Path(beliefedit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]

CHAINS = [
    [{"config"}, {"store"}, {"kg", "language"}, {"world", "agent"}, {"corpus", "cases"}],
    [{"config"}, {"store"}, {"pairs"}, {"lm"}, {"pretrain", "editors"}],
    [{"metrics"}, {"analysis"}, {"plots"}, {"widgets"}],
]
"""A module may import from the left of its place in a chain, never from its right."""

APART = [("kg", "language"), ("world", "agent"), ("pretrain", "editors"), ("corpus", "lm"), ("cases", "lm"),
         ("agent", "lm")]
"""Neither needs the other, directly or through others."""

TORCH = {"candidates", "checkpoint", "edit_jobs", "editing", "editors", "learning", "lm", "optimizers", "parallel",
         "playground", "pretrain", "together", "training_data"}
"""The only modules that may import torch: exploring a corpus must not need it."""

LIGHT = ["beliefedit", *(f"beliefedit.{name}" for name in (
    "kg", "world", "corpus", "agent", "cases", "plots", "pipeline", "playground.picture"))]

MAX_LINES, MAX_FUNCTION, MAX_POSITIONAL = 300, 40, 5


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    """The package's module a file belongs to; a sub-package counts as one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(node):
    """Dotted names a tree imports, imports for type checkers left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (name for branch in child.orelse for name in imports(branch))
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module or ''}.{alias.name}" for alias in child.names)
        else:
            yield from imports(child)


@cache
def needs():
    """Module to the modules of the package it imports, the way Python sees them."""
    modules = {module_of(path) for path in FILES}
    found = {module: set() for module in modules}
    for path in FILES:
        for name in imports(tree(path)):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package == "beliefedit" and target in modules and target != module_of(path):
                found[module_of(path)].add(target)
    return found


def reached(module):
    """Every module that importing this one can pull in."""
    seen, waiting = set(), [module]
    while waiting:
        for target in needs()[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def test_no_module_imports_itself_through_others():
    assert [module for module in needs() if module in reached(module)] == []


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: " → ".join("/".join(sorted(layer)) for layer in chain))
def test_imports_point_one_way(chain):
    for place, layer in enumerate(chain):
        later = set().union(*chain[place + 1:])
        for module in sorted(layer & set(needs())):
            wrong = reached(module) & later
            assert not wrong, f"{module} comes before {sorted(wrong)} and must not import them, even through others"


@pytest.mark.parametrize(("one", "other"), APART)
def test_neighbours_do_not_need_each_other(one, other):
    assert other not in reached(one) and one not in reached(other)


def test_the_report_stands_alone():
    science = set().union(*(layer for chain in CHAINS for layer in chain)) - {"config", "store"}
    assert not reached("report") & science
    assert [module for module in science & set(needs()) if "report" in reached(module)] == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_torch_is_imported_only_where_it_computes(path):
    named = {name.split(".")[0] for name in imports(tree(path))}
    if module_of(path) not in TORCH:
        assert "torch" not in named, f"{path.name} imports torch; see TORCH in tests/test_layers.py"


@pytest.mark.parametrize("module", LIGHT)
def test_importing_does_not_load_torch(module):
    code = f"import {module}, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_looking_at_a_corpus_does_not_load_torch(tmp_path):
    code = """
import sys
import beliefedit as be
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.demo_graph import write_demo_graph
write_demo_graph(sys.argv[1], n_subjects=40)
world = be.build_world(be.read_wikidata5m(sys.argv[1], min_cooccurrence=2))
corpus = be.sample_corpus(world, CorpusConfig(n_facts=50), documents=False)
agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
be.build_cases(world, corpus, agent, EditConfig(n_cases=3))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


FORBIDDEN_IMPORTS = {"pickle": "store tensors as safetensors and values as JSON", "pandas": "use polars",
                     "cloudpickle": "no pickle", "dill": "no pickle", "joblib": "no pickle"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_what_is_never_written(path):
    wrong = [f"imports {name}: {FORBIDDEN_IMPORTS[name.split('.')[0]]}" for name in imports(tree(path))
             if name.split(".")[0] in FORBIDDEN_IMPORTS]
    wrong += [f"imports {name}: use tqdm.auto" for name in imports(tree(path)) if name == "tqdm.tqdm"]
    forked = {id(call) for node in ast.walk(tree(path)) if isinstance(node, ast.With) and "fork_rng" in ast.dump(
        node.items[0]) for call in ast.walk(node)}  # there the global generator is a private one
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Assert):
            wrong.append(f"line {node.lineno}: assert; raise an error from beliefedit.errors")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            wrong.append(f"line {node.lineno}: bare except; name the exception")
        if isinstance(node, ast.Call):
            wrong += _wrong_call(node, id(node) in forked)
    assert wrong == []


def _wrong_call(node, is_forked):
    name = ast.unparse(node.func)
    if name == "print":
        return [f"line {node.lineno}: print; use logging"]
    if re.fullmatch(r"(np\.random|numpy\.random|random|torch(\.\w+)?|transformers)\.(seed|set_seed|manual_seed(_all)?)",
                    name) and not is_forked:
        return [f"line {node.lineno}: {name} seeds everybody; pass a Generator"]
    if name in ("torch.load", "np.load", "numpy.load") and any(
            keyword.arg in ("weights_only", "allow_pickle") and keyword.value.value is (keyword.arg == "allow_pickle")
            for keyword in node.keywords):
        return [f"line {node.lineno}: {name} that unpickles"]
    return []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_modules_and_functions_stay_short(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    wrong = [f"{n_lines} lines, at most {MAX_LINES}"] if n_lines > MAX_LINES else []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            named = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            n_positional = len(named) - (named[:1] in (["self"], ["cls"]))
            if length > MAX_FUNCTION:
                wrong.append(f"{node.name}: {length} lines, at most {MAX_FUNCTION}")
            if n_positional > MAX_POSITIONAL and not node.name.startswith("_"):
                wrong.append(f"{node.name}: {n_positional} positional parameters, at most {MAX_POSITIONAL}")
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_public_things_are_annotated_and_described(path):
    wrong = [] if ast.get_docstring(tree(path)) else ["the module has no docstring"]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None:
                wrong.append(f"line {node.lineno}: {node.name} lacks annotations: {bare or 'return'}")
    for node in tree(path).body:
        is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if is_public and not ast.get_docstring(node):
            wrong.append(f"line {node.lineno}: {node.name} has no docstring")
    assert wrong == []
