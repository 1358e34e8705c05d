"""Parameters: read, overridden, refused with a hint, and hashed."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from beliefedit.config import (
    EDITOR_PARAMETERS,
    PRESETS,
    RENAMED,
    Experiment,
    differences,
    digest,
    editor_parameters,
    fields_of,
    load_params,
    parse_override,
    with_overrides,
)
from beliefedit.errors import ConfigError

PARAMS = sorted((Path(__file__).parents[1] / "params").glob("*.yaml"))


def write(folder, text):
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_params(write(tmp_path, "")) == Experiment()
    assert load_params(write(tmp_path, "# nothing yet\n")) == Experiment()


def test_a_file_and_overrides_reach_their_sections(tmp_path):
    path = write(tmp_path, "name: mine\ncorpus:\n  n_facts: 70\n  connectives: [not]\n")
    config = load_params(str(path), {"edit.n_cases": 50, "corpus.n_facts": 80, "seed": 3, "edit.editors.lora.rank": 2})
    assert (config.name, config.seed, config.corpus.n_facts, config.corpus.connectives) == ("mine", 3, 80, ("not",))
    assert (config.edit.n_cases, config.edit.editors["lora"].rank) == (50, 2)
    assert config.corpus.n_samples_per_fact == Experiment().corpus.n_samples_per_fact


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_every_parameter_file_loads(path):
    assert load_params(path).corpus.n_facts >= 1


def test_there_are_parameter_files():
    assert {"smoke.yaml", "demo.yaml", "paper.yaml"} <= {path.name for path in PARAMS}


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "1.e-3", "0.001", "+1e-03"])
def test_floats_as_people_write_them(tmp_path, number):
    assert load_params(write(tmp_path, f"pretraining: {{lr: {number}}}")).pretraining.lr == 0.001


@pytest.mark.parametrize(("text", "overrides", "says"), [
    ("corpuss: {}", {}, ["unknown parameter 'corpuss'", "did you mean 'corpus'"]),
    ("corpus: {n_fact: 3}", {}, ["unknown parameter 'corpus.n_fact'", "did you mean 'n_facts'"]),
    ("corpus: {zzz: 3}", {}, ["unknown parameter 'corpus.zzz'", "choose from n_facts"]),
    ("edit: {editors: {lora: {rnk: 1}}}", {}, ["'edit.editors.lora.rnk'", "did you mean 'rank'"]),
    ("edit: {editors: {lra: {}}}", {}, ["'edit.editors.lra'", "did you mean 'lora'", "choose from lora, finetune"]),
    ("edit: {editors: [lora]}", {}, ["edit.editors", "expected names of editors"]),
    ("", {"plugins": ["no_such_module"]}, ["'no_such_module' cannot be imported", "where: plugins"]),
    ("", {"edit.n_case": 3}, ["'edit.n_case'", "did you mean 'n_cases'", "with overrides"]),
    ("name: x", {"name.first": 3}, ["'name.first'", "a value, not a section"]),
    ("corpus: {n_facts: many}", {}, ["corpus.n_facts", "given: 'many'"]),
    ("corpus: {n_facts: 1.5}", {}, ["corpus.n_facts", "given: 1.5"]),
    ("corpus: {n_facts: 0}", {}, ["corpus.n_facts", "greater than or equal to 1"]),
    ("corpus: {connectives: [xor]}", {}, ["corpus.connectives.0", "'or', 'and' or 'not'"]),
    ("corpus: {connectives: [or, or]}", {}, ["named twice"]),
    ("corpus: {true_false: false}", {}, ["set true_false: true or connectives: []"]),
    ("corpus: {atomic: false, true_false: false, connectives: []}", {}, ["nothing to write"]),
    ("world: {min_truth: 0.5}", {}, ["world.min_truth", "greater than 0.5"]),
    ("world: {min_truth: 1.01}", {}, ["world.min_truth", "less than or equal to 1"]),
    ("world: {min_truth: .nan}", {}, ["world.min_truth", "finite"]),
    ("edit: {target_probability: 1}", {}, ["edit.target_probability", "less than 1"]),
    ("model: {size: huge}", {}, ["unknown size 'huge'"]),
    ("device: mps", {}, ["device: the device 'mps' is not supported", "float64, which MPS lacks", "auto, cpu, cuda"]),
    ("device: cpu:1", {}, ["the device 'cpu:1' is not supported", "cuda:N"]),
    ("", {"device": "cuda:x"}, ["the device 'cuda:x' is not supported"]),
    ("pretraining: {optimizer: adamax}", {}, ["pretraining.optimizer", "'rmsprop'"]),
    ("edit: {editors: {rome: {preset: publisht}}}", {}, ["'rome' has no preset 'publisht'", "choose published"]),
    ("edit: {editors: {rome: {preset: [1]}}}", {}, ["'rome' has no preset [1]"]),
    ("edit: {editors: {bayes: {preset: published}}}", {}, ["'bayes' is not a published one", "lora, finetune, rome"]),
    ("edit: {editors: {rome: {preset: published, layr: 1}}}", {}, ["'edit.editors.rome.layr'", "did you mean 'layer'"]),
    ("seed: -1", {}, ["seed", "greater than or equal to 0"]),
    ("corpus: 3", {}, ["corpus", "given: 3"]),
    ("- a\n- b", {}, ["expected sections"]),
    ("corpus: [", {}, ["not valid YAML"]),
    ("corpus: !!python/object:os.system {}", {}, ["not valid YAML"]),
    (b"name: \xff\xfe", {}, ["not valid YAML", "utf-8"]),
    ("name: x\nseed: !!int x", {}, ["line 2", "'x' is no valid int"]),
    ("seed: !!float foo", {}, ["'foo' is no valid float"]),
    ("seed: !!bool foo", {}, ["'foo' is no valid bool"]),
    ("seed: !!timestamp foo", {}, ["not valid YAML", "timestamp"]),
    ("seed: !!set {a}", {}, ["not valid YAML", "set"]),
    ("seed: 2020-13-45", {}, ["seed", "given: '2020-13-45'"]),
    ("seed: 2020-01-01 25:61:61", {}, ["seed", "given: '2020-01-01 25:61:61'"]),
    (f"seed: {'1' * 5000}", {}, ["not valid YAML", "no valid int"]),
    (f"seed: {'1' * 20}", {}, ["more than 64 bits", "seed"]),
    (f"seed: {'[' * 2000}", {}, ["not valid YAML", "more than 20 levels"]),
    (f"seed: {'{a: ' * 2000}", {}, ["not valid YAML", "more than 20 levels"]),
    ("- " * 2000, {}, ["not valid YAML", "too many levels"]),
    ("name: &a [*a]", {}, ["levels", "name"]),
    ("name: x\nname: y", {}, ["line 2", "'name' is repeated", "in line 1"]),
    ("corpus: {n_facts: 7}\nseed: 1\ncorpus: {n_samples_per_fact: 3}", {}, ["line 3", "'corpus' is repeated", "in line 1"]),
    ("edit:\n  editors:\n    lora: {rank: 1, lr: 1, rank: 2}", {}, ["line 3", "'rank' is repeated"]),
    ("1: 2", {}, ["line 1", "the key '1' is not text"]), ("corpus: {yes: 2}", {}, ["the key 'yes' is not text"]),
    ("? [a]\n: 2", {}, ["is not text"]),
    (r'name: "\ud800"', {}, ["is not Unicode", "name"]), (r'name: "a\0"', {}, ["is not Unicode", "name"]),
    ("", {1: 2}, ["the key 1 is not text", "overrides"]), ("", {"edit": {None: 2}}, ["the key None is not text", "overrides: edit"]),
    ("", ["seed=1"], ["overrides are values by key, not ['seed=1']"]), ("", "seed=1", ["overrides are values by key, not 'seed=1'"]),
    ("", {"edit": {"n_case": 1}}, ["'edit.n_case'", "did you mean 'n_cases'"]),
    ("edit: {editors: {memit: {layers: []}}}", {}, ["edit.editors.memit.layers", "at least 1 item"]),
    ("edit: {editors: {alphaedit: {layers: []}}}", {}, ["edit.editors.alphaedit.layers", "at least 1 item"]),
    ("edit: {editors: {finetune: {layers: []}}}", {}, ["edit.editors.finetune.layers", "at least 1 item"]),
    ("edit: {rationality: {strengths: []}}", {}, ["edit.rationality.strengths", "at least 1 item"]),
], ids=lambda value: str(value)[:40])
def test_errors_name_the_problem(tmp_path, text, overrides, says):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_params(path, overrides)
    message = str(raised.value)
    assert all(part in message for part in says), message
    assert str(path) in message or overrides


def test_every_problem_is_listed_at_once(tmp_path):
    with pytest.raises(ConfigError) as raised:
        load_params(write(tmp_path, "corpus: {n_fact: 3, n_samples_per_fact: 0}\nsede: 1"))
    assert all(key in str(raised.value) for key in ("corpus.n_fact", "corpus.n_samples_per_fact", "'sede'"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such parameter file"):
        load_params(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_params(tmp_path)


def test_parameters_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Experiment().seed = 3


def test_the_hash_names_the_values_and_nothing_else(tmp_path):
    one = load_params(write(tmp_path, "corpus: {n_facts: 7, n_samples_per_fact: 3}"))
    other = load_params(write(tmp_path, "corpus:\n  n_samples_per_fact: 3\n"), {"corpus.n_facts": 7})
    assert one.hash == other.hash and len(one.hash) == 12 and int(one.hash, 16) >= 0
    assert one.hash != load_params(write(tmp_path, "corpus: {n_facts: 8, n_samples_per_fact: 3}")).hash


def test_the_hash_is_the_same_in_every_process():
    code = "from beliefedit.config import Experiment; print(Experiment().hash)"
    seen = {subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, check=True,
                           capture_output=True, text=True).stdout.strip() for seed in "12"}
    assert seen == {Experiment().hash}


def test_the_digest_does_not_see_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize(("text", "expected"), [
    ("edit.n_cases=50", ("edit.n_cases", 50)), (" seed = 3", ("seed", 3)),
    ("pretraining.lr=1e-3", ("pretraining.lr", 0.001)),
    ("name=a=b", ("name", "a=b")), ("corpus.connectives=[or, not]", ("corpus.connectives", ["or", "not"])),
    ("model.size=null", ("model.size", None)), ("name=", ("name", None)),
])
def test_overrides_are_parsed(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", [
    "edit.n_cases", "=3", "name=[1", "seed=!!int x", "seed=!!bool foo", "seed=!!timestamp foo", f"seed={'1' * 5000}",
    f"seed={'[' * 2000}", "edit={n_cases: 1, n_cases: 2}", "edit={1: 2}", "name=&a [*a]", r'name="\ud800"', "x" * 40_000])
def test_bad_overrides_are_refused(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


BOMB = "[x,x,x,x,x,x,x,x,x,x]"
"""An alias bomb: at every level a list of ten times the same list."""
for _level in "abcde":
    BOMB = f"[&{_level} {BOMB}, {', '.join(9 * [f'*{_level}'])}]"


@pytest.mark.parametrize("text", [
    f"name: {BOMB}", f"device: {'x' * 20_000}", f"model: {{size: {'x' * 20_000}}}", f"{'x' * 20_000}: 1",
    f"edit: {{editors: {{rome: {{preset: {'x' * 20_000}}}}}}}", f"edit: {{editors: {{{'x' * 20_000}: 1}}}}",
    f"corpus: {{connectives: [{','.join(9000 * ['x'])}]}}", f"corpus: {{{', '.join(f'k{n}: 1' for n in range(2500))}}}",
    f"name: {{a: [{','.join(9000 * ['x'])}]}}", f"model: {{init_from: {'x' * 20_000}}}", f"!!{'x' * 20_000} a", "[" * 20_000,
    f"seed: {'9' * 4000}", "- " * 10_000, "? " * 10_000, f"name: {{{'a' * 20_000}: 1}}", "x: 1\n" * 5000, "#" * 10_000_000],
    ids=lambda text: text[:20])
def test_deep_and_huge_files_have_short_errors_at_once(tmp_path, text):
    path, started = write(tmp_path, text), time.process_time()
    with pytest.raises(ConfigError) as raised:
        load_params(path)
    assert time.process_time() - started < 2 and len(str(raised.value)) < 8000
    assert max(map(len, str(raised.value).splitlines())) < 1000


def test_aliases_are_copies_and_merge_keys_are_merged(tmp_path):
    path = write(tmp_path, """
