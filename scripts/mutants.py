#!/usr/bin/env python3
"""Whether tests can fail: changes one place of the code at a time and runs the tests that promise something about it.

    scripts/mutants.py [--each N] [--seed N] [--jobs N] [AREA ...]

Of each area a sample of N places is drawn, the same for the same seed. A change that no test notices has survived:
either no test keeps the promise, or the change makes no difference. Survivors are listed; exit code 1 if there is one.

Every change is made in a copy of the working tree, one copy for each job, so that nothing here changes. No part of
`make test`: it takes a minute for every ten changes.
"""

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "operator/audit_operator"
_NOT_COPIED: Final = (".git", ".venv", ".tools", ".*_cache", ".hypothesis", "__pycache__", "out")


class Area(NamedTuple):
    """``modules`` below the package; ``tests`` below tests/: what promises something about them, the quickest first."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


AREAS: Final = {
    "decision": Area(("policy/evaluate.py",), ("policy/test_evaluate.py", "policy/test_explain.py")),
    "union": Area(
        ("policy/union.py", "policy/folding.py", "policy/placing.py", "policy/simplify.py", "policy/region.py"),
        ("policy/test_region.py", "policy/test_union.py"),
    ),
    "coverage": Area(
        ("policy/coverage.py", "policy/outcome.py", "render/serverpolicy.py"),
        ("render/test_plan.py", "policy/test_union.py", "policy/test_diff.py"),
    ),
    "projection": Area(
        ("receiver/cutting.py",),
        ("receiver/test_cutting.py", "receiver/test_explained.py", "receiver/test_unredacted.py"),
    ),
    "routing": Area(
        ("receiver/deciding.py",),
        ("receiver/test_explained.py", "receiver/test_receive.py", "receiver/test_quotas.py"),
    ),
    "redaction": Area(("policy/redact.py",), ("policy/test_redact.py", "receiver/test_unredacted.py")),
    "journal": Area(("receiver/journal.py",), ("receiver/test_journal.py",)),
    "delivery": Area(
        ("receiver/delivery.py",),
        ("receiver/test_sinks.py", "receiver/test_sink_http.py", "receiver/test_sink_faults.py"),
    ),
    "flags": Area(("render/flags.py",), ("render/test_flags.py", "render/test_plan.py")),
    "retention": Area(("receiver/sinks/file.py",), ("receiver/test_sink_file.py", "receiver/test_integrity.py")),
    "tenants": Area(
        ("render/tenants.py", "receiver/rates.py", "receiver/shares.py", "receiver/reach.py"),
        ("render/test_tenants.py", "receiver/test_reach.py", "receiver/test_quotas.py"),
    ),
    "ports": Area(
        ("net/http.py", "receiver/budget.py", "receiver/clients.py"),
        ("net", "receiver/test_budget.py", "receiver/test_clients.py", "receiver/test_server.py"),
    ),
    "slow bodies": Area(("policy/events.py",), ("policy/test_events.py",)),
    "controller": Area(
        ("controller/children.py", "controller/accepted.py", "controller/references.py", "controller/reported.py"),
        ("controller",),
    ),
}


class Mutant(NamedTuple):
    """``text`` in place of what is between two offsets, in bytes, of a module."""

    module: str
    line: int
    start: int
    end: int
    text: str
    what: str


_COMPARISONS: Final = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_OPERATORS: Final = {ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>"}
_CALLS: Final = {"any": "all", "all": "any", "min": "max", "max": "min"}
_SILENT: Final = ("log", "_log", "logger", "_logger", "logging")
"""What is only logged is no promise."""


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """All changes of one module."""
    starts = [0]
    for text in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(text))

    def mutant(node: ast.AST, text: str, what: str, *, end: ast.AST | None = None) -> Mutant:
        last = end or node
        return Mutant(
            module,
            node.lineno,
            starts[node.lineno - 1] + node.col_offset,
            starts[last.end_lineno - 1] + last.end_col_offset,
            text,
            what,
        )

    def written(node: ast.AST) -> str:
        return ast.get_source_segment(source, node) or ""

    for node in _promising(ast.parse(source)):
        match node:
            case ast.Compare(ops=[operator]):
                other = _COMPARISONS[type(operator)]
                text = f"({written(node.left)} {other} {written(node.comparators[0])})"
                yield mutant(node, text, f"{written(node)} -> {other}")
            case ast.BoolOp():
                word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                yield mutant(node, "(" + f" {other} ".join(map(written, node.values)) + ")", f"{word} -> {other}")
            case ast.UnaryOp(op=ast.Not()):
                yield mutant(node, f"({written(node.operand)})", "not dropped")
            case ast.BinOp() if type(node.op) in _OPERATORS and not isinstance(node.left, ast.Constant):
                other = _OPERATORS[type(node.op)]
                yield mutant(node, f"({written(node.left)} {other} {written(node.right)})", f"operator -> {other}")
            case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
                yield mutant(node.func, _CALLS[name], f"{name} -> {_CALLS[name]}")
            case ast.Constant(value=bool()):
                yield mutant(node, str(not node.value), f"{node.value} -> {not node.value}")
            case ast.Constant(value=int()):
                yield mutant(node, str(node.value + 1), f"{node.value} -> {node.value + 1}")
            case ast.If() | ast.While() | ast.IfExp():
                yield mutant(node.test, f"(not ({written(node.test)}))", "condition turned")
            case ast.Expr(value=ast.Call() | ast.Await()) if not _is_silent(node.value):
                yield mutant(node, "pass", f"dropped: {written(node)[:60]}")
            case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete():
                yield mutant(node, "pass", f"dropped: {written(node)[:60]}")


def _promising(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, decorators, default texts and what is only for type checkers."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            ):
                continue
            if isinstance(child, ast.Assert):
                continue
            yield child
            yield from _promising(child)


def _is_silent(call: ast.expr) -> bool:
    first = next((node.id for node in ast.walk(call) if isinstance(node, ast.Name)), "")
    return first in _SILENT


# --- trying them -----------------------------------------------------------------------------------------------------


class Copy:
    """A copy of the working tree in which one thing at a time is different."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED), symlinks=True)
        for name in (".venv", ".tools"):
            if (ROOT / name).exists():
                (folder / name).symlink_to(ROOT / name)

    def passes(self, area: Area, timeout: float) -> bool:
        """Whether the area's tests pass; too slow is not passing. What they leave running is ended with them."""
        tests = [f"tests/{name}" for name in area.tests]
        command = [str(ROOT / ".venv/bin/python"), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "operator"), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def survives(self, mutant: Mutant, area: Area, timeout: float) -> bool:
        path = self.folder / PACKAGE / mutant.module
        source = path.read_bytes()
        try:
            path.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
            compile(path.read_bytes(), str(path), "exec")
            return self.passes(area, timeout)
        except SyntaxError:
            return False
        finally:
            path.write_bytes(source)


