"""Time of writing each report and the index page of a finished run.

    python benchmarks/reports.py runs/demo
"""

import sys
import tempfile
import time
from pathlib import Path

from beliefedit.report import pages
from beliefedit.store import read_json


def main() -> None:
    run = Path(sys.argv[1])
    head = pages.page_head(read_json(run / "summary.json"))
    total = 0.0
    print(f"{'report':<16} {'seconds':>8} {'MB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for notebook in [*sorted((run / "notebooks").glob("*.ipynb")), None]:
            begun = time.perf_counter()
            if notebook is None:
                page = pages.write_index(run)
            else:
                page = pages.export(notebook, Path(folder) / f"{notebook.stem}.html", head=head)
            seconds = time.perf_counter() - begun
            total += seconds
            print(f"{page.stem:<16} {seconds:>8.2f} {page.stat().st_size / 1e6:>6.2f}")
    print(f"{'all':<16} {total:>8.2f}")


if __name__ == "__main__":
    main()
