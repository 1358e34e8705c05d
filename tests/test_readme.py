"""The README's example runs as it stands, and the agent gives the figures that the README gives."""

import re

import pytest
import yaml

import beliefedit as be
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    "device": "cpu", "model.size": "tiny", "pretraining.token_budget": 2000, "pretraining.n_evals": 1,
    "pretraining.n_eval_facts": 4, "pretraining.n_heldout_documents": 4, "analysis.n_resamples": 100,
    "edit.n_cases": 8, "edit.n_trajectories": 1, "edit.n_distributions": 1,
    "edit.editors": {"lora": {"lr": 1e-2, "steps": 2}}}
"""The demo with a model that learns nothing; graph, corpus and agent are those of the demo."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the README expects it, whose params/demo.yaml has a small model."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "params").mkdir()
    params = be.load_params(ROOT / "params" / "demo.yaml", SMALL).model_dump(mode="json")
    (folder / "params" / "demo.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


def test_the_library_example_runs_and_prints_the_figures_of_its_comments(folder, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    before, after, answers, *table = capsys.readouterr().out.splitlines()
    assert f"# {before}, then {after}" in code
    assert answers.startswith("['") and all(word in "".join(table) for word in ("lora", "before", "mean"))


def test_the_agent_column_of_the_example_is_what_the_agent_believes(folder):
    agent = be.Run(folder / "runs" / "demo", folder / "params" / "demo.yaml").agent
    edited = ("Olga Galland", "is a citizen of")
    weight = agent.weight_for(*edited, "Denmark", probability=0.95)
    updated = agent.after(*edited, "Denmark", weight=weight)
    rows = re.findall(r"^\| `(\w+ \w+) ([\w ]+)` \| .*? \| (\w+) \| (\w+) \((0\.\d+)\) \|", README, re.MULTILINE)
    assert len(rows) == 4
    for subject, relation, old, new, probability in rows:
        for beliefs, best in ((agent, old), (updated, new)):
            assert agent.objects[beliefs.distribution(subject, relation).argmax()] == best
        assert f"{updated.probability(subject, relation, new):.2f}" == probability
    (stated,) = re.findall(r"believes this fact with probability (0\.\d+)\.", README)
    assert f"{agent.probability(*edited, 'Norway'):.2f}" == stated
