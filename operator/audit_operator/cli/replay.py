"""Recorded events put to policies: who would have got how much of them, and what the API servers would have written.

Made for files of gigabytes: bodies stay bytes, and of a request that was seen before only counters move, however many
policies there are.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TextIO

import msgspec
from msgspec import UNSET, Raw, UnsetType

from audit_operator.cli.errors import CliError, reason
from audit_operator.cli.inputs import STDIN, open_file, shown
from audit_operator.cli.output import bytes_text, console, counted, printable
from audit_operator.cli.policies import Setup
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.events import Event, EventError, ObjectRef, decode, split
from audit_operator.policy.explain import Source
from audit_operator.policy.memo import Memo
from audit_operator.policy.model import Level, Policy, Request
from audit_operator.policy.request import request_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LINE_LIMIT: Final = 64 << 20
"""Bytes of one line: an API server's largest POST is about 40 MB (docs/flags.md)."""

_REMEMBERED: Final = 200_000
"""Requests. Names that clients make up must not fill the memory."""

_COMPLAINTS: Final = 10
"""Lines that cannot be read are all counted, and so many of them shown."""


class Volume(NamedTuple):
    """How many events, and how many bytes of JSON they are."""

    events: int = 0
    size: int = 0

    def plus(self, other: "Volume") -> "Volume":
        """Both together."""
        return Volume(self.events + other.events, self.size + other.size)


class Malformed(NamedTuple):
    """A line that is no event, or has one in it that is none."""

    file: str
    line: int
    message: str


class RuleShare(NamedTuple):
    """What one rule decided: ``matched`` events, of which ``kept`` were neither of level None nor at a stage that it
    omits. ``origin`` None: no rule matched.
    """

    origin: str | None
    level: Level
    matched: int
    kept: Volume


class Share(NamedTuple):
    """What one policy gets. ``recorded_less``: events that hold less than it asks for; ``not_covered``: events of which
    API servers would record less than it asks for.
    """

    name: str
    sinks: tuple[str, ...]
    kept: Volume
    levels: dict[Level, Volume]
    rules: tuple[RuleShare, ...]
    recorded_less: int
    not_covered: int


class SinkShare(NamedTuple):
    """What one sink gets: an event that several policies send to it counts once, at the highest level."""

    name: str
    kept: Volume
    levels: dict[Level, Volume]


class Report(NamedTuple):
    """The answer. ``server``: what API servers write; ``needed``: as much of it as some policy asks for.

    ``namespaces``: those of the requests.
    """

    read: Volume
    malformed: int
    complaints: tuple[Malformed, ...]
    policies: tuple[Share, ...]
    sinks: tuple[SinkShare, ...]
    server: Share
    needed: Volume
    namespaces: frozenset[str]


class _Sizes:
    """Counters of events that fare alike."""

    __slots__ = ("events", "minimal", "request", "response", "total")

    def __init__(self) -> None:
        self.events = self.total = self.request = self.response = self.minimal = 0

    def at(self, level: Level) -> Volume:
        """Events and bytes, cut to this level. Bodies count as they are, before redaction."""
        match level:
            case Level.NONE:
                return Volume()
            case Level.MINIMAL:
                return Volume(self.events, self.minimal)
            case Level.METADATA:
                return Volume(self.events, self.total - self.request - self.response)
            case Level.REQUEST:
                return Volume(self.events, self.total - self.response)
            case _:
                return Volume(self.events, self.total)


class _Tallies(dict[tuple[str, str], _Sizes]):
    """Counters by stage and recorded level. ``minimal``: some policy gets the events at level Minimal."""

    __slots__ = ("minimal",)

    def __init__(self, *, minimal: bool) -> None:
        super().__init__()
        self.minimal = minimal


_REQUEST_KEY: Final = len(',"requestObject":')
_RESPONSE_KEY: Final = len(',"responseObject":')


