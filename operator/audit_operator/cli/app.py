"""What can be typed: commands, options, their help, and what becomes of anything that goes wrong."""

import enum
import re
import sys
from functools import partial
from typing import Annotated, Any, Final

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from audit_operator import __version__
from audit_operator.cli.errors import BROKEN_PIPE, FINDINGS, INTERRUPTED, OK, TROUBLE, CliError


class Commands(TyperGroup):
    """The commands, and what becomes of their errors: a line for a person, and an exit code. Never a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (typer.TyperException, typer.Exit, typer.Abort):
            raise  # bad usage, and the ends of commands: typer's own
        except CliError as error:
            fail(str(error))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            what = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:300]
            fail(f"this is a bug in audit-operator: {what}; `audit-operator --debug …` shows where")
        raise typer.Exit(TROUBLE)


class Command(TyperCommand):
    """A command whose help does not say of file names that they are a ``list[str]``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # noqa: ARG005


app = typer.Typer(
    name="audit-operator",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Exit codes: 0 all is well; 1 findings, differences, failed tests, or resources that do not count; "
    "2 bad usage, or input that cannot be read.",
)


class Format(enum.StrEnum):
    """How an answer is given."""

    TEXT = "text"
    JSON = "json"


class FailOn(enum.StrEnum):
    """From which severity on lint fails."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    NEVER = "never"


def fail(message: str) -> None:
    """An error for the person at the keyboard."""
    from audit_operator.cli.output import printable, styled

    lines = "\n".join(printable(line) for line in message.splitlines())
    sys.stderr.write(f"{styled('error:', sys.stderr, 'red', bold=True)} {lines}\n")


def warn(messages: "tuple[str, ...]") -> None:
    """What a person should know and no program reads."""
    from audit_operator.cli.output import printable, styled

    for message in messages:
        lines = "\n  ".join(printable(line) for line in message.splitlines())
        sys.stderr.write(f"{styled('warning:', sys.stderr, 'yellow', bold=True)} {lines}\n")


def version(text: str) -> tuple[int, int]:
    """``1.36``, ``v1.36.2``: the version of API servers. Raises typer.BadParameter."""
    match = re.fullmatch(r"v?(\d{1,3})\.(\d{1,3})(\..*|[-+].*)?", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no version of Kubernetes; write for example 1.36")
    found = (int(match[1]), int(match[2]))
    if found < OLDEST:
        raise typer.BadParameter(f"{text!r} is older than {OLDEST[0]}.{OLDEST[1]}, the oldest known here")
    return found


def namespace_name(text: str) -> str:
    """A namespace: it stands in scripts and in the names of files. Raises typer.BadParameter."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise typer.BadParameter(f"{text!r} is no namespace; write lower-case letters, digits and -")
    return text


def image_name(text: str) -> str:
    """A reference to an image, as far as its characters tell; empty for the default. Raises typer.BadParameter."""
    if not re.fullmatch(r"[A-Za-z0-9./:@_-]{0,512}", text):
        raise typer.BadParameter(f"{text!r} is no image; write for example registry.example.com/audit-operator:0.1.0")
    return text


def address(text: str) -> str:
    """An IP address, a DNS name or a port; empty if it is not given. Raises typer.BadParameter."""
    if not text:
        return text
    if text.isdecimal() and not 0 < int(text[:6]) < 65536:
        raise typer.BadParameter(f"{text!r} is no port; ports are 1 to 65535")
    if not re.fullmatch(r"[0-9A-Za-z]([0-9A-Za-z.-]{0,251}[0-9A-Za-z])?|[0-9A-Fa-f:.]*::?[0-9A-Fa-f:.]*", text):
        raise typer.BadParameter(f"{text!r} is no address; write an IP address, a DNS name or a port, and nothing else")
    return text


OLDEST: Final = (1, 28)
NEWEST_TEXT: Final = "1.36"
"""audit_operator.policy.load.NEWEST, which `--help` need not load."""

