"""What `audit-operator demo` reads, and how it shows what came of it."""

import gzip
import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from audit_operator.cli.errors import FINDINGS, OK, CliError
from audit_operator.cli.inputs import read_inputs
from audit_operator.cli.output import bytes_text, coloured, counted, print_json, styled
from audit_operator.cli.policies import Setting, identity, load_plan

if TYPE_CHECKING:
    from audit_operator.cli.demo.findings import Findings
    from audit_operator.render.plan import Plan

_SET: Final = ("namespaces.yaml", "platform", "tenants", "demo")
"""The last takes the place of what has the same name before it."""
_TRAFFIC: Final = "traffic/sample.jsonl.gz"


def demo(folder: str, as_json: bool, stream: TextIO) -> int:
    """Run it on the examples in ``folder``; empty: on those of this checkout. The exit code. Raises CliError."""
    examples = _examples(folder)
    try:
        from audit_operator.cli.demo.run import API_SERVERS, ROUNDS, run
    except ModuleNotFoundError as error:
        raise CliError(
            f"needs {error.name}, which is not installed", way_out="pip install 'audit-operator[operator,receiver]'"
        ) from None

    plan = plan_of(examples)
    recorded = recorded_in(examples)
    show = _Progress(io.StringIO() if as_json else stream)
    if not as_json:
        _show_policies(plan, examples, stream)
        _title(stream, f"Live: {len(API_SERVERS)} API servers replay {examples / _TRAFFIC} {ROUNDS} times each")
    with tempfile.TemporaryDirectory(prefix="audit-operator-demo-") as place:
        findings = run(plan, recorded, Path(place), show)
    show.end()
    if as_json:
        print_json(as_object(findings))
    else:
        show_findings(findings, stream)
    return FINDINGS if findings.failures() else OK


def plan_of(examples: Path) -> "Plan":
    """What follows from the examples, with the backend and the sinks of the demo. Raises CliError."""
    inputs = read_inputs([str(examples / name) for name in _SET])
    latest = {identity(document): document for document in inputs.resources}
    plan, problems = load_plan(inputs._replace(resources=tuple(latest.values())), Setting())
    if problems or plan.blocked:
        raise CliError("; ".join(problems) or str(plan.blocked[0]), file=str(examples))
    return plan


def _examples(folder: str) -> Path:
    """The folder, the one below the current folder, or the checkout's, whichever is there first."""
    checkout = Path(__file__).parents[4] / "examples"
    candidates = [Path(folder)] if folder else [Path("examples"), checkout]
    for candidate in candidates:
        if (candidate / _TRAFFIC).is_file() and (candidate / _SET[-1]).is_dir():
            return candidate
    raise CliError(
        f"holds no {_TRAFFIC}",
        file=str(candidates[0]),
        way_out="run it in a checkout of the project, or name its examples",
    )


def recorded_in(examples: Path) -> list[bytes]:
    """The EventLists that are replayed."""
    with gzip.open(examples / _TRAFFIC) as lines:
        return [line for line in lines if line.strip()]


# --- what is shown ---------------------------------------------------------------------------------------------------


class _Progress:
    """Lines with the seconds that have passed; on a terminal, below them how many events are acknowledged."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._start = time.monotonic()
        self._shown = ""

    def said(self, text: str) -> None:
        """See `Show`."""
        self._clear()
        seconds = styled(f"{time.monotonic() - self._start:5.1f} s", self._stream, "bright_black")
        self._stream.write(f" {seconds}  {text}\n")
        self._redraw()

    def progress(self, done: int, total: int) -> None:
        """See `Show`."""
        if self._live:
            self._clear()
            self._shown = f"          {done:,} of {total:,} events acknowledged"
            self._redraw()

    def end(self) -> None:
        """Leave nothing behind."""
        self._clear()
        self._shown = ""
        self._stream.flush()

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * len(self._shown) + "\r")

    def _redraw(self) -> None:
        self._stream.write(self._shown)
        self._stream.flush()


def _title(stream: TextIO, text: str) -> None:
    stream.write(f"\n{styled(text, stream, 'cyan', bold=True)}\n\n")
    stream.flush()


def _show_policies(plan: "Plan", examples: Path, stream: TextIO) -> None:
    _title(stream, f"Resources: {examples}")
    rows = [
        (f"{each.namespace}/{each.name}", counted(len(each.policy.rules), "rule"), ", ".join(each.sinks))
        for each in plan.policies
    ]
    _table(stream, ("AuditPolicy", "", "AuditSink"), rows, "<><")
    stream.write(
        f"\n API servers run one policy, the union: {counted(len(plan.server_policy.rules), 'rule')}. "
        "The receiver gives each sink exactly its own.\n"
    )


def show_findings(findings: "Findings", stream: TextIO) -> None:
    """Who got what, and whether it is what it should be."""
    _title(stream, "Who got what")
    _table(
        stream,
        ("policy", "sink", "asked for", "there"),
        [(row.policy, row.sink, f"{row.asked:,}", f"{row.there:,}") for row in findings.policies],
        "<<>>",
    )
    stream.write("\n")
    _table(
        stream,
        ("sink", "", "events", "lost", "twice", "at level"),
        [
            (row.sink, row.kind, f"{row.events:,}", f"{row.lost:,}", f"{row.twice:,}", _levels(row.levels))
            for row in findings.sinks
        ],
        "<<>>><",
    )
    _title(stream, "Whether it held")
    sent = findings.sent
    missing = findings.lost
    _verdict(
        stream,
        not missing,
        "Nothing was lost" if not missing else f"{counted(missing, 'event')} LOST",
        f"{sent.events:,} events in {sent.posts:,} POSTs were acknowledged; every sink was compared with `explain`",
    )
    stream.write(
        f"   {counted(sent.repeated, 'attempt was', 'attempts were')} repeated by API servers; "
        f"{counted(findings.twice, 'event')} reached a sink twice\n"
    )
    _verdict(
        stream,
        not findings.leaked,
        "Secrets stayed out" if not findings.leaked else f"Secrets LEAKED, found {findings.leaked:,} times",
        f"{findings.planted:,} values were sent in Secrets, ConfigMaps, tokens; searched in plain and base64:",
    )
    stream.writelines(
        f"   {search.place:22}  {bytes_text(search.size):>8}  {search.found:,} found\n" for search in findings.searches
    )
    stream.writelines(f" {styled('!', stream, 'red', bold=True)} {failure}\n" for failure in findings.failures())
    stream.flush()


def _verdict(stream: TextIO, good: bool, title: str, rest: str) -> None:
    mark = styled("ok" if good else "FAILED", stream, "green" if good else "red", bold=True)
    stream.write(f" {mark} {title}: {rest}\n")


def _levels(levels: Mapping[str, int]) -> str:
    return ", ".join(f"{level} {count:,}" for level, count in levels.items())


def _table(stream: TextIO, head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> None:
    """Aligned columns. Names are those of the examples: nothing in them moves a cursor."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True))

    title = line(head).rstrip()
    stream.write(f" {styled(title, stream, 'bright_black') if coloured(stream) else title}\n")
    stream.writelines(f" {line(row).rstrip()}\n" for row in rows)


def as_object(findings: "Findings") -> dict[str, Any]:
    """For `-o json`."""
    return {
        "ok": not findings.failures(),
        "failures": findings.failures(),
        "sent": findings.sent._asdict(),
        "policies": [row._asdict() for row in findings.policies],
        "sinks": [row._asdict() for row in findings.sinks],
        "planted": findings.planted,
        "searches": [search._asdict() for search in findings.searches],
    }
