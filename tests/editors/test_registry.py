"""Editors that users register: in Python, in a plugin file, in an installed package."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from pydantic import BaseModel, Field

import beliefedit as be
from beliefedit import config as config_module
from beliefedit import editors
from beliefedit.config import (
    BUILT_IN_EDITORS,
    EDITOR_PARAMETERS,
    EditConfig,
    Experiment,
    load_params,
)
from beliefedit.editors import registry
from beliefedit.errors import ConfigError, EditError
from beliefedit.lm.scoring import score
from tests.sample_models import REQUESTS, sample_model, sample_tokenizer

PLUGIN = """
from pydantic import BaseModel
from beliefedit.editors import Editor, UnmodifiedModel, register_editor

class Parameters(BaseModel):
    strength: float = 1.0

@register_editor("from_plugin", parameters=Parameters, label="From a plugin")
class Nothing(Editor):
    def _edit(self, model, tokenizer, requests, callback):
        return UnmodifiedModel(model)
"""


@pytest.fixture(autouse=True)
def names():
    """Removes registered editors after each test."""
    yield
    for registered in (EDITOR_PARAMETERS, registry._CLASSES):
        for name in set(registered) - set(BUILT_IN_EDITORS):
            del registered[name]
    for name in [name for name in sys.modules if name.startswith("beliefedit_plugin")]:
        del sys.modules[name]


@dataclass(frozen=True)
class Steps:
    lr: float = 0.05
    steps: int = 20


class MyEditor(editors.Editor):
    """Adam on the last layer's output projection, with the tools of `beliefedit.editors`."""

    def _edit(self, model, tokenizer, requests, callback):
        [(name, projection)] = editors.chosen_projections(model, [-1]).items()
        sentences = editors.encode_requests(tokenizer, requests, model.device)

        def losses_of(values, versions):
            edited = editors.WeightChanges(model, {name: values[0]})
            return editors.losses_per_edit(edited, model, sentences.of(versions), len(versions))

        start = torch.zeros(len(requests), *projection.weight.shape, device=model.device)
        [change], losses = editors.optimize_per_edit(model, [start], losses_of, lr=self.config.lr, steps=self.config.steps)
        return editors.WeightChanges(model, {name: change}, losses=losses)


def my_editor() -> type:
    return type("Mine", (MyEditor,), {})


def test_one_class_may_have_two_names() -> None:
    editor = my_editor()
    editors.register_editor("first", parameters=Steps)(editor)
    editors.register_editor("second", label="The second")(editor)
    assert [editors.editor_class(name).label for name in ("first", "second")] == ["first", "The second"]


def test_a_registered_editor_works_as_built_in_ones() -> None:
    assert be.editor  # the registry is public
    editors.register_editor("mine", parameters=Steps)(my_editor())
    config = EditConfig.model_validate({"editors": {"mine": {"steps": 30}, "grace": {}, "lora": {"lr": 1e-3}, "rome": None}})
    assert list(config.editors) == ["lora", "grace", "mine"] and config.editors["mine"] == Steps(steps=30)
    model, tokenizer = sample_model(), sample_tokenizer()
    edited = be.editor("mine", steps=30).apply(model, tokenizer, REQUESTS)
    prompts, targets = [r.prompt for r in REQUESTS], [r.target for r in REQUESTS]
    after = score(edited, tokenizer, prompts, targets, versions=range(4))
    assert (np.exp(after) > np.exp(score(model, tokenizer, prompts, targets))).all()
    assert editors.editor_class("mine").label == "mine" and editors.editor_class("lora").label == "LoRA"


class Loose(BaseModel):
    strength: float = Field(1.0, gt=0)


