"""`audit-operator render`: everything that follows from the resources, into a folder or onto standard output."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from audit_operator.cli.errors import CliError
from audit_operator.cli.importing import audit_policy, name_of
from audit_operator.cli.inputs import Document, PolicyFile, read_inputs
from audit_operator.cli.output import counted, printable, styled
from audit_operator.cli.policies import Setting, load_plan, policy_in
from audit_operator.policy.model import Policy
from audit_operator.policy.nodes import node_of

if TYPE_CHECKING:
    from audit_operator.render.plan import Plan


def load(arguments: Sequence[str], setting: Setting) -> "tuple[Plan, tuple[str, ...], tuple[str, ...]]":
    """The plan, a sentence on every resource that does not count, and notices. Raises CliError.

    An API server's policy file counts as an AuditPolicy of the root namespace without sinks.
    """
    inputs = read_inputs(arguments, setting.server)
    imported = [_imported(file, setting) for file in inputs.policy_files]
    plan, problems = load_plan(inputs._replace(resources=(*inputs.resources, *imported)), setting)
    blocked = tuple(f"nothing to install: {problem}" for problem in plan.blocked)
    return plan, (*problems, *blocked), (*inputs.notices, *plan.notices)


def policy_in_force(name: str, setting: Setting) -> Policy | None:
    """The policy of the file that API servers run now, None if there is no name. Raises CliError."""
    if not name:
        return None
    inputs = read_inputs([name], setting.server)
    if len(inputs.policy_files) != 1 or inputs.resources:
        raise CliError(
            "is not one API server's policy file",
            file=name,
            field="--policy-in-force",
            way_out="give what --audit-policy-file of the API servers names, such as apiserver/policy.yaml of a "
            "rendering before",
        )
    return policy_in(inputs.policy_files[0])


def as_object(plan: "Plan", problems: Sequence[str], notices: Sequence[str]) -> dict[str, Any]:
    """All of it for `-o json`: texts by path, statuses as `kubectl` shows them."""
    return {
        "files": plan.files(),
        "statuses": [status.document() for status in plan.statuses],
        "problems": list(problems),
        "notices": list(notices),
    }


def show_files(plan: "Plan", stream: TextIO) -> None:
    """Every file below a line with its path, as `tail` shows several."""
    stream.writelines(
        f"{styled(f'==> {path} <==', stream, 'cyan', bold=True)}\n{text}\n" for path, text in plan.files().items()
    )


def summary(plan: "Plan", folder: str, removed: Sequence[str]) -> str:
    """What has been written where, and what to read first."""
    gone = f", {counted(len(removed), 'old file')} removed" if removed else ""
    return printable(
        f"{counted(len(plan.files()), 'file')} in {folder}{gone}; start with {folder.rstrip('/')}/README.md"
    )


def _imported(file: PolicyFile, setting: Setting) -> Document:
    document = audit_policy(file, name=name_of(file.file), namespace=setting.root_namespace)
    return Document(file.file, node_of(document))
