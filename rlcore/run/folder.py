"""A run's folder and everything that is written into it while it goes on; what a resumed run finds there again.

    recipe.yaml  metrics.jsonl  alarms.jsonl  ledger/step-000001.parquet  checkpoints/step-N/  summary.json  report.html

A checkpoint records how far metrics.jsonl had come, so that a resumed run writes on exactly there: what a killed process wrote
after its last checkpoint is written again, to the bit.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol
from uuid import uuid4

from filelock import FileLock, Timeout

from rlcore.errors import UserError, nearest
from rlcore.recipe.load import Loaded, differences, load
from rlcore.recipe.schema import Checkpoint, Stop
from rlcore.run import alarms as alarms_file
from rlcore.run import checkpoint
from rlcore.run.alarms import Alarm
from rlcore.run.checkpoint import Saved
from rlcore.run.console import Console, alarm, say, warn
from rlcore.run.trackers import Tracked, Tracker, find_trackers

BASE = "base"  # the quantised base, in the run folder (`trainers.quantised_base`)
# What a resumed run may change: how long it goes on, what it tells and where it runs.
CHANGEABLE = ("steps", "stop", "checkpoint", "monitor", "log", "output", "name", "cluster")


class Interrupted(Exception):
    """Ctrl-C, or an alarm that stops: the step was finished and checkpointed. The message says how to go on."""


class Stateful(Protocol):
    """Something with a small JSON state in a checkpoint: a data cursor, reward states."""

    def state(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class Run:
    """One run. `learners` and `cursors` are what its checkpoints hold; both are restored together. Raises UserError where a
    tracker's package is not installed."""

    def __init__(self, loaded: Loaded, *, steps: int, keep: Checkpoint, stop: Stop, unit: str = "step") -> None:
        self.recipe, self.folder = loaded.recipe, Path(loaded.recipe.folder)
        self.steps, self.keep, self.rules = steps, keep, stop
        self.console = Console(loaded.recipe.name, steps, unit)
        self.learners: dict[str, Saved] = {}
        self.cursors: dict[str, Stateful] = {}
        self.trackers: list[Tracker] = []
        self._open_trackers = find_trackers(loaded.recipe.log)
        self._times: dict[str, float] = {}
        self._history: dict[str, Any] = {"id": uuid4().hex, "elapsed": 0.0, "tokens": 0.0, "best": {}}
        self._watched = {m for m in (keep.keep_best, stop.metric if stop.patience else None) if m}
        self._stopped = ""  # the stop rule that ended the run
        self.alarmed = ""  # the alarms that did, and what came of it
        self.rolled_back = 0  # the step of the checkpoint that an alarm left as the newest; 0 for none
        self._since = time.monotonic()
        self._interrupted = False

    # -- from start to end -----------------------------------------------------------------------------------------------

    def restore(self) -> int:
        """Take up the newest checkpoint, if there is one; the step it was made at, else 0."""
        step = checkpoint.latest(self.folder / "checkpoints") or 0
        written = 0
        if step:
            state = checkpoint.load(self.folder / "checkpoints", step, self.learners)
            for name, cursor in self.cursors.items():
                cursor.restore(state["cursors"][name])
            self._history, written = self._history | state["history"], state["written"]
            say(f"resumed from step {step} in {self.folder}")
        self.begin(step, written)
        self._stopped = self._stop_reason() if step else ""
        if step >= self.steps:
            more = "; to go on, raise steps=" if "steps" in type(self.recipe).model_fields else ""
            say(f"nothing left to do: step {step} of {self.steps} is done{more}")
        elif self._stopped:
            say(f"nothing left to train: {self._stopped}; to go on, raise that rule of the recipe's `stop`")
        return step

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it, the first Ctrl-C waits for the step's checkpoint; the second stops at once."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def begin(self, step: int = 0, written: int = 0) -> None:
        """Start writing after `step`: whatever a killed process wrote beyond it (`written` bytes of metrics) is done again."""
        with (self.folder / "metrics.jsonl").open("ab") as file:
            file.truncate(written)
        for path in (self.folder / "ledger").glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        alarms_file.keep_until(self.folder, step)
        tracked = Tracked(self.folder, self.recipe.name, self._history["id"], self.recipe.model_dump(mode="json"))
        self.trackers = [open_tracker(tracked) for open_tracker in self._open_trackers]
        self.console.start(step)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned before the first step, kept as JSON for a resumed run."""
        path = self.folder / name
        if not checkpoint.latest(self.folder / "checkpoints"):
            write_aside(path, json.dumps(make()))
        return json.loads(path.read_text())

    def goes_on(self, step: int) -> bool:
        """Whether another step comes: neither the last was done nor a stop rule reached."""
        return step < self.steps and not self._stopped and not self.alarmed

    @property
    def best_step(self) -> int | None:
        """At which `checkpoint.keep_best` was highest."""
        found: int | None = self._history["best"].get(self.keep.keep_best, {}).get("step")
        return found

    @property
    def seconds(self) -> Mapping[str, float]:
        """Of each phase since the last `log`."""
        return self._times

    @property
    def elapsed(self) -> float:
        """Seconds of wall time over all resumes."""
        return float(self._history["elapsed"]) + time.monotonic() - self._since

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_aside(self.folder / "summary.json", json.dumps(dict(summary), indent=2) + "\n")

    # -- what a step leaves behind ---------------------------------------------------------------------------------------

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._times[f"time/{phase}"] = self._times.get(f"time/{phase}", 0.0) + time.perf_counter() - start

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl, tell the console and the trackers. Nothing for no metrics."""
        if not metrics:
            return
        row = {**metrics, **self._times}
        if self._times:
            row["time/step"] = sum(self._times.values())
            row["tokens_per_second"] = metrics.get("tokens", 0.0) / row["time/step"]
            self._times.clear()
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        self._history["tokens"] += metrics.get("tokens", 0.0)
        self._follow(step, metrics)
        self._warn(metrics)
        self.console.step(step, row)
        for track in self.trackers:
            track(step, row)

    def ledger(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = self.folder / "ledger"
        folder.mkdir(exist_ok=True)
        aside = folder / f".step-{step:06d}.parquet"
        pq.write_table(pa.Table.from_pylist([{"step": step, **row} for row in rows]), aside, compression="zstd")
        checkpoint.flush(aside)
        aside.rename(folder / f"step-{step:06d}.parquet")

    def heed(self, step: int, alarms: Sequence[Alarm]) -> None:
        """Tell each, write it down, and do what it asks for: the run ends with this step, or at a checkpoint before."""
        for each in alarms:
            alarm(each.line)
        if alarms:
            alarms_file.append(self.folder, alarms)
        if acting := [each for each in alarms if each.action != "warn"]:
            self.alarmed = f"stopped after step {step}: {', '.join(each.pattern for each in acting)}"
        if back := [each.since for each in alarms if each.action == "rollback"]:
            self._roll_back(min(back))
        if acting:
            say(self.alarmed)

    def checkpoint(self, step: int) -> None:
        """Keep the state where the recipe says so, at the end, and when Ctrl-C was pressed (then raises Interrupted)."""
        if self.rolled_back:
            return  # what this step would leave is what is not to be left
        self._stopped = self._stop_reason()
        if self._stopped and step < self.steps:
            say(f"stopping after step {step}: {self._stopped}")
        if step % self.keep.every == 0 or not self.goes_on(step) or self.best_step == step or self._interrupted:
            metrics = self.folder / "metrics.jsonl"
            checkpoint.flush(metrics)
            state = {
                "step": step,
                "cursors": {name: cursor.state() for name, cursor in self.cursors.items()},
                "history": {**self._history, "elapsed": self.elapsed},
                "written": metrics.stat().st_size,
            }
            root = self.folder / "checkpoints"
            checkpoint.save(root, step, self.learners, state)
            checkpoint.prune(root, {*checkpoint.steps(root)[-self.keep.keep_last :], self.best_step})
        if self._interrupted:
            raise Interrupted(f"stopped after step {step}; go on with: rlcore train {self.folder} --resume")

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _follow(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the best value so far, and its step, of each metric that `keep_best` or `stop` watches."""
        for metric in self._watched:
            best = self._history["best"].get(metric)
            if metric not in metrics:
                if best is None and "loss" in metrics:  # a step that the policy learned from has every metric
                    raise UserError(f"the recipe watches {metric!r}, which no metric is called{nearest(metric, list(metrics))}")
            elif best is None or metrics[metric] > best["value"]:
                self._history["best"][metric] = {"value": metrics[metric], "step": step, "stale": 0}
            else:
                best["stale"] += 1

    def _roll_back(self, since: int) -> None:
        """Take up the weights of the newest checkpoint from before a pattern that the completions of step `since` showed first,
        and remove the later ones. Those of step N are what sampled in step N + 1."""
        root = self.folder / "checkpoints"
        steps = checkpoint.steps(root)
        before = [step for step in steps if step + 1 < since]
        if not before:
            self.alarmed += "; there is no checkpoint from before it began to roll back to"
            return
        self.rolled_back = before[-1]
        self.alarmed += f"; rolled back to the checkpoint of step {self.rolled_back}"
        checkpoint.load(root, self.rolled_back, self.learners)
        checkpoint.prune(root, set(before))

    def _stop_reason(self) -> str:
        """Which stop rule is reached; empty for none."""
        rules, history = self.rules, self._history
        best = history["best"].get(rules.metric, {"stale": 0})
        if rules.patience and best["stale"] >= rules.patience:
            return f"{rules.metric} has not risen for {rules.patience} evaluations"
        if rules.max_hours and self.elapsed >= rules.max_hours * 3600:
            return f"{rules.max_hours} hours are spent"
        if rules.max_tokens and history["tokens"] >= rules.max_tokens:
            return f"{rules.max_tokens} tokens are spent"
        return ""

    def _warn(self, metrics: Mapping[str, float]) -> None:
        if metrics.get("length/truncated", 0) > 0.5:
            warn("more than half of the completions are cut: raise rollout.max_new_tokens, or rollout.anytime.summary_tokens")
        if metrics.get("answers/missing", 0) > 0.5:
            warn("more than half of the completions have no answer to extract: look at the ledger and the prompt")
        if metrics.get("groups/trained") == 0 or metrics.get("groups/degenerate") == 1:
            warn(
                "this step had nothing to teach: every group was dropped or paid all its completions alike; make the problems "
                "easier or harder, or raise rollout.samples"
            )

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        say("finishing this step, then checkpointing (Ctrl-C again to stop at once)")


@contextmanager
def claim(loaded: Loaded, resume: bool) -> Iterator[None]:
    """Make the run folder, hold it against other processes, write the resolved recipe. Raises UserError where it cannot be.

    A folder without a checkpoint holds nothing to go on from: the run starts over in it. A run that is refused before its
    first metrics leaves no folder behind, and one that is refused before its first checkpoint leaves the recipe that was there.
    """
    folder = Path(loaded.recipe.folder)
    recipe_file = folder / "recipe.yaml"
    begun = checkpoint.latest(folder / "checkpoints")
    held = begun or (folder / "summary.json").exists()
    if held:
        if not resume:
            raise UserError(f"{folder} holds a run already: add --resume to go on with it, or choose another with name=NAME")
        _refuse_changes(loaded, recipe_file)
    ours = not folder.exists()
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        before = recipe_file.read_text(encoding="utf-8") if begun else ""
        if not held:
            shutil.rmtree(folder / BASE, ignore_errors=True)  # of a run that was killed: the recipe may have been another
        write_aside(recipe_file, loaded.to_yaml())
    except Timeout:
        raise UserError(f"another process is running in {folder}") from None
    except OSError as error:
        raise UserError(f"cannot write to run folder {folder}: {error.strerror}; choose another with output=PATH") from error
    try:
        yield
    except UserError:
        if ours and not any(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path != recipe_file):
            shutil.rmtree(folder)
        elif before and checkpoint.latest(folder / "checkpoints") == begun:
            write_aside(recipe_file, before)  # what the next attempt is compared with is the run that there is
        raise
    finally:
        lock.release()


def write_aside(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    checkpoint.flush(aside)
    aside.rename(path)


def _refuse_changes(loaded: Loaded, recipe_file: Path) -> None:
    """Both recipes as today's schema has them, so that a default which came later is no difference."""
    before, now = (each.recipe.model_dump(mode="json") for each in (load([str(recipe_file)]), loaded))
    changed = [key for key in differences(before, now) if key.partition(".")[0] not in CHANGEABLE]
    if "job" in changed:
        raise UserError(f"{recipe_file.parent} holds a run of job: {before['job']}: choose another folder with name=NAME")
    if changed:
        listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise UserError(
            f"{recipe_file.parent} was started with another {listed}: resume with the same recipe "
            f"(rlcore train {recipe_file.parent} --resume), or start anew with name=NAME"
        )