class Replay:
    """Counts events. ``server`` is what API servers run; nobody gets more than that."""

    def __init__(self, sources: Sequence[Source], server: Policy) -> None:
        self._sources = sources
        self._policies = [*(source.policy for source in sources), server]
        self._evaluators = [Evaluator(policy) for policy in self._policies]
        # Requests lead to the counters that they share with all requests for which the same rules decide. The key of
        # those counters: per policy, the server's last, the index of the deciding rule.
        self._known: Memo[Request, _Tallies] = Memo(_REMEMBERED)
        self._choices: dict[tuple[int | None, ...], _Tallies] = {}
        self._namespaces: set[str] = set()
        self._read = Volume()
        self._malformed = 0
        self._complaints: list[Malformed] = []

    def add(self, event: Event, size: int) -> None:
        """Count one event of ``size`` bytes of JSON."""
        request = request_of(event)
        tallies = self._known.get(request)
        if tallies is None:
            tallies = self._decide(request)
        key = (event.stage, event.level)
        sizes = tallies.get(key)
        if sizes is None:
            sizes = tallies[key] = _Sizes()
        sizes.events += 1
        sizes.total += size
        if body := len(event.request_object):
            sizes.request += body + _REQUEST_KEY
        if body := len(event.response_object):
            sizes.response += body + _RESPONSE_KEY
        if tallies.minimal:
            sizes.minimal += _minimal_size(event)

    def complain(self, complaint: Malformed) -> None:
        """Count something that is no event."""
        self._malformed += 1
        if len(self._complaints) < _COMPLAINTS:
            self._complaints.append(complaint)

    def report(self) -> Report:
        """What has been counted so far."""
        tables = [_Table(policy) for policy in self._policies]
        server_table = tables.pop()
        sinks: dict[str, dict[Level, Volume]] = {}
        needed = read = Volume()
        for choice, tallies in self._choices.items():
            for (stage, recorded), sizes in tallies.items():
                read = read.plus(Volume(sizes.events, sizes.total))
                held = _level(recorded)
                covered = server_table.level(choice[-1], stage)
                server_table.count(choice[-1], stage, held, covered, sizes)
                most = Level.NONE
                reached: dict[str, Level] = {}
                for source, table, rule in zip(self._sources, tables, choice, strict=False):
                    level = table.count(rule, stage, held, covered, sizes)
                    most = max(most, level.server)
                    for sink in source.sinks:
                        reached[sink] = max(level, reached.get(sink, Level.NONE))
                needed = needed.plus(sizes.at(most))
                for sink, level in reached.items():
                    _add(sinks.setdefault(sink, {}), level, sizes.at(level))
        return Report(
            read=read,
            malformed=self._malformed,
            complaints=tuple(self._complaints),
            policies=tuple(
                table.share(source.name, source.sinks) for source, table in zip(self._sources, tables, strict=True)
            ),
            sinks=tuple(SinkShare(name, _sum(levels), levels) for name, levels in sorted(sinks.items())),
            server=server_table.share("", ()),
            needed=needed,
            namespaces=frozenset(self._namespaces),
        )

    def _decide(self, request: Request) -> _Tallies:
        decisions = [evaluator.decide(request) for evaluator in self._evaluators]
        choice = tuple([decision.rule for decision in decisions])
        if request.namespace and len(self._namespaces) < _REMEMBERED:
            self._namespaces.add(request.namespace)
        if choice not in self._choices:
            minimal = any(decision.level is Level.MINIMAL for decision in decisions)
            self._choices[choice] = _Tallies(minimal=minimal)
        return self._known.remember(request, self._choices[choice], request.length)


