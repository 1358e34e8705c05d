"""Parameter files, --set expressions and overrides of any shape: accepted, or a ConfigError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beliefedit.config import load_params

from .conftest import at_least, attempt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("params")


@at_least(300)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_parameter_file(folder, data):
    (folder / "params.yaml").write_bytes(data)
    attempt(load_params, folder / "params.yaml")