Files = Annotated[
    list[str],
    typer.Option(
        "-f",
        "--filename",
        metavar="FILE|DIR|-",
        help="Resources and API servers' policy files: files, folders with all below them, - for standard input. "
        "May be given several times.",
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", metavar="text|json", help="Form of the answer.")]
Server = Annotated[
    Any,
    typer.Option(
        "--kubernetes-version",
        "--server-version",
        metavar="VERSION",
        parser=version,
        help="Version of the API servers.",
    ),
]
RootNamespace = Annotated[
    str,
    typer.Option(
        "--root-namespace",
        metavar="NAMESPACE",
        parser=namespace_name,
        help="The operator's own namespace, whose policies cover the cluster.",
    ),
]


@app.callback()
def main_options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=lambda on: on and show_version(), is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where a bug is: with a traceback.")] = False,
) -> None:
    """Kubernetes audit as resources: what must be audited, where it goes, and what follows from it."""


def show_version() -> None:
    """Print the version and end."""
    sys.stdout.write(f"audit-operator {__version__}\n")
    raise typer.Exit(OK)


command = partial(app.command, cls=Command)


# --- commands --------------------------------------------------------------------------------------------------------


def examples(*commands: str) -> str:
    """Examples below a command's help, each line as it is: a shell takes them whole, a terminal of 80 columns too."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for command in commands for line in command.splitlines())


@command(
    epilog=examples(
        "audit-operator render -f examples/namespaces.yaml -f examples/platform \\\n    -f examples/tenants -o out",
        "audit-operator render -f policies/ --kubernetes-version 1.34 -o out",
        "audit-operator render -f policies/ -o out \\\n    --policy-in-force out/apiserver/policy.yaml",
        "kustomize build . | audit-operator render -f - -o json",
    )
)
def render(
    *,
    filename: Files,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR|json",
            help="Folder to write to, or json. Left out: everything on standard output.",
        ),
    ] = "",
    server: Server = NEWEST_TEXT,
    root_namespace: RootNamespace = "audit-system",
    image: Annotated[
        str, typer.Option(metavar="IMAGE", parser=image_name, help="Image of the receiver, if not this version's own.")
    ] = "",
    receiver_address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS|PORT",
            parser=address,
            help="What the cluster gave the receiver's Service, if the AuditBackend leaves it open: its IP address, "
            "its node port, or its load balancer's address.",
        ),
    ] = "",
    policy_in_force: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Policy file that API servers run now. It stays as long as it records all that is needed: narrowing "
            "it alone is not worth restarting them.",
        ),
    ] = "",
) -> None:
    """Write all that follows from the resources.

    What API servers need (policy file, kubeconfig, flags, for kubeadm and kind), the receiver's manifests and its
    program, the status of every resource, and a README.md that says what to do with them.

    A resource that is not valid, or does not count, is reported and exit code is 1; the others are rendered. In DIR
    only files that render wrote before are overwritten or removed.
    """
    from audit_operator.cli import render as command
    from audit_operator.cli.output import JSON, print_json, write_folder
    from audit_operator.cli.policies import Setting

    setting = Setting(server, root_namespace, image, receiver_address)
    in_force = command.policy_in_force(policy_in_force, setting)
    plan, problems, notices = command.load(filename, setting._replace(in_force=in_force))
    if output == JSON:
        print_json(command.as_object(plan, problems, notices))
    elif output:
        removed = write_folder(output, plan.files())
        sys.stdout.write(f"{command.summary(plan, output, removed)}\n")
    else:
        command.show_files(plan, sys.stdout)
    warn((*problems, *notices))
    raise typer.Exit(FINDINGS if problems else OK)


@command(
    epilog=examples(
        "audit-operator lint /etc/kubernetes/audit/policy.yaml",
        "audit-operator lint -f policies/ --fail-on warning -o json",
        "audit-operator lint --kubernetes-version 1.33 policy.yaml",
    )
)
def lint(
    *,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE|DIR|-", help="What to judge.", show_default=False)
    ] = None,
    filename: Annotated[
        list[str] | None, typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="The same as FILE.")
    ] = None,
    server: Annotated[
        Any,
        typer.Option(
            "--kubernetes-version",
            "--server-version",
            metavar="VERSION",
            parser=version,
            help="Version of the API servers. Left out: the newest, with a warning where older ones differ.",
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            metavar="error|warning|info|never",
            help="From which severity on the exit code is 1; a file that is not accepted always is.",
        ),
    ] = FailOn.ERROR,
    output: Output = Format.TEXT,
) -> None:
    """Say what will surprise the author of a policy.

    For an API server's policy file: whether the server accepts it, what it silently ignores, rules that never match or
    are never reached, credentials that would be recorded, what CIS benchmark 3.2.2 asks for and nobody records. For
    AuditPolicies, AuditSinks and AuditBackends: whether they are valid, and the same about their rules.
    """
    from audit_operator.cli import lint as command
    from audit_operator.cli.output import print_json

    arguments = [*(files or ()), *(filename or ())]
    if not arguments:
        raise typer.BadParameter("name at least one file or folder, or - for standard input")
    found = command.verdicts(arguments, server)
    if output is Format.JSON:
        print_json(command.as_objects(found))
    else:
        command.show(found, sys.stdout)
    for verdict in found:
        if verdict.error:
            fail(str(verdict.error))
    raise typer.Exit(command.exit_code(found, fail_on))


@command(
    epilog=examples(
        "audit-operator explain -f policies/ --user alice --verb get \\\n"
        "    --resource secrets --namespace team-a --name db",
        "audit-operator explain -f policy.yaml --user alice --group developers \\\n"
        "    --verb create --resource pods/exec --namespace prod",
        "audit-operator explain -f policy.yaml --verb get --path /healthz",
        "audit-operator explain -f policy.yaml --requests requests.jsonl -o json",
    )
)
def explain(
    *,
    filename: Files,
    requests: Annotated[
        str,
        typer.Option(
            metavar="FILE|-",
            help="Requests as JSON lines with user, groups, verb and resource or path: every line is answered by one.",
        ),
    ] = "",
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who. Left out: a login that failed.", show_default=False)
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Group of the user, beside those that API servers add themselves. May be given several times.",
        ),
    ] = None,
    verb: Annotated[str, typer.Option(metavar="VERB", help="Such as get or create; for a path its HTTP method.")] = "",
    resource: Annotated[
        str | None, typer.Option(metavar="RESOURCE", help="Such as pods, pods/exec, deployments.apps/scale.")
    ] = None,
    namespace: Annotated[str, typer.Option("-n", "--namespace", metavar="NAMESPACE", help="Of the resource.")] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the object, as in the URL.")] = "",
    path: Annotated[str | None, typer.Option(metavar="PATH", help="Of a request for no resource: /healthz.")] = None,
    server: Server = NEWEST_TEXT,
    root_namespace: RootNamespace = "audit-system",
    output: Output = Format.TEXT,
) -> None:
    """Say what happens to a request, and why.

    Which rule of which policy decides, what API servers record, what reaches which sink at which level, redacted how,
    and why not for the others. In JSON `rule` is the deciding rule's number, null for none, and the first values are
    those of the API servers' policy: the policy file itself, if -f names one and nothing else. Exit code is 1 if a
    resource is not valid or does not count: the answer is then one without it.
    """
    from audit_operator.cli import explain as command
    from audit_operator.cli.output import print_json, print_json_line
    from audit_operator.cli.policies import Setting, load_setup
    from audit_operator.cli.requests import as_object, request_from_options, request_lines

    if bool(requests) == bool(verb):
        raise typer.BadParameter("describe one request with --verb and so on, or give many with --requests")
    setup = load_setup(filename, Setting(server, root_namespace))
    warn((*setup.problems, *setup.notices))
    if requests:
        for request in request_lines(requests):
            found = command.explanation(request, setup)
            if output is Format.JSON:
                print_json_line(command.as_object(found))
            else:
                command.show_line(found, sys.stdout)
        raise typer.Exit(FINDINGS if setup.left_out else OK)
    request = request_from_options(
        user=user, groups=group or (), verb=verb, resource=resource, namespace=namespace, name=name, path=path
    )
    found = command.explanation(request, setup)
    if output is Format.JSON:
        print_json({"request": as_object(request), **command.as_object(found)})
    else:
        command.show(found, setup, sys.stdout)
    raise typer.Exit(FINDINGS if setup.left_out else OK)


@command(
    epilog=examples(
        "audit-operator diff today.yaml tomorrow.yaml",
        "audit-operator diff before/ after/ -o json",
        "git show main:policy.yaml | audit-operator diff - policy.yaml",
    )
)
def diff(
    *,
    before: Annotated[str, typer.Argument(metavar="A", help="File, folder, or - for standard input.")],
    after: Annotated[str, typer.Argument(metavar="B", help="File, folder, or -.")],
    server: Server = NEWEST_TEXT,
    root_namespace: RootNamespace = "audit-system",
    output: Output = Format.TEXT,
) -> None:
    """Show what is recorded differently by B than by A.

    Not the lines that differ, but the requests: each difference of level, stages or managedFields comes with one that
    proves it. Of sets of policies those of one name are compared, and what API servers record for all of them; of
    AuditSinks and the AuditBackend every setting. Exit code is 1 if there is a difference; 0 is a proof that there is
    none; 2 if a resource of either side is not valid or does not count, so that nothing is proved.
    """
    from audit_operator.cli import diff as command
    from audit_operator.cli.output import print_json
    from audit_operator.cli.policies import Setting, load_setup

    setting = Setting(server, root_namespace)
    setups = [load_setup([argument], setting) for argument in (before, after)]
    for setup in setups:
        warn((*setup.problems, *setup.notices))
    found = command.differences(*setups)
    left_out = sorted({name for setup in setups for name in setup.left_out})
    if output is Format.JSON:
        print_json(command.as_objects(found))
    elif found or not left_out:
        command.show(found, sys.stdout)
    if left_out:
        fail(f"nothing is proved without {', '.join(left_out)}: not valid, or not counting; correct that first")
        raise typer.Exit(TROUBLE)
    raise typer.Exit(FINDINGS if found else OK)


@command(
    "test",
    epilog=examples(
        "audit-operator test -f policies/ tests/",
        "audit-operator test -f policy.yaml tests.yaml --junit results.xml",
        "audit-operator test -f examples/platform examples/tests/baseline.yaml",
    ),
)
def run_tests(
    *,
    tests: Annotated[list[str], typer.Argument(metavar="TESTS", help="Files with tests, or folders of them.")],
    filename: Annotated[
        list[str] | None,
        typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="The policies. Left out: what the tests name."),
    ] = None,
    junit: Annotated[str, typer.Option(metavar="FILE", help="Write the results as JUnit XML too.")] = "",
    server: Server = NEWEST_TEXT,
    root_namespace: RootNamespace = "audit-system",
    output: Output = Format.TEXT,
) -> None:
    """Test policies: requests, and what must be recorded of them.

    \b
    policy: audit-system/baseline     # which of them; not needed if there is one
    tests:
    - name: reading a Secret is recorded, its content is not
      request: {user: alice, verb: get, namespace: team-a, resource: secrets}
      expect: {level: Metadata}   # or omitStages, omitManagedFields, rule, sinks

    A request has user, groups, verb, and namespace, apiGroup, resource, subresource and name, or path: as the API
    server sees it. Left out is empty; without user nobody was authenticated. `policies: [path]` in a file of tests
    names the policies it is about, if -f does not.
    """
    from audit_operator.cli import policytests as command
    from audit_operator.cli.output import print_json, write_file
    from audit_operator.cli.policies import Setting

    outcomes, messages = command.run_files(command.read_tests(tests), filename or (), Setting(server, root_namespace))
    warn(messages)
    if output is Format.JSON:
        print_json(command.as_objects(outcomes))
    else:
        command.show(outcomes, sys.stdout)
    if junit:
        write_file(junit, command.junit(outcomes))
    raise typer.Exit(FINDINGS if any(outcome.failures for outcome in outcomes) else OK)


@command(
    "import",
    epilog=examples(
        "audit-operator import /etc/kubernetes/audit/policy.yaml > auditpolicy.yaml",
        "audit-operator import policy.yaml --name baseline --sink siem \\\n    --sink audit-system/archive",
    ),
)
def import_(
    *,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="An API server's policy file.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the AuditPolicy. Left out: the file's.")] = "",
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", metavar="NAMESPACE", help="Its namespace.")
    ] = "audit-system",
    sink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAMESPACE/]NAME", help="AuditSink that gets what it records. May be given several times."
        ),
    ] = None,
    server: Server = NEWEST_TEXT,
    output: Annotated[
        Format, typer.Option("-o", "--output", metavar="text|json", help="text: YAML, with the file's comments.")
    ] = Format.TEXT,
) -> None:
    """Make an AuditPolicy of an API server's policy file.

    It means exactly what the API server makes of the file; what the server ignores is left out, and said. A file that
    no API server accepts is refused.
    """
    from audit_operator.cli import importing as command
    from audit_operator.cli.lint import show
    from audit_operator.cli.output import print_json

    policy, verdict = command.read(file, server)
    if policy is None:
        show([verdict], sys.stderr)
        raise typer.Exit(FINDINGS)
    document, text = command.import_policy(policy, name=name, namespace=namespace, sinks=sink or ())
    if output is Format.JSON:
        print_json(document)
    else:
        sys.stdout.write(text)
    warn(command.left_out(policy))


@command(
    epilog=examples(
        "audit-operator replay -f examples/platform \\\n    --events examples/traffic/sample.jsonl.gz",
        "audit-operator replay -f policy.yaml --events /var/log/kubernetes/audit.log",
        "zstdcat audit.log.zst | audit-operator replay -f policies/ --events -",
    )
)
def replay(
    *,
    filename: Files,
    events: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|-",
            help="Recorded audit events or EventLists as JSON lines, gzip or not: an API server's log file, or what "
            "its webhook sent. May be given several times.",
        ),
    ],
    server: Server = NEWEST_TEXT,
    root_namespace: RootNamespace = "audit-system",
    output: Output = Format.TEXT,
) -> None:
    """Put recorded events to policies: who gets how much, by rule.

    Bytes are those of the events as recorded, cut to the level, before redaction. Nobody gets more than was recorded:
    events that hold less than a policy asks for are counted. Lines that are no events are counted and skipped. Exit
    code is 1 if a resource is not valid or does not count, or if there was no event.
    """
    from audit_operator.cli import replay as command
    from audit_operator.cli.output import print_json
    from audit_operator.cli.policies import Setting, load_setup

    setup = load_setup(filename, Setting(server, root_namespace))
    warn((*setup.problems, *setup.notices))
    counters = command.Replay(setup.sources, setup.server)
    command.replay_files(events, counters, sys.stderr)
    report = counters.report()
    if output is Format.JSON:
        print_json(command.as_object(report))
    else:
        command.show(report, setup, sys.stdout)
    if report.malformed and not report.read.events:
        fail("no line of this is an audit event")
        raise typer.Exit(TROUBLE)
    if not report.read.events:
        warn(("there is no event in this: every number above is 0 for that reason alone",))
    raise typer.Exit(FINDINGS if setup.left_out or not report.read.events else OK)


@command(
    epilog=examples(
        "audit-operator crds | kubectl apply --server-side -f -",
        "audit-operator crds -o crds",
        "audit-operator crds --reference -o docs/reference.md",
    )
)
def crds(
    reference: Annotated[bool, typer.Option("--reference", help="The fields as a page of Markdown instead.")] = False,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR|FILE|json",
            help="Folder to write the CustomResourceDefinitions to (with --reference: file), or json. "
            "Left out: standard output.",
        ),
    ] = "",
) -> None:
    """Write the CustomResourceDefinitions of the three resources."""
    from audit_operator.cli import crds as command

    command.crds(output, reference=reference, stream=sys.stdout)


@command(epilog=examples("audit-operator demo", "audit-operator demo path/to/examples"))
def demo(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="The examples. Left out: those of this checkout.", show_default=False)
    ] = "",
    output: Output = Format.TEXT,
) -> None:
    """Show it live on this machine, without a cluster.

    Renders the examples, starts a receiver, replays recorded traffic to it as three API servers would, kills the
    receiver in the middle, and says who got what, what was lost, and whether secrets came through. Some ten seconds.
    Exit code 1: something did not hold, and what.
    """
    from audit_operator.cli.demo import command

    raise typer.Exit(command.demo(folder, output is Format.JSON, sys.stdout))


class LogLevel(enum.StrEnum):
    """What is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@command(
    epilog=examples(
        "audit-operator run --log-format text",
        "audit-operator run --kubeconfig ~/.kube/config \\\n    --no-leader-election --log-level debug",
    )
)
def run(
    *,
    namespace: Annotated[
        str,
        typer.Option(
            envvar="POD_NAMESPACE",
            metavar="NAMESPACE",
            help="The operator's own namespace, the root namespace: what it makes is there.",
        ),
    ] = "audit-system",
    identity: Annotated[
        str,
        typer.Option(
            envvar="POD_NAME",
            metavar="NAME",
            help="Who this replica is, unique among them. Left out: the host's name and a random part.",
            show_default=False,
        ),
    ] = "",
    image: Annotated[
        str,
        typer.Option(envvar="AUDIT_OPERATOR_IMAGE", metavar="IMAGE", help="Image of receivers: the operator's own."),
    ] = "",
    cluster_domain: Annotated[
        str, typer.Option(envvar="CLUSTER_DOMAIN", metavar="DOMAIN", help="The cluster's DNS domain.")
    ] = "cluster.local",
    kubeconfig: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="How to reach the cluster. Left out: as the pod's service account, else as kubectl."
        ),
    ] = "",
    context: Annotated[str, typer.Option(metavar="NAME", help="Context of the kubeconfig.")] = "",
    listen: Annotated[
        str,
        typer.Option(envvar="LISTEN", metavar="ADDRESS:PORT", help="Where /livez, /readyz and /metrics are, by HTTP."),
    ] = "0.0.0.0:8080",
    leader_election: Annotated[
        bool,
        typer.Option(
            envvar="LEADER_ELECTION", help="Whether replicas agree on the one that writes. Without, run only one."
        ),
    ] = True,
    log_format: Annotated[
        Format, typer.Option(envvar="LOG_FORMAT", metavar="json|text", help="Form of log lines.")
    ] = Format.JSON,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="LOG_LEVEL", metavar="debug|info|warning|error", help="What is logged.")
    ] = LogLevel.INFO,
    log_level_file: Annotated[
        str,
        typer.Option(
            envvar="LOG_LEVEL_FILE", metavar="FILE", help="A file with the log level; followed while running."
        ),
    ] = "",
) -> None:
    """Run the operator: watch the resources, make API servers' and receivers' configuration of them, report on them.

    Ends on SIGTERM. Exit code 1: it cannot go on, and the last lines of the log say why.
    """
    from audit_operator.cli import run as command

    raise typer.Exit(
        command.run(
            namespace=namespace,
            identity=identity,
            image=image,
            cluster_domain=cluster_domain,
            kubeconfig=kubeconfig,
            context=context,
            listen=listen,
            leader_election=leader_election,
            log_format=log_format.value,
            log_level=log_level.value,
            log_level_file=log_level_file,
        )
    )


