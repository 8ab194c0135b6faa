"""`audit-operator test`: requests and what a policy must say of them, as YAML, for a repository's own CI."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple, TextIO
from xml.etree import ElementTree as ET

import msgspec
from msgspec import UNSET, UnsetType

from audit_operator.cli.errors import CliError
from audit_operator.cli.inputs import STDIN_NAME, Document, documents, read_texts, text_at
from audit_operator.cli.output import counted, printable, styled
from audit_operator.cli.policies import Setting, Setup, load_setup
from audit_operator.cli.requests import as_text, request_of
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.explain import Source
from audit_operator.policy.model import STAGES, Level, Policy, Request, Stage
from audit_operator.policy.nodes import Node, path_text


class Expectation(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a test demands; what it leaves out may be anything.

    ``rule``: the deciding one as ``explain`` names it (``spec.rules[3]``, ``preset CIS rules[0]``, ``rules[3]`` of a
    policy file), or its number; null for none. ``sinks``: at which level the event reaches each of them, whichever
    policies send it there.
    """

    level: str | UnsetType = UNSET
    omit_stages: tuple[Stage, ...] | UnsetType = UNSET
    omit_managed_fields: bool | UnsetType = UNSET
    rule: str | int | UnsetType | None = UNSET
    sinks: dict[str, str] | UnsetType = UNSET


class Test(NamedTuple):
    """One test and where it stands. ``policy`` is the one that is asked, empty for the only one or all together."""

    name: str
    file: str
    line: int
    policy: str
    request: Request
    expect: Expectation


class Failure(NamedTuple):
    """A value that was expected, and the one that came."""

    what: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        return f"{self.what}: expected {_text(self.expected)}, got {_text(self.got)}"


class Outcome(NamedTuple):
    """How a test went. ``asked``: the policy; ``rule``: which of its rules decided, None for none."""

    test: Test
    asked: str
    rule: str | None
    failures: tuple[Failure, ...]


class TestFile(NamedTuple):
    """The tests of one file, and the files and folders with the policies that it names."""

    file: str
    policies: tuple[str, ...]
    tests: tuple[Test, ...]


API_SERVERS = "the API servers' policy"
"""Who is asked when no policy is named and there are several."""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_tests(arguments: Sequence[str]) -> list[TestFile]:
    """The tests in files and folders, ``-`` for standard input. Raises CliError."""
    found: list[TestFile] = []
    for text in read_texts(arguments):
        for document in documents(text):
            if document.node.find(("tests",)) is not None:
                _known_fields(document, document.node, (), ("policies", "policy", "tests"))
                sources = tuple(_beside(text.file, source) for source in _strings(document, "policies"))
                found.append(TestFile(text.file, sources, tuple(_tests(document))))
            elif text.named:
                raise CliError("holds no tests; write them below `tests:`", file=text.file, line=document.line)
    if not any(file.tests for file in found):
        raise CliError("holds no tests", file=", ".join(arguments), way_out="examples/tests shows how they are written")
    return found


def _tests(document: Document) -> Iterator[Test]:
    policy = text_at(document.node, "policy")
    tests = document.node.find(("tests",))
    items = tests.content if tests is not None else None
    if not isinstance(items, list):
        raise CliError("must be a list", file=document.file, line=document.line_of("tests"), field="tests")
    for index, item in enumerate(items):
        path = ("tests", index)
        _known_fields(document, item, path, ("name", "policy", "request", "expect"))
        request = item.find(("request",))
        if request is None:
            raise CliError(
                "needs a request",
                file=document.file,
                line=item.line,
                field=path_text(path),
                way_out="such as {verb: get, resource: pods}",
            )
        found = request_of(request.value, file=document.file, line=request.line, field=path_text((*path, "request")))
        yield Test(
            name=text_at(item, "name") or as_text(found),
            file=document.file,
            line=item.line,
            policy=text_at(item, "policy") or policy,
            request=found,
            expect=_expectation(document, item, path),
        )