@pytest.mark.parametrize("parameters", [Steps, Loose, None])
def test_unknown_parameters_are_named_as_those_of_built_in_editors(parameters) -> None:
    editors.register_editor("mine", parameters=parameters)(my_editor())
    misspelt = {Steps: "stepz", Loose: "strenth"}.get(parameters, "x")
    with pytest.raises(ConfigError, match=f"unknown parameter 'mine.{misspelt}'") as raised:
        be.editor("mine", **{misspelt: 1})
    assert parameters is None or "did you mean 'st" in str(raised.value)


def test_built_in_editors_are_imported_when_first_used() -> None:
    for name in BUILT_IN_EDITORS:
        editor = be.editor(name)
        assert isinstance(editor.config, EDITOR_PARAMETERS[name]) and editor.label and editor.version >= 1
    with pytest.raises(EditError, match="the kit has an editor 'lora'"):
        editors.register_editor("lora")(my_editor())


def test_a_configuration_goes_through_json_with_its_plugin(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "params.yaml").write_text("plugins: [mine.py]\nedit: {editors: {from_plugin: {strength: 2}, lora: {}}}")
    config = load_params(tmp_path / "params.yaml")
    assert config.edit.editors["from_plugin"].strength == 2 and list(config.edit.editors) == ["lora", "from_plugin"]
    values = config.model_dump(mode="json")
    assert values["edit"]["editors"]["from_plugin"] == {"strength": 2}
    assert Experiment.model_validate(values) == config
    code = "import json, sys; from beliefedit.config import Experiment; print(Experiment.model_validate(json.load(sys.stdin)).hash)"
    process = subprocess.run([sys.executable, "-c", code], input=config.model_dump_json(), capture_output=True, text=True)
    assert process.stdout.strip() == config.hash, process.stderr


@pytest.mark.parametrize("plugin", ["no_such_module", "none.py", "broken.py"])
def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, plugin) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "params.yaml").write_text(f"plugins: [{plugin}]")
    with pytest.raises(ConfigError, match=f"{plugin}' cannot be imported"):
        load_params(tmp_path / "params.yaml")


def test_an_unknown_name_is_looked_up_in_installed_packages(monkeypatch) -> None:
    groups = []

    def load(self) -> None:
        editors.register_editor("installed")(my_editor())

    def entry_points(group: str) -> list[EntryPoint]:
        groups.append(group)
        return [EntryPoint("installed", "package.module", group)]

    monkeypatch.setattr(EntryPoint, "load", load)
    monkeypatch.setattr(config_module, "entry_points", entry_points)
    config_module.load_entry_points.cache_clear()
    assert not EditConfig.model_validate({"editors": {"lora": {}}}).editors.keys() - {"lora"} and not groups
    assert list(EditConfig.model_validate({"editors": {"installed": {}}}).editors) == ["installed"]
    assert groups == ["beliefedit.editors"]
    with pytest.raises(EditError, match="unknown editor 'instaled', did you mean 'installed'"):
        be.editor("instaled")
    monkeypatch.setattr(EntryPoint, "load", lambda self: 1 / 0)
    config_module.load_entry_points.cache_clear()
    with pytest.raises(ConfigError, match="the plugin 'installed' cannot be loaded"):
        be.editor("other")
    config_module.load_entry_points.cache_clear()


def test_a_class_that_is_no_editor_is_an_error() -> None:
    with pytest.raises(EditError, match="is no editor"):
        be.register_editor("nothing")(dict)


def test_the_error_of_a_plugin_names_its_line_and_editor_errors_pass_through(tmp_path) -> None:
    (tmp_path / "zero.py").write_text("x = 1\n1 / 0\n")
    with pytest.raises(ConfigError, match=r"correct line 2 of .*zero.py"):
        be.config.with_overrides({}, {"plugins": [str(tmp_path / "zero.py")]})
    (tmp_path / "taken.py").write_text(
        "import beliefedit as be\n@be.register_editor('lora')\nclass Mine(be.Editor): ...\n")
    with pytest.raises(EditError, match="the kit has an editor 'lora' already"):
        be.config.with_overrides({}, {"plugins": [str(tmp_path / "taken.py")]})