def sample(area: Area, count: int, seed: int) -> list[Mutant]:
    """So many places of the area's modules, of each kind of change as it comes."""
    found = [
        mutant
        for module in area.modules
        for mutant in mutants(module, (ROOT / PACKAGE / module).read_text(encoding="utf-8"))
    ]
    return sorted(random.Random(seed).sample(found, min(count, len(found))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="*", metavar="AREA", choices=[*AREAS, []], help=", ".join(AREAS))
    parser.add_argument("--each", type=int, default=20, help="changes of each area")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    survived: list[Mutant] = []
    tried = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(Copy(Path(folder, str(number), "tree")))

        def verdict(mutant: Mutant, area: Area, timeout: float) -> bool:
            copy = copies.get()
            try:
                return copy.survives(mutant, area, timeout)
            finally:
                copies.put(copy)

        for name in options.areas or AREAS:
            area = AREAS[name]
            copy, begun = copies.get(), time.monotonic()
            passes = copy.passes(area, 900)
            copies.put(copy)
            if not passes:
                sys.exit(f"{name}: its tests fail as they are")
            timeout = 3 * options.jobs * (time.monotonic() - begun) + 20
            chosen = sample(area, options.each, options.seed)
            verdicts = list(pool.map(lambda mutant: verdict(mutant, area, timeout), chosen))  # noqa: B023 - done at once
            alive = [mutant for mutant, lives in zip(chosen, verdicts, strict=True) if lives]
            print(
                f"{name}: {len(chosen) - len(alive)} of {len(chosen)} noticed, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
            for mutant in alive:
                print(f"  survived: {mutant.module}:{mutant.line}: {mutant.what}", flush=True)
            tried += len(chosen)
            survived += alive
    print(f"{tried - len(survived)} of {tried} changes noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
