"""Runs a benchmark: workers open a case, their answers are compared, then they take turns in short rounds."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field
from datetime import datetime, timezone
from pathlib import Path

from ..records import dataclass
from . import answers, costs, entrants, machine, models, same_bits, targets
from .cases import DEFAULT_GRIDS, GRIDS, Case, cases_of
from .entrants import ROOFLINE, Entrant
from .errors import BenchError
from .figures import MEASURED, grid_figures, judge, level_of, quantile, summary
from .process import MissingEngine, Worker, WorkerError
from .records import FORMAT

OPEN_SECONDS, ROUND_SECONDS = 300.0, 120.0
OPEN_WEIGHT = 10  # rounds that opening a case counts for in the progress
SETTLE_SECONDS = 0.003  # pause between turns where engines have several threads: theirs may still spin
PACKAGE_ROOT = Path(__file__).resolve().parents[2]

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Options:
    """What to run.

    grids : of `GRIDS`; patterns : case ids to keep, all where empty; engines : of `ENGINES`
    rounds, round_ns : rounds an engine and case, and their length; batch_ns : least time between two looks at the clock
    trial_ns : of one turn of the trial that picks an engine's fastest set-up
    threads : that each engine may use; isa : forces FASTRNN_ISA for fastrnn
    folders : where model files are looked for; costs : also measure import, load and stream
    """

    grids: tuple[str, ...] = DEFAULT_GRIDS
    patterns: tuple[str, ...] = ()
    engines: tuple[str, ...] = tuple(entrants.ENGINES)
    rounds: int = 20
    round_ns: int = 20_000_000
    batch_ns: int = 20_000
    trial_ns: int = 4_000_000
    threads: int = 1
    isa: str | None = None
    folders: tuple[str, ...] = ()
    costs: bool = True


@dataclass
class Bench:
    """A run in progress."""

    options: Options
    folder: Path
    progress: Progress
    workers: dict[str, Worker] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    done: float = 0.0
    total: float = 1.0

    def worker(self, name: str) -> Worker | None:
        """The engine's process, started if it is not running; None if the engine is missing."""
        who = entrants.find(name)
        if name not in self.missing and who.process not in self.missing:
            found = self.workers.get(who.process)
            if found is None or not found.alive:
                if found is not None:
                    found.close()
                self.start(who)
        if who.process in self.missing:
            self.missing[name] = self.missing[who.process]
        if name in self.missing:
            return None
        self.versions[name] = self.workers[who.process].version
        return self.workers[who.process]

    def start(self, who: Entrant) -> None:
        """Start the entrant's process, or say in `missing` why it does not start."""
        threads = who.threads or self.options.threads
        env = environment(who.name, threads, who.isa or self.options.isa)
        try:
            self.workers[who.process] = Worker(who.process, who.file, threads, env)
        except MissingEngine as error:
            self.missing[who.process] = f"not installed: {error}"
        except WorkerError as error:
            self.missing[who.process] = f"did not start: {error}"

    def ask(self, name: str, do: str, seconds: float, **message) -> dict:
        """Send a request about an entrant to its process, which runs; see `Worker.ask`."""
        return self.workers[entrants.find(name).process].ask(do, seconds, entrant=name, **message)

    def advance(self, rounds: float, text: str) -> None:
        """Tell how far we are; the unit is one round of one engine."""
        self.done += rounds
        self.progress(self.done, self.total, text)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers.values():
            worker.close()


def environment(name: str, threads: int, isa: str | None) -> dict[str, str]:
    """What a worker's process sees: thread limits for whatever library it loads, and the instruction set for ours."""
    env = dict(os.environ)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env[variable] = str(threads)
    for variable in ("FASTRNN_THREADS", "PYTHONSTARTUP"):
        env.pop(variable, None)
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(PACKAGE_ROOT), env.get("PYTHONPATH", "")) if p)
    if isa is not None:
        env["FASTRNN_ISA"] = isa
    return env