class _Table:
    """What one policy got, rule by rule; the last row is for requests that no rule matches."""

    def __init__(self, policy: Policy) -> None:
        self._rules = [
            *((rule.origin or f"rules[{index}]", rule.level, policy.omit_stages | rule.omit_stages)
              for index, rule in enumerate(policy.rules)),
            (None, Level.NONE, policy.omit_stages),
        ]  # fmt: skip
        self._kept = [Volume()] * len(self._rules)
        self._matched = [0] * len(self._rules)
        self._levels: dict[Level, Volume] = {}
        self._recorded_less = self._not_covered = 0

    def level(self, rule: int | None, stage: str) -> Level:
        """What the rule says of an event at this stage."""
        _, level, omitted = self._rules[-1 if rule is None else rule]
        return Level.NONE if stage in omitted else level

    def count(self, rule: int | None, stage: str, held: Level, covered: Level, sizes: _Sizes) -> Level:
        """Count events recorded at level ``held``, of which API servers record ``covered``; at which it gets them."""
        index = -1 if rule is None else rule
        level = self.level(rule, stage)
        self._recorded_less += sizes.events if level.server > held else 0
        self._not_covered += sizes.events if level.server > covered else 0
        self._matched[index] += sizes.events
        level = min(level, held, covered)
        volume = sizes.at(level)
        self._kept[index] = self._kept[index].plus(volume)
        _add(self._levels, level, volume)
        return level

    def share(self, name: str, sinks: tuple[str, ...]) -> Share:
        rows = zip(self._rules, self._matched, self._kept, strict=True)
        rules = tuple(RuleShare(origin, level, matched, kept) for (origin, level, _), matched, kept in rows)
        levels = dict(sorted(self._levels.items()))
        return Share(name, sinks, _sum(levels), levels, rules, self._recorded_less, self._not_covered)


def _add(levels: dict[Level, Volume], level: Level, volume: Volume) -> None:
    if volume.events:
        levels[level] = levels.get(level, Volume()).plus(volume)


def _sum(levels: dict[Level, Volume]) -> Volume:
    total = Volume()
    for volume in levels.values():
        total = total.plus(volume)
    return total


def _level(recorded: str) -> Level:
    """The level an event says it was recorded at; one that says none holds what it holds."""
    try:
        return Level.parse(recorded)
    except ValueError:
        return Level.REQUEST_RESPONSE


# --- reading ---------------------------------------------------------------------------------------------------------


class _Line(Event, frozen=True, gc=False, rename="camel"):
    """An event or, if it has items, a list of them: told apart without reading the line twice."""

    items: list[Raw] | UnsetType | None = UNSET


_line = msgspec.json.Decoder(_Line)
_GZIP: Final = b"\x1f\x8b"

Progress = Callable[[int], None]
"""Told how many bytes of the file have been read so far."""


def replay_file(name: str, replay: Replay, progress: Progress | None = None) -> None:
    """Add the events of a file: events or EventLists, one a line, or a single indented one; gzip or not.

    ``-`` is standard input. What is no event is counted and skipped. Raises CliError if the file cannot be read.
    """
    file = shown(name)
    number = 0
    try:
        with sys.stdin.buffer if name == STDIN else open_file(name) as raw:
            for number, line in enumerate(_lines(raw), start=1):
                _add_line(replay, file, number, line)
                if progress is not None and not number & 0x3FF:
                    progress(raw.tell())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        replay.complain(Malformed(file, number + 1, f"the gzip data is damaged: {error}"))
    except OSError as error:
        raise CliError(reason(error), file=file) from None


def _add_line(replay: Replay, file: str, number: int, line: bytes) -> None:
    if len(line) > LINE_LIMIT:
        replay.complain(Malformed(file, number, f"the line is longer than {LINE_LIMIT >> 20} MiB"))
        return
    if not line.strip():
        return
    try:
        try:
            event = _line.decode(line)
        except (RecursionError, ValueError):
            items = split(line)
        else:
            if event.items is UNSET:
                if not event.stage:
                    raise EventError("a JSON object, but no audit event: it has no stage")
                replay.add(event, len(line.rstrip()))
                return
            items = event.items or []
    except EventError as error:
        replay.complain(Malformed(file, number, str(error)))
        return
    for item in items:
        try:
            replay.add(decode(item), len(item))
        except EventError as error:
            replay.complain(Malformed(file, number, str(error)))


def _lines(raw: BinaryIO) -> Iterator[bytes]:
    """Lines of at most LINE_LIMIT bytes and one more; of longer ones only the beginning, which tells that they are."""
    with io.BufferedReader(_unpacked(raw), 1 << 20) as stream:
        first = stream.readline(LINE_LIMIT + 1)
        if first.strip() == b"{":
            # Indented JSON: one document. If it is none, its lines are what they are.
            first += stream.read(LINE_LIMIT - len(first))
            if not _is_document(first):
                yield from io.BytesIO(first)
                first = b""
        if first:
            yield _whole(first, stream)
        while line := stream.readline(LINE_LIMIT + 1):
            yield _whole(line, stream)


