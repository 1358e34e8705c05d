"""The same as `beliefedit run`; the notebooks and parameters beside this file are the defaults."""

from __future__ import annotations

import sys
from pathlib import Path

from beliefedit.__main__ import main

ROOT = Path(__file__).resolve().parent

if __name__ == "__main__":
    main(["run", *sys.argv[1:]], {"run": {"params_file": ROOT / "params" / "demo.yaml",
                                          "notebooks": ROOT / "notebooks"}})
