"""The lock of tested versions fits the dependencies of the package."""

import re
import tomllib

from packaging.requirements import Requirement

from tests.conftest import ROOT


def test_the_lock_has_an_allowed_version_of_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements-lock.txt").read_text().splitlines()
    locked = dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if not line.startswith("#"))
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in locked.items()}
    for text in (*project["dependencies"], *project["optional-dependencies"]["test"], *project["optional-dependencies"]["docs"]):
        requirement = Requirement(text)
        version = locked[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), f"{text}: locked {version}"