def _expectation(document: Document, item: Node, path: tuple[str | int, ...]) -> Expectation:
    node = item.find(("expect",))
    where = path_text((*path, "expect"))
    if node is None or not node.content:
        raise CliError(
            "expects nothing", file=document.file, line=item.line, field=where, way_out="for example {level: Metadata}"
        )
    names = tuple(field.encode_name for field in msgspec.structs.fields(Expectation))
    _known_fields(document, node, (*path, "expect"), names)
    try:
        found = msgspec.convert(node.value, Expectation)
        levels = [] if found.level is UNSET else [found.level]
        for level in [*levels, *({} if found.sinks is UNSET else found.sinks).values()]:
            Level.parse(level)
    except ValueError as error:
        raise CliError(str(error), file=document.file, line=node.line, field=where) from None
    return found


def _known_fields(document: Document, node: Node, path: tuple[str | int, ...], known: Sequence[str]) -> None:
    content = node.content
    if not isinstance(content, dict):
        raise CliError("must be an object", file=document.file, line=node.line, field=path_text(path))
    for key, field in content.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise CliError(
                "is no field",
                file=document.file,
                line=field.line,
                field=path_text((*path, key)),
                way_out=f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}",
            )


def _strings(document: Document, key: str) -> list[str]:
    node = document.node.find((key,))
    value = [] if node is None else node.value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CliError("must be a list of paths", file=document.file, line=document.line_of(key), field=key)
    return value


def _beside(file: str, path: str) -> str:
    """A path in a test file starts at the file."""
    return path if file == STDIN_NAME else str(PurePath(file).parent / path)


# --- running ---------------------------------------------------------------------------------------------------------


def run_files(
    files: Sequence[TestFile], policies: Sequence[str], setting: Setting
) -> tuple[list[Outcome], tuple[str, ...]]:
    """The outcome of every test, and what a person should know of the policies.

    ``policies``: what ``-f`` gives; empty: each file's own. Raises CliError.
    """
    setups: dict[tuple[str, ...], Setup] = {}
    outcomes: list[Outcome] = []
    for file in files:
        arguments = tuple(policies) or file.policies
        if not arguments:
            raise CliError("names no policies", file=file.file, way_out="give them with -f, or as `policies: [path]`")
        if arguments not in setups:
            setups[arguments] = load_setup(arguments, setting)
        outcomes += run_tests(file.tests, setups[arguments])
    said = [message for setup in setups.values() for message in (*setup.problems, *setup.notices)]
    return outcomes, tuple(dict.fromkeys(said))


def run_tests(tests: Sequence[Test], setup: Setup) -> list[Outcome]:
    """Every test's outcome. Raises CliError for a test of a policy that is not there."""
    asked: dict[str, tuple[str, Evaluator, Policy]] = {}
    outcomes = []
    for test in tests:
        if test.policy not in asked:
            name, policy = _asked(test, setup)
            asked[test.policy] = (name, Evaluator(policy), policy)
        outcomes.append(_outcome(test, setup, *asked[test.policy]))
    return outcomes


def _asked(test: Test, setup: Setup) -> tuple[str, Policy]:
    if not test.policy:
        if len(setup.sources) == 1:
            return setup.sources[0].name, setup.sources[0].policy
        return API_SERVERS, setup.server
    found = [source for source in setup.sources if _is_called(source, test.policy)]
    if len(found) != 1:
        what = "fits several policies" if found else "is none of the policies"
        raise CliError(
            what,
            file=test.file,
            line=test.line,
            field="policy",
            value=repr(test.policy),
            way_out=f"there are {', '.join(source.name for source in setup.sources)}",
        )
    return found[0].name, found[0].policy


def _is_called(source: Source, name: str) -> bool:
    """By its whole name, or by what stands behind a slash in it."""
    return source.name == name or source.name.endswith(f"/{name}")