def run(options: Options, progress: Progress = lambda done, total, text: None) -> dict:
    """Run the benchmark and return its record.

    progress is called with (rounds done, rounds in all, what is being done). Raises BenchError if nothing can be
    run: no such grid, no case that matches, fastrnn itself does not start.
    """
    cases = select(options)
    start = time.monotonic()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="fastrnn-bench-") as temporary:
        bench = Bench(options, Path(temporary), progress)
        bench.total = sum(len(engines_of(c, options)) * (options.rounds + OPEN_WEIGHT) for c in cases) or 1
        try:
            require_fastrnn(bench)
            sizes = machine.describe()
            roofline = whole_roofline(bench, sizes["caches"])
            records = [run_case(bench, case, sizes["caches"], i) for i, case in enumerate(cases)]
            found_costs = measure_costs(bench) if options.costs else {}
        finally:
            bench.close()
    record = {
        "format": FORMAT,
        "fastrnn": bench.versions.get("fastrnn", "not run"),
        "started": started,
        "seconds": round(time.monotonic() - start, 1),
        "machine": sizes,
        "settings": {**asdict(options), "tolerance": answers.TOLERANCE},
        "engines": engine_table(bench, options),
        "roofline": roofline,
        "costs": found_costs,
        "cases": records,
    }
    grids = dict.fromkeys(case.grid for case in cases)
    record["grids"] = {grid: grid_figures([c for c in records if c["grid"] == grid]) for grid in grids}
    record["targets"] = targets.evaluate(record)
    return record