def _whole(line: bytes, stream: BinaryIO) -> bytes:
    if len(line) > LINE_LIMIT:
        while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
    return line


def _is_document(data: bytes) -> bool:
    try:
        split(data)
    except EventError:
        return False
    return True


def _unpacked(raw: BinaryIO) -> Any:
    """The stream, decompressed if it is gzip, whatever its name: rotated logs are renamed as people like."""
    stream: Any = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
    return _Unzipped(stream) if stream.peek(2)[:2] == _GZIP else stream


class _Unzipped(io.RawIOBase):
    """What a gzip file holds, as far as it is sound: damage is an error only behind that."""

    def __init__(self, stream: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Not more than comes in one go: read() would lose what it has when the rest is damaged.
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


_MINIMAL_FRAME: Final = len(
    '{"level":"Minimal","auditID":"","stage":"","verb":"","user":{"username":""},"responseStatus":{"code":200},'
    '"stageTimestamp":""}'
)
_REFERENCE: Final = attrgetter(*(field.name for field in msgspec.structs.fields(ObjectRef)))
_KEY: Final = 14  # '"resource":"",' and its like, on average


def _minimal_size(event: Event) -> int:
    """Bytes of the event at level Minimal, give or take a few: this is asked of every event."""
    size = _MINIMAL_FRAME + len(event.audit_id) + len(event.stage) + len(event.verb) + len(event.user.username)
    size += len(event.stage_timestamp)
    if event.object_ref is None:
        return size + len(event.request_uri) + len(',"requestURI":""')
    values = _REFERENCE(event.object_ref)
    return size + len(',"objectRef":{}') + len("".join(values)) + _KEY * (len(values) - values.count(""))


# --- answering -------------------------------------------------------------------------------------------------------


def as_object(report: Report) -> dict[str, Any]:
    """The report for `-o json`."""
    return {
        "read": _object(report.read),
        "malformed": {"lines": report.malformed, "first": [complaint._asdict() for complaint in report.complaints]},
        "policies": [_share(share) | {"policy": share.name, "sinks": list(share.sinks)} for share in report.policies],
        "sinks": [{"sink": sink.name, **_object(sink.kept), "levels": _levels(sink.levels)} for sink in report.sinks],
        "apiServers": _share(report.server)
        | {
            "needed": _object(report.needed),
            "excess": _object(
                Volume(report.server.kept.events - report.needed.events, report.server.kept.size - report.needed.size)
            ),
        },
    }


def _share(share: Share) -> dict[str, Any]:
    return {
        **_object(share.kept),
        "levels": _levels(share.levels),
        "recordedLess": share.recorded_less,
        "notCovered": share.not_covered,
        "rules": [
            {"rule": rule.origin, "level": str(rule.level), **_object(rule.kept), "matched": rule.matched}
            for rule in share.rules
        ],
    }


def _levels(levels: Mapping[Level, Volume]) -> dict[str, Any]:
    return {str(level): _object(volume) for level, volume in sorted(levels.items())}


def _object(volume: Volume) -> dict[str, int]:
    return {"events": volume.events, "bytes": volume.size}


def show(report: Report, setup: Setup, stream: TextIO) -> None:
    """The report for people: who gets how much, rule by rule, and what API servers write."""
    out = console(stream)
    _show_read(report, out)
    for share in report.policies:
        to = f" → {', '.join(share.sinks)}" if share.sinks else ""
        table = _table(f"{share.name}{to}", "rule", "level", "matched", "events", "bytes", "of the bytes")
        for rule in share.rules:
            if rule.matched:
                name = "no rule matches" if rule.origin is None else rule.origin
                table.add_row(printable(name), str(rule.level), f"{rule.matched:,}", *_cells(rule.kept, report.read))
        _add_total(table, share, report.read)
        out.print(table)
        _warn(out, share.recorded_less, "were recorded at a lower level than it asks for: it would get more")
        _warn(out, share.not_covered, "are recorded by API servers at a lower level than it asks for")
        out.print()
    _show_sinks(report, out)
    _show_server(report, setup, out)


def show_summary(report: Report, setup: Setup, stream: TextIO) -> None:
    """The report in short: a line for every policy and sink."""
    out = console(stream)
    _show_read(report, out)
    table = _table("Policies", "policy", "events", "bytes", "of the bytes", "rule")
    table.columns[-1].header = "most by"
    for share in report.policies:
        most = max(share.rules, key=lambda rule: rule.kept.size)
        by = f"{most.origin} ({most.level})" if most.kept.size else ""
        table.add_row(printable(share.name), *_cells(share.kept, report.read), printable(by))
    out.print(table)
    _show_sinks(report, out)
    _show_server(report, setup, out)


def _show_read(report: Report, out: "Console") -> None:
    out.print(f"Read {counted(report.read.events, 'event')}, {bytes_text(report.read.size)}.")
    if report.malformed:
        out.print(f"{counted(report.malformed, 'line')} could not be read:", style="yellow")
        for complaint in report.complaints:
            out.print(f"  {printable(complaint.file)}:{complaint.line}: {printable(complaint.message)}")
    out.print()


def _show_sinks(report: Report, out: "Console") -> None:
    if report.sinks:
        title = "Sinks: an event that several policies send counts once"
        table = _table(title, "sink", "events", "bytes", "of the bytes")
        for sink in report.sinks:
            table.add_row(printable(sink.name), *_cells(sink.kept, report.read))
        out.print(table)
        out.print()


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("rule", "level", "sink", "policy") else "right")
    return table


