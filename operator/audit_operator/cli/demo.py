"""`audit-operator demo`: what it is all about, on the examples of a checkout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from audit_operator.cli import explain, replay
from audit_operator.cli.errors import CliError
from audit_operator.cli.output import console, counted, print_json, styled
from audit_operator.cli.policies import Setting, load_setup
from audit_operator.cli.requests import as_object
from audit_operator.policy.model import Request

if TYPE_CHECKING:
    from rich.tree import Tree

_SET: Final = ("namespaces.yaml", "platform", "tenants")
_TRAFFIC: Final = "traffic/sample.jsonl.gz"

_REQUEST: Final = Request(
    user="alice",
    groups=("developers", "system:authenticated"),
    verb="patch",
    namespace="team-a",
    api_group="apps",
    resource="deployments",
    name="web",
)
"""It reaches three sinks at three levels, and what is redacted of it shows."""

_GUIDE: Final = {
    "README.md": "what to do with all of this, step by step: read it first",
    "apiserver": "for the API servers: the one policy they run, the way to the receiver, their flags",
    "kubeadm": "the same as kubeadm takes it",
    "kind": "the same for a cluster on your laptop",
    "manifests": "the receiver: kubectl apply -f manifests/",
    "receiver": "what the receiver does with every event: each policy exactly, per sink",
    "status": "what kubectl would show of every resource: in force, or why not",
    "certificates.sh": "makes the certificates between API servers and receiver",
    "credentials.sh": "copies the Secrets that sinks refer to, to where the receiver reads them",
}


def demo(folder: str, as_json: bool, stream: TextIO) -> None:
    """Render, replay and explain the examples in ``folder``; empty: those of this checkout. Raises CliError."""
    examples = _examples(folder)
    setup = load_setup([str(examples / name) for name in _SET], Setting())
    counters = replay.Replay(setup.sources, setup.server)
    replay.replay_file(str(examples / _TRAFFIC), counters)
    explanation = explain.explanation(_REQUEST, setup)
    files = setup.plan.files() if setup.plan is not None else {}
    if as_json:
        print_json(
            {
                "files": list(files),
                "problems": list(setup.problems),
                "replay": replay.as_object(counters.report()),
                "explain": {"request": as_object(_REQUEST), **explain.as_object(explanation)},
            }
        )
        return
    options = " ".join(f"-f {examples / name}" for name in _SET)
    out = console(stream)

    _title(stream, f"1. Resources: {examples}")
    out.print(
        f"{counted(len(setup.sources), 'AuditPolicy', 'AuditPolicies')} of a platform team and two tenants say what "
        "must be audited, AuditSinks where it goes, the AuditBackend how API servers emit it.\n"
    )
    for source in setup.sources:
        out.print(f"  {source.name} ({counted(len(source.policy.rules), 'rule')}) → {', '.join(source.sinks)}")
    for problem in setup.problems:
        out.print(f"  ! {problem}", style="yellow")

    _title(stream, "2. What follows from them", f"audit-operator render {options} -o out")
    out.print(_tree(files))
    out.print(
        f"\nAPI servers run one policy, the union: {counted(len(setup.server.rules), 'rule')} that record at least "
        "what every policy needs. The receiver then gives each sink exactly its own."
    )

    _title(
        stream,
        "3. Who gets what of recorded traffic",
        f"audit-operator replay {options} --events {examples / _TRAFFIC}",
    )
    replay.show_summary(counters.report(), setup, stream)

    asked = "--user alice --group developers --verb patch --resource deployments -n team-a --name web"
    _title(stream, "4. What happens to one request", f"audit-operator explain {options} {asked}")
    explain.show(explanation, setup, stream)

    _title(stream, "5. Your own policy")
    for command, what in (
        ("lint POLICY.YAML", "what will surprise you in the file that your API servers run"),
        ("import POLICY.YAML", "make an AuditPolicy of it"),
        ("diff A.YAML B.YAML", "which requests are recorded differently, each with a proof"),
        ("test -f POLICY.YAML TESTS.YAML", "hold it to what it must record, in CI"),
    ):
        out.print(f"  audit-operator {command:32} {what}")


def _examples(folder: str) -> Path:
    """The folder, the one below the current folder, or the checkout's, whichever is there first."""
    checkout = Path(__file__).parents[3] / "examples"
    candidates = [Path(folder)] if folder else [Path("examples"), checkout]
    for candidate in candidates:
        if (candidate / _TRAFFIC).is_file():
            return candidate
    raise CliError(
        f"holds no {_TRAFFIC}",
        file=str(candidates[0]),
        way_out="run it in a checkout of the project, or name its examples",
    )


def _title(stream: TextIO, title: str, command: str = "") -> None:
    stream.write(f"\n{styled(title, stream, 'cyan', bold=True)}\n")
    stream.write(f"{styled(f'$ {command}', stream, 'bright_black')}\n\n" if command else "\n")


def _tree(files: Mapping[str, str]) -> "Tree":
    """The files as a tree, each branch with what it is for."""
    from rich.tree import Tree

    tree = Tree("out")
    branches: dict[str, list[str]] = {}
    for path in files:
        first, _, rest = path.partition("/")
        branches.setdefault(first, []).extend([rest] if rest else [])
    width = max(map(len, branches))
    for name, members in branches.items():
        branch = tree.add(f"{name:{width}}  {_GUIDE.get(name, '')}")
        if name != "status":
            for member in _shortened(members):
                branch.add(member)
    return tree


def _shortened(names: Sequence[str], most: int = 7) -> list[str]:
    return list(names) if len(names) <= most else [*names[: most - 1], f"… {len(names) - most + 1} more"]