def select(options: Options) -> list[Case]:
    """The cases of a run. Raises BenchError for an unknown grid or engine, or if no case is left."""
    for what, given, known in (("grid", options.grids, GRIDS), ("engine", options.engines, entrants.ENGINES)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise BenchError(f"unknown {what} {', '.join(unknown)}; known: {', '.join(known)}")
    if options.rounds < 1 or options.round_ns < 1 or options.threads < 1:
        raise BenchError("rounds, their length and threads must be at least 1")
    cases = cases_of(options.grids, options.patterns, [Path(f) for f in options.folders])
    if not cases:
        chosen = f" that match {', '.join(options.patterns)}" if options.patterns else ""
        raise BenchError(f"grids {', '.join(options.grids)} have no cases{chosen} here")
    return cases


def engines_of(case: Case, options: Options) -> list[str]:
    """Who takes part in a case: its own list, as far as it was asked for."""
    names = case.engines or tuple(entrants.ENGINES)
    return [name for name in names if entrants.find(name).engine in options.engines]


def engine_table(bench: Bench, options: Options) -> dict:
    """Every engine that was asked for: version, or why it is missing."""
    names = [
        *options.engines,
        *dict.fromkeys([*bench.versions, *bench.missing]),
    ]
    table = {}
    for name in dict.fromkeys(names):
        if name in bench.missing:
            table[name] = {"status": "missing", "text": bench.missing[name]}
        elif name in bench.versions:
            table[name] = {"status": "ok", "text": bench.versions[name]}
        else:
            table[name] = {"status": "not needed", "text": "takes part in no case of this run"}
    return table


def require_fastrnn(bench: Bench) -> None:
    """Raise BenchError if fastrnn was asked for and does not start: better now than after ten minutes of peers."""
    if "fastrnn" in bench.options.engines and bench.worker("fastrnn") is None:
        raise BenchError(f"fastrnn {bench.missing['fastrnn']}")


def whole_roofline(bench: Bench, caches: Mapping[str, int]) -> dict | None:
    """The machine's limits at the start of the run, all levels; None if the probe is not built."""
    bench.progress(0, bench.total, "roofline")
    worker = bench.worker(ROOFLINE)
    if worker is None:
        return None
    sizes = machine.probe_sizes(dict(caches))
    return {**worker.ask("probe", ROUND_SECONDS, levels=sizes), "buffers": sizes}


def probe_size(level: str, footprint: int, caches: Mapping[str, int]) -> int:
    """Bytes of the buffer that represents a case's weights: as many as they are, so that it is in the same cache.

    In L1 at least half of it: a loop over one or two KiB would measure its own beginning and end.
    """
    return max(footprint, machine.probe_sizes(dict(caches)).get("L1", 0) if level == "L1" else 0)


def measure_costs(bench: Bench) -> dict:
    """`costs.measure`, or why it could not be done."""
    if "fastrnn" not in bench.options.engines:
        return {"why": "fastrnn was not among the engines"}
    bench.progress(bench.done, bench.total, "import, load, streams")
    try:
        return costs.measure(bench.folder, environment("fastrnn", 1, bench.options.isa))
    except Exception as error:  # a cost that can't be measured must not cost the record
        return {"why": f"{type(error).__name__}: {error}"}


def run_case(bench: Bench, case: Case, caches: Mapping[str, int], number: int) -> dict:
    """Open, compare, time, judge one case; its record. What an engine can't do is in its result, never raised."""
    folder = bench.folder / f"case{number}"
    folder.mkdir()
    names = engines_of(case, bench.options)
    job = models.prepare(case, folder)
    if case.same_bits:
        results = same_bits.run(bench, names, job)
        record = case.as_dict() | {"results": results, "work": None, "roofline": None}
        judge(record)
        return record | {"verdict": same_bits.verdict(results)}
    results = open_case(bench, case, job, names)
    answers.compare(results, folder, job)
    ready = [name for name in names if name in results and results[name]["status"] == "ok"]
    record = case.as_dict() | {"work": None, "level": None, "levels": {}, "roofline": None}
    record["threads"] = max((entrants.find(name).threads or bench.options.threads for name in names), default=1)
    sizes: dict[str, int] = {}
    if case.work is not None:
        footprints = weights_of(case.work.footprint, ready)
        levels = {precision: level_of(size, caches) for precision, size in footprints.items()}
        record.update(work=asdict(case.work), level=levels[entrants.FLOAT32], levels=levels)
        sizes = {levels[p]: probe_size(levels[p], size, caches) for p, size in footprints.items()}
    turns, probes = take_turns(bench, case, ready, results, sizes)
    for name, rounds in turns.items():
        if results[name]["status"] == "ok":
            results[name].update(summary(rounds))
    if probes:
        keys = [key for key in probes[0] if key != "isa"]
        record["roofline"] = {key: quantile([p[key] for p in probes], 0.5) for key in keys}
        record["isa"] = probes[0]["isa"]
    for name in ready:
        try:
            results[name].update(bench.ask(name, "close", ROUND_SECONDS))
        except WorkerError as error:
            results[name].update(peak_rss=None, note=str(error))
    record["results"] = {name: results[name] for name in names if name in results}
    judge(record)
    return record


def open_case(bench: Bench, case: Case, job: dict, names: Sequence[str]) -> dict[str, dict]:
    """Each engine loads the case and answers it; name -> result so far ("ok", or "refused" with the reason)."""
    results: dict[str, dict] = {}
    for name in names:
        bench.advance(OPEN_WEIGHT, f"{case.id}: {name} opens")
        if bench.worker(name) is None:
            bench.advance(bench.options.rounds, f"{case.id}: {name} is missing")
            if name in MEASURED:  # a peer that is missing says so once for all cases; ours must not just vanish
                results[name] = {"status": "refused", "reason": bench.missing[name]}
            continue
        settings = {"trial_ns": bench.options.trial_ns, "batch_ns": bench.options.batch_ns}
        try:
            asked = {**job, "precision": entrants.find(name).precision}
            opened = bench.ask(name, "open", OPEN_SECONDS, job=asked, **settings)
            bench.ask(name, "answer", OPEN_SECONDS, to=str(Path(job["x"]).with_name(f"{name}.npy")))
            results[name] = {"status": "ok", **opened}
        except WorkerError as error:
            results[name] = {"status": "refused", "reason": str(error)}
            bench.advance(bench.options.rounds, f"{case.id}: {name} refused")
    return results


def weights_of(footprint: int, names: Sequence[str]) -> dict[str, int]:
    """Bytes that are read again and again in each precision of ours among these entrants; float32 always, and last."""
    found = {e.precision for e in map(entrants.find, names) if e.own} - {entrants.FLOAT32}
    return {p: int(footprint * entrants.WEIGHT_SHARE[p]) for p in (*sorted(found), entrants.FLOAT32)}


def take_turns(bench: Bench, case: Case, ready: Sequence[str], results: dict, sizes: Mapping[str, int]):
    """Rounds of all engines in turn; (name -> its rounds, the roofline probes between them). sizes: level -> bytes of
    the probe's buffer.

    Each round begins with another engine, so that none always runs after the same neighbour. One process runs at a
    time: the others wait for their pipe.
    """
    pause = int(1e6 * case.pause_ms)
    turns: dict[str, list[dict]] = {name: [] for name in ready}
    probes = []
    prober = bench.worker(ROOFLINE) if sizes and ready else None
    for r in range(bench.options.rounds):
        at = r % max(len(ready), 1)
        for name in (*ready[at:], *ready[:at]):
            bench.advance(1, f"{case.id}: {name}")
            if results[name]["status"] != "ok":
                continue
            if bench.options.threads > 1 or entrants.find(name).threads:
                time.sleep(SETTLE_SECONDS)
            try:
                found = bench.ask(name, "round", ROUND_SECONDS, ns=bench.options.round_ns, pause_ns=pause)
                turns[name].append(found)
            except WorkerError as error:
                results[name] = {"status": "refused", "reason": f"while timed: {error}"}
        if prober is not None:
            probes.append(prober.ask("probe", ROUND_SECONDS, levels=sizes))
    return turns, probes