def _cells(volume: Volume, whole: Volume) -> tuple[str, str, str]:
    return f"{volume.events:,}", bytes_text(volume.size), _percent(volume.size, whole.size)


def _warn(out: "Console", events: int, what: str) -> None:
    if events:
        out.print(f"{counted(events, 'event')} {what}.", style="yellow")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _add_total(table: "Table", share: Share, whole: Volume) -> None:
    if table.row_count:
        table.add_section()
    for level, volume in share.levels.items():
        table.add_row("", str(level), "", *_cells(volume, whole))
    matched = sum(rule.matched for rule in share.rules)
    table.add_row("together", "", f"{matched:,}", *_cells(share.kept, whole), style="bold")


def _show_server(report: Report, setup: Setup, out: "Console") -> None:
    """What the union adds: the price of one policy for all."""
    kept, needed = report.server.kept, report.needed
    table = _table("API servers", "policy", "events", "bytes", "of the bytes")
    table.add_row("what they write", *_cells(kept, report.read))
    table.add_row("what policies ask for", *_cells(needed, report.read))
    excess = Volume(kept.events - needed.events, kept.size - needed.size)
    table.add_row("what the union adds", *_cells(excess, report.read))
    out.print(table)
    if excess.size and setup.plan is not None:
        out.print(
            "The union adds what cannot be told apart before: a namespaceSelector counts as every namespace, so that a "
            "label restarts no API server, and tenants as spec.tenants.level of the AuditBackend.\n"
            "Nobody gets it: receivers decide each policy exactly."
        )
    _warn(out, report.server.recorded_less, "were recorded at a lower level than API servers would now write them at")
    unknown = report.namespaces - setup.namespaces
    if unknown and setup.plan is not None:
        some = ", ".join(sorted(map(printable, unknown))[:5])
        out.print(
            f"No labels are known of {counted(len(unknown), 'namespace')} ({some}{', …' if len(unknown) > 5 else ''}): "
            "no namespaceSelector selects them. Give their Namespace manifests with -f."
        )


def replay_files(names: Sequence[str], replay: Replay, errors: TextIO) -> None:
    """Add the events of all files, with a progress bar on a terminal. Raises CliError."""
    if not errors.isatty():
        for name in names:
            replay_file(name, replay)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(errors), transient=True, refresh_per_second=4) as bar:
        for name in names:
            task = bar.add_task(printable(shown(name)), total=_size(name))
            replay_file(name, replay, lambda done, task=task: bar.update(task, completed=done))  # type: ignore[misc]


def _size(name: str) -> int | None:
    """Bytes to be read, None where nobody knows."""
    path = Path(name)
    return path.stat().st_size if name != STDIN and path.is_file() else None
