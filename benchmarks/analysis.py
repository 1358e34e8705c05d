"""Time of the cluster bootstrap behind all intervals: 5,000 edits x 40 columns, some values missing.

    python benchmarks/analysis.py
"""

import time

import numpy as np

from beliefedit.evaluation.metrics import bootstrap_interval

N_EDITS, N_COLUMNS = 5_000, 40


def main() -> None:
    print(f"{'edits':>6} {'columns':>8} {'subjects':>9} {'resamples':>10} {'seconds':>8}")
    for n_subjects in (500, 1_250, 5_000):
        for n_resamples in (2_000, 10_000):
            generator = np.random.default_rng(0)
            values = generator.random((N_EDITS, N_COLUMNS))
            values[generator.random(values.shape) < 0.2] = np.nan
            names = [f"subject {i}" for i in range(n_subjects)]
            subjects = generator.choice(names, size=N_EDITS)
            started = time.perf_counter()
            bootstrap_interval(values, subjects, generator, n_resamples=n_resamples, level=0.95)
            seconds = time.perf_counter() - started
            print(f"{N_EDITS:>6} {N_COLUMNS:>8} {n_subjects:>9} {n_resamples:>10} {seconds:>8.2f}")


if __name__ == "__main__":
    main()
