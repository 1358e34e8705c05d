"""Time how long a finished run's reports and index take to write, report by report.

    python benchmarks/reports.py runs/demo
"""

import sys
import tempfile
import time
from pathlib import Path

from beliefedit.report import pages as report
from beliefedit.store import read_json


def main() -> None:
    run = Path(sys.argv[1])
    head = report.page_head(read_json(run / "summary.json"))
    started = time.perf_counter()
    print(f"{'report':<16} {'seconds':>8} {'MB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for notebook in sorted((run / "notebooks").glob("*.ipynb")):
            begun = time.perf_counter()
            page = report.export(notebook, Path(folder) / f"{notebook.stem}.html", head=head)
            print(f"{notebook.stem:<16} {time.perf_counter() - begun:>8.2f} {page.stat().st_size / 1e6:>6.2f}")
    begun = time.perf_counter()
    index = report.write_index(run)
    print(f"{'index':<16} {time.perf_counter() - begun:>8.2f} {index.stat().st_size / 1e6:>6.2f}")
    print(f"{'all':<16} {time.perf_counter() - started:>8.2f}")


if __name__ == "__main__":
    main()