edit:
  editors:
    lora: &shared {lr: 0.1, steps: 3}
    bayes: *shared
    bayes_heldout: {<<: *shared, steps: 5}
""")
    editors = load_params(path, {"edit.editors.lora.lr": 0.2}).edit.editors
    assert [editors[name].lr for name in ("lora", "bayes", "bayes_heldout")] == [0.2, 0.1, 0.1]
    assert [editors[name].steps for name in ("lora", "bayes", "bayes_heldout")] == [3, 3, 5]


def test_dates_are_text(tmp_path):
    assert load_params(write(tmp_path, "name: 2020-01-31")).name == "2020-01-31"


def test_nested_overrides_are_merged_with_the_sections_of_the_file(tmp_path):
    path = write(tmp_path, "edit: {n_cases: 7, n_edited: 3, sequence: {lengths: [1, 2], n_sequences: 2}, "
                           "editors: {lora: {lr: 0.1, rank: 2}, rome: {}}}\npretraining: {stop_when: {and: 0.5}}")
    base = load_params(path)
    for nested, dotted in (
            ({"edit": {"n_cases": 5}}, {"edit.n_cases": 5}),
            ({"edit": {"sequence": {"n_sequences": 3}}, "seed": 1}, {"edit.sequence.n_sequences": 3, "seed": 1}),
            ({"edit.sequence": {"n_sequences": 3}}, {"edit.sequence.n_sequences": 3}),
            ({"edit": {"sequence.n_sequences": 3}}, {"edit.sequence.n_sequences": 3}),
            ({"edit": {"editors.lora.lr": 0.3}}, {"edit.editors.lora.lr": 0.3}),
            ({"edit": {"editors": {"lora": {"lr": 0.3}}}}, {"edit.editors": {"lora": {"lr": 0.3}}}),
            ({"pretraining": {"stop_when": {"or": 0.5}}}, {"pretraining.stop_when": {"or": 0.5}}),
            ({"edit": {}, "corpus": {}}, {}), (None, {})):
        assert load_params(path, nested) == load_params(path, dotted) == with_overrides(base, nested)
    merged = load_params(path, {"edit": {"n_cases": 5}})
    assert merged == base.model_copy(update={"edit": base.edit.model_copy(update={"n_cases": 5})})
    assert load_params(path, {"edit.editors.lora.lr": 0.3}).edit.editors["lora"].rank == 2
    assert load_params(path, {"edit.editors.lora": {"lr": 0.3}}).edit.editors["lora"].rank == 1  # replaced as a whole
    assert list(load_params(path, {"edit.editors": {"lora": {}}}).edit.editors) == ["lora"]
    assert load_params(path, {"pretraining.stop_when": {"or": 0.5}}).pretraining.stop_when == {"or": 0.5}


@pytest.mark.parametrize("path", [2024, 1.5, ["a"], None, "a\0b", "x" * 5000, ""])
def test_a_parameter_file_that_is_no_path_is_named(path):
    with pytest.raises(ConfigError, match="parameter file"):
        load_params(path)


@pytest.mark.parametrize("params", [2024, ["a"], "corpus: {}"])
def test_parameters_that_are_no_sections_are_named(params):
    with pytest.raises(ConfigError, match="expected a parameter file or sections"):
        with_overrides(params, {})


@pytest.mark.parametrize("values", [{"rank": 10**5000}, {"lr": "x" * 10_000}, {1: 2}, {"x" * 10_000: 1}])
def test_hyper_parameters_of_the_api_are_checked_as_those_of_files(values):
    with pytest.raises(ConfigError) as raised:
        editor_parameters("lora", values)
    assert len(str(raised.value)) < 2000


def test_one_editor_from_keywords():
    assert editor_parameters("lora", {"lr": 0.01}).lr == 0.01
    with pytest.raises(ConfigError, match="did you mean 'rank'"):
        editor_parameters("lora", {"rnk": 1})


def test_plugins_are_looked_for_beside_the_parameter_file_and_in_overrides_beside_the_user(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    for path in (tmp_path / "params" / "a.py", tmp_path / "b.py"):
        path.write_text("")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params" / "x.yaml").write_text("plugins: [a.py]")
    assert load_params("params/x.yaml").plugins == (str(tmp_path / "params" / "a.py"),)
    assert load_params("params/x.yaml", {"plugins": ["b.py"]}).plugins == (str(tmp_path / "b.py"),)
    assert load_params("params/x.yaml", {"plugins": ["json"]}).plugins == ("json",)
    with pytest.raises(ConfigError, match=r"a\.py"):
        load_params("params/x.yaml", {"plugins": ["a.py"]})


def test_differences_name_the_parameters_that_tell_configurations_apart():
    def dumped(overrides):
        return with_overrides({}, overrides).model_dump(mode="json")

    assert differences(dumped({}), dumped({"notebooks": ["01_corpus"], "plugins": ["json"]})) == ""
    assert differences(dumped({}), dumped({"seed": 1, "edit.n_cases": 7})) == (
        f"seed 0 -> 1; edit.n_cases {dumped({})['edit']['n_cases']} -> 7")
    assert differences({"a": {"x": {}}}, {"a": {}}) == "a.x {} -> –"
    assert differences({"a": {"x": {"y": 1, "z": 2}}}, {"a": {"w": {"y": 1}}}) == "a.x {…} -> –; a.w – -> {…}"
    changed = differences(dict.fromkeys("abcdefg", 0), dict.fromkeys("abcdefg", 1))
    assert changed.endswith("e 0 -> 1; and 2 more")


def test_the_choice_of_notebooks_makes_no_other_configuration():
    assert with_overrides({}, {"notebooks": ["01_corpus"]}).hash == Experiment().hash


PUBLISHED = {  # as the files say it: the docstring of PRESETS names them
    "lora": {"rank": 1, "alpha": 8, "lr": 1e-4, "weight_decay": 1e-4, "steps": 40, "max_grad_norm": 1, "append_end_token": False},
    "finetune": {"lr": 5e-4, "steps": 25, "early_stop_loss": 1e-2, "target_tokens_only": True, "max_weight_change": None},
    "rome": {"lr": 5e-1, "relative_lr": False, "steps": 20 - 1, "early_stop_loss": 5e-2, "kl_factor": 0.0625, "value_weight_decay": 0.5,
             "max_norm_ratio": 4, "edit_token": "subject_last", "n_context_templates": 1 + 10 + 10},
    "memit": {"lr": 5e-1, "relative_lr": False, "steps": 25 - 1, "early_stop_loss": 5e-2, "kl_factor": 0.0625, "value_weight_decay": 0.5,
              "max_norm_ratio": 0.75, "edit_token": "subject_last", "n_context_templates": 1 + 5, "covariance_weight": 15000},
    "alphaedit": {"lr": 5e-1, "relative_lr": False, "steps": 25 - 1, "early_stop_loss": 5e-2, "kl_factor": 0.0625, "value_weight_decay": 0.5,
                  "max_norm_ratio": 0.75, "edit_token": "subject_last", "n_context_templates": 1 + 5, "l2": 10, "nullspace_threshold": 2e-2, "relative_threshold": False},
    "grace": {"lr": 1.0, "steps": 100, "early_stop_loss": 0, "epsilon": 1.0, "relative_epsilon": False},
    "ultraedit": {"lr": 1e-6, "l2": 1}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_numbers_and_the_defaults_of_the_rest(name):
    assert PUBLISHED.keys() == PRESETS.keys()
    parsed, default = editor_parameters(name, {"preset": "published"}), editor_parameters(name, {})
    assert parsed.model_dump() == default.model_dump() | PUBLISHED[name]


def test_keys_beside_a_preset_override_it(tmp_path):
    path = write(tmp_path, "edit: {editors: {rome: {preset: published, layer: 1, lr: 0.1}, lora: {preset: null, rank: 2}}}")
    rome, lora = load_params(path).edit.editors["rome"], load_params(path).edit.editors["lora"]
    assert (rome.layer, rome.lr, rome.value_weight_decay, rome.edit_token, lora.rank) == (1, 0.1, 0.5, "subject_last", 2)
    config = load_params(write(tmp_path, "edit: {editors: {rome: {layer: 1}}}"), {"edit.editors.rome.preset": "published"})
    assert (config.edit.editors["rome"].layer, config.edit.editors["rome"].value_weight_decay) == (1, 0.5)
    assert Experiment.model_validate(config.model_dump(mode="json")) == config


def test_a_preset_that_overrides_a_whole_configuration_counts():
    config = with_overrides(Experiment(), {"edit.editors.rome.lr": 0.1})
    parsed = with_overrides(config, {"edit.editors.rome.layer": 2, "edit.editors.rome.preset": "published"})
    assert parsed.edit.editors["rome"] == editor_parameters("rome", {"preset": "published", "layer": 2})
    assert parsed.edit.editors["lora"] == config.edit.editors["lora"]


def test_the_published_runs_are_set_up_as_published():
    """The commands of the published README, and what main.py makes of --debug."""
    paper, small = (load_params(next(path for path in PARAMS if path.name == name))
                    for name in ("paper.yaml", "facts-10k.yaml"))
    assert (paper.graph.read_n_facts, paper.graph.min_cooccurrence, paper.graph.n_relations) == (2e6, 1000, 10)
    assert (small.graph.read_n_facts, small.graph.min_cooccurrence, small.graph.n_relations) == (1e6, 50, 10)
    for config in (paper, small):
        training = config.pretraining
        assert (training.sequence_length, training.packed, training.optimizer, training.lr) == (None, False, "adamw", 5e-5)
        assert (training.weight_decay, training.final_lr_fraction, training.adam_beta2, training.max_grad_norm) == (1e-4, 0.1, 0.999, 1)
    assert paper.edit.editors["lora"] == editor_parameters("lora", {"preset": "published"})


@pytest.mark.parametrize(("old", "new"), [
    ("corpus.n_complex", "n_compound_per_subject"), ("pretraining.n_tokens", "token_budget"), ("model.init", "init_from"),
    ("edit.editors.lora.clip", "max_grad_norm"), ("edit.editors.rome.place", "edit_token"), ("edit.sequence.n_untouched", "n_unedited"),
    ("edit.editors.bayes_untold", "bayes_heldout"), ("world.same_relation", "p_false_from_same_relation")])
def test_a_key_of_the_first_version_is_an_error_that_names_the_new_one(old, new):
    with pytest.raises(ConfigError, match=f"it is named '{new}' now"):
        with_overrides({}, {old: {} if "untold" in old else 1})


def test_every_renamed_key_has_a_successor_and_no_key_has_an_old_name():
    def keys(group):
        for name, kind in fields_of(group).items():
            yield name
            for inner in (kind, *get_args(kind)):
                yield from keys(inner)

    known = {*keys(Experiment), *EDITOR_PARAMETERS, *(name for group in EDITOR_PARAMETERS.values() for name in fields_of(group))}
    assert set(RENAMED.values()) <= known
    assert set(RENAMED) & known <= {"n_tokens", "relative"}  # n_tokens of key statistics is a different key