def _outcome(test: Test, setup: Setup, asked: str, evaluator: Evaluator, policy: Policy) -> Outcome:
    decision = evaluator.decide(test.request)
    rule = None if decision.rule is None else policy.rules[decision.rule].origin or f"rules[{decision.rule}]"
    expect = test.expect
    got: list[tuple[str, Any, Any]] = [
        ("level", expect.level, str(decision.level)),
        ("omitStages", _stages(expect.omit_stages), _stages(decision.omit_stages)),
        ("omitManagedFields", expect.omit_managed_fields, decision.omit_managed_fields),
        ("rule", expect.rule, decision.rule if isinstance(expect.rule, int) else rule),
    ]
    if expect.sinks is not UNSET:
        reached = setup.reached(test.request)
        for sink, level in expect.sinks.items():
            got.append((f"sinks.{sink}", level, str(_level_at(sink, reached, test))))
    failures = (Failure(what, wanted, came) for what, wanted, came in got if wanted is not UNSET and wanted != came)
    return Outcome(test, asked, rule, tuple(failures))


def _stages(stages: Any) -> Any:
    return UNSET if stages is UNSET else [str(stage) for stage in STAGES if stage in stages]


def _level_at(sink: str, reached: dict[str, Level], test: Test) -> Level:
    found = [level for name, level in reached.items() if name == sink or name.endswith(f"/{sink}")]
    if len(found) != 1:
        what = "fits several sinks" if found else "is no sink of these policies"
        raise CliError(
            what,
            file=test.file,
            line=test.line,
            field="expect.sinks",
            value=repr(sink),
            way_out=f"there are {', '.join(reached) or 'none'}",
        )
    return found[0]


# --- answering -------------------------------------------------------------------------------------------------------


def as_objects(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The outcomes for `-o json`."""
    return [
        {
            "name": outcome.test.name,
            "file": outcome.test.file,
            "line": outcome.test.line,
            "policy": outcome.asked,
            "rule": outcome.rule,
            "passed": not outcome.failures,
            "failures": [failure._asdict() for failure in outcome.failures],
        }
        for outcome in outcomes
    ]


def show(outcomes: Sequence[Outcome], stream: TextIO) -> None:
    """A line per test; of a failed one the request, what was expected, what came, and which rule decided."""
    for outcome in outcomes:
        test = outcome.test
        word = styled("FAIL", stream, "red", bold=True) if outcome.failures else styled("ok", stream, "green") + "  "
        stream.write(f"{word} {printable(test.name)}\n")
        if outcome.failures:
            stream.write(f"     {printable(test.file)}:{test.line}: {printable(as_text(test.request))}\n")
            stream.writelines(f"     {printable(str(failure))}\n" for failure in outcome.failures)
            stream.write(f"     {printable(_decided_by(outcome))}\n")
    failed = sum(bool(outcome.failures) for outcome in outcomes)
    stream.write(f"{counted(len(outcomes), 'test')}, {failed} failed\n")


def junit(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in the XML that CI systems read; a suite per file."""
    root = ET.Element("testsuites")
    suites: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        suites.setdefault(outcome.test.file, []).append(outcome)
    for file, members in suites.items():
        failed = sum(bool(outcome.failures) for outcome in members)
        suite = ET.SubElement(
            root, "testsuite", name=printable(file), tests=str(len(members)), failures=str(failed), errors="0"
        )
        for outcome in members:
            case = ET.SubElement(
                suite,
                "testcase",
                classname=printable(outcome.asked),
                name=printable(outcome.test.name),
                file=printable(file),
                line=str(outcome.test.line),
            )
            if outcome.failures:
                message = "; ".join(map(str, outcome.failures))
                failure = ET.SubElement(case, "failure", message=printable(message))
                failure.text = printable(as_text(outcome.test.request)) + "\n" + printable(_decided_by(outcome))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _decided_by(outcome: Outcome) -> str:
    return f"{outcome.asked}: {'no rule matches' if outcome.rule is None else f'decided by {outcome.rule}'}"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return (
        f"[{', '.join(value)}]"
        if isinstance(value, list)
        else str(value).lower()
        if value in (True, False)
        else str(value)
    )
