"""The wheel in an environment of its own, in an empty folder without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_makes_a_project_and_runs_its_notebooks(tmp_path):
    """The environment sees the packages of this one, without its beliefedit; nothing is downloaded."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "runs", "__pycache__", "test-artifacts", "tests", "docs", "benchmarks"))

    def run(*command, folder):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True,
                                env=environment | {"OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        return result.stdout

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", source, folder=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    shutil.rmtree(source)
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=tmp_path)

    empty = tmp_path / "empty"
    empty.mkdir()
    beliefedit = python.with_name("beliefedit")
    run(beliefedit, "new", "myproject", folder=empty)
    run(beliefedit, "run", "--params", "params/smoke.yaml", "--only", "01_corpus", folder=empty / "myproject")
    assert "done" in (empty / "myproject" / "runs" / "smoke" / "index.html").read_text()
    shown = run(python, "-c", "import beliefedit as be\nprint(be.__file__, be.load_params('demo').name)", folder=empty)
    assert shown == f"{packages / 'beliefedit' / '__init__.py'} demo\n"
    run(beliefedit, "run", "--params", "smoke", "--only", "01", "--dry-run", folder=empty)  # the package's own notebooks
    assert [path.name for path in empty.iterdir()] == ["myproject"]