@command(
    epilog=examples(
        "audit-operator receive --program out/receiver/program.json \\\n"
        "    --journal state/journal --certificates out/certificates",
    )
)
def receive(
    *,
    program: Annotated[
        str, typer.Option(metavar="FILE", help="What to do with events, as `render` writes it; followed while running.")
    ],
    journal: Annotated[
        str, typer.Option(metavar="DIR", help="Where events are kept until sinks have them; this receiver's alone.")
    ],
    certificates: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="tls.crt, tls.key, and ca.crt of those who may connect; followed while running."
        ),
    ],
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where API servers connect, by HTTPS.")
    ] = "0.0.0.0:8443",
    metrics: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where /livez, /readyz and /metrics are, by HTTP.")
    ] = "0.0.0.0:9090",
) -> None:
    """Run a receiver: take audit events from API servers, apply each policy, deliver to sinks.

    An API server is answered 200 once its events are on disk. Ends on SIGTERM, after delivering what sinks take within
    35 seconds; the rest waits in the journal for the next start.
    """
    from audit_operator.cli import receive as command

    command.receive(program=program, journal=journal, listen=listen, certificates=certificates, metrics=metrics)


@command(
    epilog=examples(
        "audit-operator verify --public-key audit.pub /mnt/archive/audit-system",
        "audit-operator verify --public-key audit.pub \\\n    s3://audit-archive/prod/audit-system/archive",
        "audit-operator verify --public-key audit.pub --public-key old.pub \\\n"
        "    --known last-week.json -o json /mnt/archive",
    )
)
def verify(
    *,
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH|URL",
            help="The folder, or s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, that sinks with "
            "integrity write to. Credentials for a bucket come from the environment.",
        ),
    ],
    public_key: Annotated[
        list[str],
        typer.Option(
            metavar="FILE", help="Public key (PEM). Several times: after a rotation any of them may have signed."
        ),
    ],
    known: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="An earlier report (-o json), kept elsewhere: all that it knows must still be there. Only that tells "
            "when whole chains, or their ends, were removed.",
        ),
    ] = "",
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="Where the bucket is, if not at Amazon, Google or Azure.")
    ] = "",
    output: Output = Format.TEXT,
) -> None:
    """Say whether archived events are intact, or what was changed, removed, reordered or added.

    Every digest's signature, the chain they form, and every file against its digest. What is being written has no
    digest yet: it is said not to be sealed, and is no finding. Exit code 1: findings; 2: it cannot be checked.
    """
    from audit_operator.cli import verify as command

    intact = command.verify(
        place, public_keys=public_key, endpoint=endpoint, known=known, as_json=output is Format.JSON
    )
    raise typer.Exit(OK if intact else FINDINGS)


