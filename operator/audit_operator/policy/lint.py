"""What will surprise the author of a policy: findings, each with a place, what happens, and the way out.

:func:`lint` judges the rules of any policy; :func:`lint_text` a policy file with all that belongs to it.
"""

from collections.abc import Collection

from audit_operator.policy.findings import Finding, Place, Severity
from audit_operator.policy.kinds import BUILT_IN, Kinds, Version
from audit_operator.policy.lint_file import file_findings
from audit_operator.policy.lint_rules import (
    Rules,
    body_findings,
    cis_findings,
    incomplete,
    order_findings,
    stage_findings,
    subresource_findings,
)
from audit_operator.policy.lint_values import value_findings
from audit_operator.policy.load import NEWEST, Loaded, load_policy
from audit_operator.policy.model import Policy
from audit_operator.policy.nodes import Node, Path
from audit_operator.policy.witness import comparable

__all__ = ["Finding", "Severity", "body_lint", "lint", "lint_loaded", "lint_text"]


def lint(
    policy: Policy,
    *,
    document: Node | None = None,
    path: Path = (),
    written: int | None = None,
    whole: bool = True,
    redacted: bool = False,
    kinds: Kinds = BUILT_IN,
    server: Version = NEWEST,
    modes: Collection[str] | None = None,
) -> list[Finding]:
    """Findings on a policy, in the order of its text.

    Args:
        policy: what to judge.
        document: the text it came from, for lines; ``path`` says where in it the policy stands, such as ``("spec",)``.
        written: how many of the rules are the author's; the rest, a preset's, decide too but are not judged.
        whole: the policy is all that is recorded, as a policy file is. An AuditPolicy is one of many: what it leaves
            out others may record, so nothing is said of that.
        redacted: bodies are redacted before they are written, as an AuditPolicy's are.
        kinds: the resources that exist; by default those of any cluster.
        server: version of the API servers.
        modes: of the API servers' audit backends (batch, blocking, blocking-strict), None if that is not known.
    """
    place = Place(document, path)
    count = len(policy.rules) if written is None else written
    findings = [
        finding
        for index, rule in enumerate(policy.rules[:count])
        for finding in value_findings(rule, place.at("rules", index), kinds, server)
    ]
    if comparable(policy.rules):
        rules = Rules(policy)
        findings += order_findings(rules, place, count, whole=whole)
        findings += subresource_findings(rules, place, count)
        if not redacted:
            findings += body_findings(rules, place, count)
        if whole and not any(finding.name == "records-nothing" for finding in findings):
            findings += cis_findings(rules, place)
        compared = not rules.given_up
    else:
        compared = False
    if not compared:
        findings.append(incomplete(len(policy.rules), place))
    findings += stage_findings(policy, place, count, modes)
    return _in_order(findings)


def body_lint(policy: Policy) -> list[Finding]:
    """Of the findings that `lint` has only those on bodies that must not be in a log."""
    if not comparable(policy.rules):
        return []
    return list(body_findings(Rules(policy), Place(None, ()), len(policy.rules)))


def lint_text(
    text: str | bytes,
    *,
    server: Version | None = None,
    kinds: Kinds = BUILT_IN,
    modes: Collection[str] | None = None,
) -> tuple[Loaded, list[Finding]]:
    """The verdict on a policy file and the findings on it. ``server`` None: not known, judged as the newest."""
    loaded = load_policy(text, server=server or NEWEST)
    return loaded, lint_loaded(loaded, server=server, kinds=kinds, modes=modes)


def lint_loaded(
    loaded: Loaded,
    *,
    server: Version | None = None,
    kinds: Kinds = BUILT_IN,
    modes: Collection[str] | None = None,
) -> list[Finding]:
    """Findings on a policy file that is loaded already, by an API server of version ``server``."""
    findings = list(file_findings(loaded, version_known=server is not None))
    if loaded.policy is not None:
        findings += lint(loaded.policy, document=loaded.document, kinds=kinds, server=server or NEWEST, modes=modes)
    return _in_order(findings)


_WEIGHT = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


def _in_order(findings: list[Finding]) -> list[Finding]:
    """By line, then severity; without lines in the order in which they were found."""
    return sorted(findings, key=lambda finding: (finding.line, finding.column, _WEIGHT[finding.severity], finding.code))
