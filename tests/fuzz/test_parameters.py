"""Parameter files, --set expressions and overrides of any shape: accepted, or a ConfigError."""

import json
import re
import unicodedata
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from beliefedit.batch.sweep import folder_names, grid
from beliefedit.config import (
    EDITOR_PARAMETERS,
    Config,
    Experiment,
    fields_of,
    load_params,
    parse_override,
    with_overrides,
)
from beliefedit.errors import BeliefEditError, ConfigError

from .conftest import at_least, attempt


def dotted_keys(group, prefix=""):
    for name, kind in fields_of(group).items():
        yield f"{prefix}{name}"
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from dotted_keys(kind, f"{prefix}{name}.")


KEYS = sorted({*dotted_keys(Experiment), *(f"edit.editors.{name}{key and '.' + key}" for name, group in
                                           EDITOR_PARAMETERS.items() for key in ("", *fields_of(group), "preset"))} - {"plugins"})
DEFAULTS = with_overrides({}, {"edit.editors": {name: {} for name in EDITOR_PARAMETERS}}).model_dump(mode="json")
WORDS = sorted({str(value) for group in (Experiment, *EDITOR_PARAMETERS.values()) for kind in fields_of(group).values()
                for value in get_args(kind) if isinstance(value, str)} | {"published", "tiny", "bpe", "01_corpus", "cuda:1"})


def default_of(key):
    value = DEFAULTS
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) and part in value else None
    return value


class Dumper(yaml.SafeDumper):
    """Writes text that parameter files read as numbers, such as 1e-3, in quotes."""


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
                             list("-+.0123456789"))

scalars = st.none() | st.booleans() | st.integers(-3, 1000) | st.integers() | st.floats(0, 1) | st.floats() | st.sampled_from(
    WORDS) | st.text(max_size=8) | st.sampled_from(["", "1", "1e-3", "null", "2020-13-45", "a" * 300, "\ud800", "\0", "~", "é", 10**4000])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    st.sampled_from(WORDS) | st.text(max_size=5) | st.integers(0, 3) | st.none(), inner, max_size=3), max_leaves=8)
keys = st.sampled_from(KEYS)


@st.composite
def settings_near_the_defaults(draw):
    """Overrides by known key; most values are defaults or single plausible values."""
    chosen = draw(st.lists(keys, max_size=5))
    plausible = st.sampled_from([0, 1, 2, 3, 0.1, 0.5, 0.9, True, False, None, [], [0], [1, 2], ["or"], {}, 400, 1000])
    return {key: draw(st.just(default_of(key)) | plausible | plausible | values) for key in chosen}


def nested(settings):
    """Sections instead of dotted keys, where this can be."""
    tree = {}
    for key, value in settings.items():
        node, parts = tree, str(key).split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                return settings
        node[parts[-1]] = value
    return tree


def check(result):
    """An accepted configuration is the same after it was written and read; others are ConfigErrors."""
    if isinstance(result, BeliefEditError):
        assert isinstance(result, ConfigError)
        return
    dumped = result.model_dump(mode="json")
    read = with_overrides(json.loads(json.dumps(dumped)), {})
    assert read == result and read.hash == result.hash and read.model_dump(mode="json") == dumped


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("params") / "params.yaml"


@at_least(300)
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_parameter_file(path, data):
    path.write_bytes(data)
    check(attempt(load_params, path))


tags = st.sampled_from(["!!int ", "!!float ", "!!bool ", "!!null ", "!!str ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ",
                        "!!python/object:os.system ", "!x ", "&a ", "*a", "<<: ", "? ", "- ", "|\n ", ">\n ", "'", '"', "%", "@", "`", "{", "[",
                        "]", "}", ",", ":", "#", "\t", "\r\n", "\u2028", "\ufeff", "---\n", "...\n", '"\\ud800"', '"\\x00"', "2020-13-45",
                        "1:30", "0x1F", "0o7", "010", ".inf", ".nan", "1_000", "=", "yes", "1" * 5000, "[" * 30, "{a: " * 30, "- " * 300])
plain = st.text(max_size=6) | st.sampled_from(WORDS) | scalars.map(str)


@at_least(300)
@given(parts=st.lists(keys.map(lambda key: f"\n{key.rpartition('.')[2]}: ") | st.sampled_from(
    ["\ncorpus:\n  n_facts: 3", "\nedit: {editors: {lora: {", "\n  ", "\n    ", "\n"]) | tags | plain, max_size=8))
def test_pieces_of_yaml_as_a_parameter_file(path, parts):
    path.write_bytes("".join(parts).encode("utf-8", "surrogatepass"))
    check(attempt(load_params, path))


@at_least(150)
@given(settings=settings_near_the_defaults())
def test_settings_in_a_file_or_as_overrides_give_the_same(path, settings):
    path.write_text("")
    result = attempt(load_params, path, settings)
    check(result)
    try:
        path.write_text(yaml.dump(nested(settings), Dumper=Dumper, allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, ValueError):  # half a surrogate pair, 5,000 digits
        return
    check(attempt(load_params, path))
    if not isinstance(result, BeliefEditError):  # dumped, read and overridden alike
        path.write_text(yaml.dump(result.model_dump(mode="json"), Dumper=Dumper, allow_unicode=True), encoding="utf-8")
        assert attempt(load_params, path) == result == attempt(with_overrides, result, settings if not any(
            "preset" in str(key) for key in settings) else {})


@at_least(300)
@given(overrides=values | settings_near_the_defaults() | settings_near_the_defaults().map(nested),
       params=values, part=st.sampled_from(["overrides", "params", "path"]))
def test_parameters_of_any_type(path, overrides, params, part):
    path.write_text("edit: {n_cases: 7, editors: {lora: {lr: 0.1}}}")
    if part == "path" and not isinstance(params, str):
        check(attempt(load_params, params))
    elif part == "params":
        check(attempt(with_overrides, params, {}))
    else:
        check(attempt(load_params, path, overrides))


@st.composite
def expressions(draw):
    """KEY=VALUE, where the value is often one that the parameter may have, or a list of them."""
    key = draw(keys)
    likely = st.just(default_of(key)) | st.sampled_from([0, 1, 2, 0.5, True, None, [0], [1, -1], ["or"], {}, "a", "A"])
    value = draw(likely | st.lists(likely, max_size=3) | st.lists(scalars, max_size=5) | (tags | plain))
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


@at_least(300)
@given(texts=st.lists(expressions(), min_size=1, max_size=2) | st.lists(expressions() | st.text(max_size=20), max_size=4))
def test_set_expressions_and_sweeps(texts):
    def plan():
        fixed, points = grid(map(parse_override, texts))
        names = folder_names(points)
        return points, names, [with_overrides({}, fixed | point) for point in points[:3] or [{}]]

    result = attempt(plan)
    if isinstance(result, BeliefEditError):
        assert isinstance(result, ConfigError)
        return
    points, names, experiments = result
    on_any_disk = {unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", name).casefold()) for name in names}
    assert len(on_any_disk) == len(points) and all(len(name.encode()) < 256 for name in names)
    for experiment in experiments:
        check(experiment)