quarantine = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["--help", "-h"]}
)
app.add_typer(quarantine, name="quarantine", help="Events that a receiver keeps because they could not be delivered.")

JournalFolder = Annotated[str, typer.Option("--journal", metavar="DIR", help="The receiver's journal.")]
STATE = "/var/lib/audit-operator/journal"


@quarantine.command(
    cls=Command,
    name="list",
    epilog=examples("audit-operator quarantine list", "audit-operator quarantine list --journal state/journal -o json"),
)
def quarantine_list(*, journal: JournalFolder = STATE, output: Output = Format.TEXT) -> None:
    """Show what is kept: items that were no events (malformed), and events that a sink refused for good."""
    from audit_operator.cli import quarantine as command

    command.list_(journal, as_json=output is Format.JSON)


@quarantine.command(cls=Command, name="show", epilog=examples("audit-operator quarantine show 3f2a9c0d1b8e7f64"))
def quarantine_show(
    *, id_: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")], journal: JournalFolder = STATE
) -> None:
    """Print one of them with its event, as JSON. Items that were no events are kept without their bodies."""
    from audit_operator.cli import quarantine as command

    command.show(journal, id_)


@quarantine.command(cls=Command, name="retry", epilog=examples("audit-operator quarantine retry audit-system/siem"))
def quarantine_retry(
    *,
    sink: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The sink that refused them.")],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Which; left out: all.", show_default=False)
    ] = None,
    journal: JournalFolder = STATE,
) -> None:
    """Have refused events delivered again, after what made the sink refuse them is mended."""
    from audit_operator.cli import quarantine as command

    asked = command.retry(journal, sink, ids or [])
    sys.stdout.write(f"{asked} to be delivered again\n")
