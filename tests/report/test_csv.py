"""Tables that reports save as CSV hold no formulas."""

import base64
import io
import re

import polars as pl

from beliefedit.report.html_tables import csv_bytes, downloads


def test_text_that_a_spreadsheet_would_run_is_harmless_and_numbers_stay():
    names = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", "a=b", "seed=0", "", None]
    link = downloads({"compared.csv": csv_bytes(pl.DataFrame({"run": names, "mean": [-0.5] * len(names)}))})
    text = base64.b64decode(re.search(r'base64,([^"]+)"', link)[1])
    read = pl.read_csv(io.BytesIO(text), schema={"run": pl.String, "mean": pl.Float64})
    assert read["run"].to_list()[:7] == ["'" + name for name in names[:5]] + names[5:7]
    assert read["mean"].to_list() == [-0.5] * len(names)
