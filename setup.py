"""The wheel also has the notebooks and parameter files of the checkout, in `beliefedit/_data`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = {"notebooks": ("*.ipynb", "voila.json"), "params": ("*.yaml",)}


class BuildWithData(build_py):
    """Copies them into a wheel; an editable install reads them from the checkout."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        data = Path(self.build_lib) / "beliefedit" / "_data"
        shutil.rmtree(data, ignore_errors=True)
        for folder, patterns in FILES.items():
            (data / folder).mkdir(parents=True)
            for path in (path for pattern in patterns for path in Path(folder).glob(pattern)):
                shutil.copy(path, data / folder)


setup(cmdclass={"build_py": BuildWithData})
