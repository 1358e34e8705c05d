"""Kill smoke runs with SIGKILL at random moments, finish each with the same command, and compare with a run that is not killed.

    python benchmarks/kills.py --out FOLDER [--kills 30] [--at-once 1] [--seed 0]

In turn it kills run_all.py, the notebook's kernel, and all processes of the run at once, up to six times in a folder, and
then lets the command finish. A finished folder must hold the
same files as the undisturbed one, byte-identical unless they hold times, and nothing else: no intermediate results, no
temporary files, also not in the folder of temporary files. Writes benchmarks/results/kills.json; the exit code is 1 if
something differs.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("pretraining.token_budget=60000", "pretraining.checkpoint_seconds=0.5", "edit.n_cases=12", "analysis.n_resamples=200")
MODES = ("run_all.py", "kernel", "all processes")
HOLD_TIMES = ("manifest.json", "summary.json", "index.html", "metrics.parquet", "log.parquet")
HOLD_TIMES_IN = ("notebooks", "reports")
MARK = "BELIEFEDIT_KILLS"  # an environment variable that all processes of a run inherit
SECONDS_TO_END = 60.0  # a killed kernel's run still writes its report
UNDISTURBED = "undisturbed"
MOST_KILLS = 6  # of one folder


class Launch:
    """run_all.py in a folder, with its output in a file and with a folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.mark, temporary = f"{folder}-{time.monotonic_ns()}", folder.with_name(f"{folder.name}-temporary")
        temporary.mkdir(exist_ok=True)
        command = [sys.executable, str(ROOT / "run_all.py"), "--params", str(ROOT / "params" / "smoke.yaml"),
                   "--out", str(folder)]
        for setting in SETTINGS:
            command += ["--set", setting]
        self.output = folder.with_name(f"{folder.name}.log")
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                                            env=os.environ | {MARK: self.mark, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1",
                                                             "PYTHONFAULTHANDLER": "1"})

    def processes(self) -> dict[int, str]:
        """Ids and commands of the processes of this launch that run, also of those whose parent has ended."""
        running = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    running[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                pass  # it has ended
        return running

    def kill(self, mode: str, number: int = signal.SIGKILL) -> bool:
        """Send a signal to some of the processes; False if there is none of them."""
        chosen = [pid for pid, command in self.processes().items()
                  if mode == MODES[2] or (pid == self.process.pid if mode == MODES[0] else "ipykernel_launcher" in command)]
        for pid in chosen:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        return bool(chosen)

    def seconds_to_end(self) -> float | None:
        """Seconds until no process is left; None: some are left after `SECONDS_TO_END`.

        These are ended by a signal that makes them write their stack to the output.
        """
        started = time.monotonic()
        while time.monotonic() - started < SECONDS_TO_END:
            self.process.poll()
            if not self.processes():
                return time.monotonic() - started
            time.sleep(0.1)
        print("left:", self.processes(), flush=True)
        for number in (signal.SIGABRT, signal.SIGKILL):
            self.kill(MODES[2], number)
            time.sleep(2)
        return None


def contents(folder: Path) -> dict[str, str]:
    """Maps the files and empty folders below a folder to SHA-256; '' for empty folders and files that hold times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file():
            timed = path.name in HOLD_TIMES or name.parts[0] in HOLD_TIMES_IN
            found[name.as_posix()] = "" if timed else hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[f"{name.as_posix()}/"] = ""
    return found


def finish(folder: Path) -> float:
    """Run in a folder until the end, and return the seconds.

    Raises:
        RuntimeError: the run fails.
    """
    started, launch = time.monotonic(), Launch(folder)
    if launch.process.wait():
        raise RuntimeError(f"the run in {folder} failed:\n{launch.output.read_text()[-3000:]}")
    return time.monotonic() - started


def disturb(folder: Path, longest: float, modes: list[str], draw: random.Random) -> list[dict]:
    """Run in a folder and kill the run, until it has finished or has been killed in all of ``modes``; return the kills.

    A kill comes after at most a third of the time of a whole run, so that six of them meet all parts of it.
    """
    kills: list[dict] = []
    for mode in modes:
        launch, moment = Launch(folder), draw.uniform(0.5, longest / 3)
        try:
            code = launch.process.wait(moment)
        except subprocess.TimeoutExpired:
            while not launch.kill(mode) and launch.process.poll() is None:
                time.sleep(0.05)  # between two notebooks there is no kernel
            code = launch.process.wait(SECONDS_TO_END) if mode == MODES[0] else launch.process.poll()
            if code == 0:
                break
            seconds = launch.seconds_to_end()
            kills.append({"folder": folder.name, "killed": mode, "after": round(moment, 1),
                          "ended_after": None if seconds is None else round(seconds, 1)})
            print(kills[-1], flush=True)
        else:
            if code:
                raise RuntimeError(f"the run in {folder} failed:\n{launch.output.read_text()[-3000:]}")
            break
    return kills


def check(folder: Path, expected: dict[str, str]) -> dict:
    """What differs between a finished folder and the undisturbed one."""
    found = contents(folder)
    return {"different": [name for name, value in expected.items() if found.get(name, value) != value],
            "missing": sorted(expected.keys() - found.keys()), "left": sorted(found.keys() - expected.keys()),
            "temporary": sorted(temporary(folder).keys() - temporary(folder.with_name(UNDISTURBED)).keys())}


def temporary(folder: Path) -> dict[str, str]:
    """What the runs in a folder have left in the folder of temporary files."""
    return contents(folder.with_name(f"{folder.name}-temporary"))


def disturb_and_check(out: Path, number: int, modes: list[str], longest: float, expected: dict[str, str],
                      seed: int) -> tuple[list[dict], list[dict]]:
    """(kills, finished folders) of one worker, which takes new folders until it has killed in all of ``modes``."""
    draw, kills, folders = random.Random(1000 * seed + number), [], []
    while len(kills) < len(modes):
        folder = out / f"killed-{number}-{len(folders)}"
        kills += disturb(folder, longest, modes[len(kills):], draw)
        finish(folder)
        folders.append({"folder": folder.name} | check(folder, expected))
        print(folders[-1], flush=True)
    return kills, folders


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, started = arguments.out.resolve(), time.monotonic()
    out.mkdir(parents=True)
    longest = finish(out / UNDISTURBED)
    expected = contents(out / UNDISTURBED)
    print(f"undisturbed: {longest:.0f} s, {len(expected)} files", flush=True)
    modes = [MODES[number % 3] for number in range(arguments.kills)]
    chunks = [modes[first:first + MOST_KILLS] for first in range(0, len(modes), MOST_KILLS)]
    kills, folders = [], []
    with ThreadPoolExecutor(arguments.at_once) as pool:
        for some_kills, some_folders in pool.map(
                lambda item: disturb_and_check(out, *item, longest, expected, arguments.seed), enumerate(chunks)):
            kills += some_kills
            folders += some_folders
    ended = [kill["ended_after"] for kill in kills]
    wrong = [folder for folder in folders if any(values for key, values in folder.items() if key != "folder")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    result = {
        "provenance": {
            "command": f"python benchmarks/kills.py --out FOLDER --kills {arguments.kills} --at-once {arguments.at_once} "
                       f"--seed {arguments.seed}",
            "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit.stdout.strip(),
            "machine": f"{os.cpu_count()} CPU cores"},
        "settings": SETTINGS,
        "kills": {mode: sum(kill["killed"] == mode for kill in kills) for mode in MODES},
        "folders": len(folders), "folders_finished_by_the_same_command": len(folders),
        "files": len(expected), "files_compared_byte_by_byte": sum(map(bool, expected.values())),
        "folders_as_the_undisturbed_one": len(folders) - len(wrong), "wrong": wrong,
        "kills_that_left_a_process": ended.count(None),
        "longest_seconds_until_all_processes_ended": max((n for n in ended if n is not None), default=0.0),
        "seconds": {"undisturbed": round(longest), "all": round(time.monotonic() - started)}}
    (ROOT / "benchmarks" / "results" / "kills.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    sys.exit(bool(wrong or None in ended))


if __name__ == "__main__":
    main()
