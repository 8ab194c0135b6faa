"""`audit-operator lint`: one verdict and the findings for every file, whatever kind of policy is in it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TextIO

import msgspec

from audit_operator.cli.errors import FINDINGS, OK, TROUBLE, CliError
from audit_operator.cli.inputs import (
    Document,
    Text,
    documents,
    files,
    is_namespace,
    is_ours,
    is_policy,
    read_bytes,
    shown,
    steps,
)
from audit_operator.cli.output import counted, printable, styled
from audit_operator.policy.findings import Finding, Place, Severity
from audit_operator.policy.lint import lint, lint_text
from audit_operator.policy.load import NEWEST, Version

FAIL_ON: Final = {"error": 2, "warning": 1, "info": 0, "never": 3}
"""From which severity on findings make the exit code 1. A file that is not accepted always does."""

_RANK: Final = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}


class Verdict(NamedTuple):
    """What is to be said of one file. ``accepted``: an API server takes it. ``error``: it could not be read at all."""

    file: str
    accepted: bool
    findings: tuple[Finding, ...]
    error: CliError | None = None


def verdicts(arguments: Sequence[str], server: Version | None) -> list[Verdict]:
    """The verdict on every file that ``arguments`` name, on those that cannot be read too.

    ``server`` None: not known. Raises CliError if there is nothing to judge.
    """
    found: list[Verdict] = []
    for name, named in files(arguments):
        try:
            text = Text(shown(name), read_bytes(name), named)
        except CliError as error:
            refusal = Place().finding("rejected", error.detail, "")
            found.append(Verdict(error.file, accepted=False, findings=(refusal,), error=error))
            continue
        verdict = _verdict(text, server)
        if verdict is not None:
            found.append(verdict)
    if not found:
        raise CliError(
            "nothing to lint: no AuditPolicy, AuditSink, AuditBackend, and no audit.k8s.io/v1 Policy",
            file=", ".join(arguments),
        )
    return found


def exit_code(found: Sequence[Verdict], fail_on: str) -> int:
    """2 if a file could not be read, 1 if one is not accepted or has a finding that weighs enough."""
    if any(verdict.error for verdict in found):
        return TROUBLE
    bad = any(not verdict.accepted for verdict in found)
    heavy = any(_RANK[finding.severity] >= FAIL_ON[fail_on] for verdict in found for finding in verdict.findings)
    return FINDINGS if bad or heavy else OK


def as_objects(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts for `-o json`."""
    return [
        {
            "file": verdict.file,
            "accepted": verdict.accepted,
            "findings": [msgspec.to_builtins(finding) for finding in verdict.findings],
        }
        for verdict in found
    ]


def _verdict(text: Text, server: Version | None) -> Verdict | None:
    """None for a file that only lies in a folder with others, and is about something else."""
    try:
        found = documents(text)
    except CliError:
        found = []
    ours = [document for document in found if is_ours(document)]
    if not ours and not text.named and found and not is_policy(found[0]):
        return None
    if not ours and any(map(is_namespace, found)):
        return Verdict(text.file, True, ())
    findings = [finding for document in ours for finding in _resource_findings(document, server)]
    accepted = not any(finding.name == "rejected" for finding in findings)
    if not ours or is_policy(found[0]):
        loaded, more = lint_text(text.data, server=server)
        findings += more
        accepted = accepted and loaded.accepted
    return Verdict(text.file, accepted, tuple(sorted(findings, key=lambda finding: (finding.line, finding.column))))


def _resource_findings(document: Document, server: Version | None) -> Iterator[Finding]:
    """Why a resource is not valid, and what will surprise the author of an AuditPolicy."""
    from audit_operator.policy.effective import effective
    from audit_operator.resources.auditpolicy import AuditPolicy
    from audit_operator.resources.load import ResourceError, load_resource

    for path, node in document.node.walk():
        for earlier in node.overridden:
            if not earlier.merged:
                yield Place(document.node, (*path, earlier.key)).finding(
                    "duplicate-field",
                    f"{earlier.key} stands twice; the first value, of line {earlier.line}, is lost",
                    "keep one of the two",
                )
    try:
        resource = load_resource(document.node.value)
    except ResourceError as error:
        for problem in error.problems:
            place = Place(document.node, steps(problem.path))
            yield place.finding("rejected", " ".join(filter(None, (problem.value, problem.message))), problem.way_out)
        return
    if isinstance(resource, AuditPolicy):
        # Unconfined, so that rules keep their numbers: what a tenant's policy may not see, render says.
        meaning = effective(resource, root_namespace=resource.metadata.namespace)
        yield from lint(
            meaning.policy,
            document=document.node,
            path=("spec",),
            written=len(resource.spec.rules),
            whole=False,
            redacted=True,
            modes=(),  # the AuditBackend's business
            server=server or NEWEST,
        )


def show(found: Sequence[Verdict], stream: TextIO) -> None:
    """The verdicts for people: a line per finding that editors can jump to, and the way out below it."""
    for verdict in found:
        for finding in () if verdict.error else verdict.findings:
            where = f"{verdict.file}:{finding.line}:{finding.column}" if finding.line else verdict.file
            weight = styled(str(finding.severity), stream, _COLOURS[finding.severity], bold=True)
            path = f"{finding.path}: " if finding.path else ""
            stream.write(f"{printable(where)}: {weight} {finding.code} {printable(path + finding.message)}\n")
            if finding.fix:
                stream.write(f"    {printable(finding.fix)}\n")
    stream.write(f"{_summary(found)}\n")


_COLOURS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}


def _summary(found: Sequence[Verdict]) -> str:
    counts = Counter(finding.severity for verdict in found for finding in verdict.findings)
    refused = sum(not verdict.accepted for verdict in found)
    parts = [counted(counts[severity], str(severity)) for severity in (Severity.ERROR, Severity.WARNING)]
    parts.append(f"{counts[Severity.INFO]} info")
    last = f"; {refused} not accepted" if refused else ""
    return f"{counted(len(found), 'file')}: {', '.join(parts)}{last}"
