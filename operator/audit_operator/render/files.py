"""The folder that `audit-operator render -o` writes: what API servers need, what the cluster needs, and a guide."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from audit_operator.policy.model import Policy
from audit_operator.render.exposure import RECEIVER, Exposed
from audit_operator.render.flags import NODE_DIRECTORY, Flags
from audit_operator.render.kubeadm import kind, kubeadm
from audit_operator.render.kubeconfig import CertificateFiles, kubeconfig
from audit_operator.render.objects import Object, is_revision
from audit_operator.render.policyfile import policy_file
from audit_operator.render.program import CREDENTIALS, HASH_KEY, Credential, credentials_secret
from audit_operator.render.status import ResourceStatus, counted
from audit_operator.render.tls import CLIENT_TLS, RECEIVER_TLS, is_address
from audit_operator.render.world import IMAGE, World
from audit_operator.resources.yamlwriter import write

CERTIFICATES: Final = CertificateFiles(
    ca=f"{NODE_DIRECTORY}/ca.crt",
    client_certificate=f"{NODE_DIRECTORY}/client.crt",
    client_key=f"{NODE_DIRECTORY}/client.key",
)

# One sentence for every set of resources: API servers restart when their file changes.
_MADE: Final = "Made by audit-operator; change the AuditPolicies and the AuditBackend, not this file."

_FILE_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def server_files(
    policy: Policy, flags: Flags, exposed: Exposed, log_directory: str | None, world: World, *, by_hand: bool
) -> dict[str, str]:
    """What an API server reads, and how it is told to: policy file, kubeconfig, flags, kubeadm's and kind's form.

    ``by_hand``: with a script that makes certificates, for where nobody else does.
    """
    major, minor = world.server_version
    result = {
        "apiserver/policy.yaml": policy_file(policy, header=f"{_MADE}\nFor Kubernetes {major}.{minor}."),
        "apiserver/flags.txt": _flags(flags, major, minor),
        "kubeadm/cluster-configuration.yaml": kubeadm(
            flags.flags,
            log_directory,
            world.server_version,
            header=f"{_MADE}\nFor kubeadm {major}.{minor}: add it to the ClusterConfiguration.",
        ),
        "kind/cluster.yaml": kind(
            flags.flags,
            log_directory,
            header=f"{_MADE}\nFrom the folder above: kind create cluster --config kind/cluster.yaml",
        ),
    }
    if flags.body_limit is not None:
        result["apiserver/webhook.kubeconfig"] = kubeconfig(
            url=exposed.url, server_name=exposed.server_name, files=CERTIFICATES, header=_MADE
        )
        if by_hand:
            result["certificates.sh"] = _certificates_script(exposed, world.root_namespace)
    return result


def manifest_files(objects: Iterable[Object]) -> dict[str, str]:
    """A file for every object but for revisions, which are history: a folder in git has its own."""
    return {
        f"manifests/{item['kind'].lower()}.{item['metadata']['name']}.yaml": write(item)
        for item in objects
        if not is_revision(item)
    }


def status_files(statuses: Iterable[ResourceStatus]) -> dict[str, str]:
    """A file for every status, but for resources whose names are no names and could be paths."""
    result = {}
    for status in statuses:
        identity = status.identity
        if _FILE_NAME.fullmatch(identity.name) and (not identity.namespace or _FILE_NAME.fullmatch(identity.namespace)):
            folder = f"status/{identity.namespace}" if identity.namespace else "status"
            result[f"{folder}/{identity.kind.lower()}.{identity.name}.yaml"] = write(status.document())
    return result


def credentials_file(credentials: Sequence[Credential], hashes: bool, world: World) -> dict[str, str]:
    """A script that copies what sinks refer to into the Secrets that receivers read: the platform's, and tenants'.

    ``hashes``: some redaction hashes, so the platform's needs a key for it, made once and kept.
    """
    if not credentials and not hashes:
        return {}
    root = world.root_namespace
    secrets: dict[str, list[Credential]] = {CREDENTIALS: []} if hashes else {}
    for each in credentials:
        secrets.setdefault(credentials_secret(each.namespace, root), []).append(each)
    # No kind, namespace, name or key can hold a blank or a quote.
    parts = [
        "\n".join(
            [
                f"secret {name}",
                *(f"copy {each.kind.lower()} {each.namespace} {each.name} {each.key} {each.file}" for each in theirs),
                *([_HASH_KEY.rstrip()] if hashes and name == CREDENTIALS else []),
                "apply",
            ]
        )
        for name, theirs in sorted(secrets.items())
    ]
    script = f"""#!/bin/sh
# Copies what AuditSinks refer to into the Secrets that receivers read, {" and ".join(sorted(secrets))}. Needs kubectl.
set -eu
umask 077
namespace={root}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

secret() {{ # name
  secret=$1
  mkdir "$folder/$secret"
}}

copy() {{ # kind namespace name key file
  case $1 in secret) decode=' | base64decode' ;; *) decode= ;; esac
  kubectl -n "$2" get "$1" "$3" -o go-template="{{{{index .data \\"$4\\"$decode}}}}" >"$folder/$secret/$5"
}}

apply() {{
  kubectl -n "$namespace" create secret generic "$secret" --from-file="$folder/$secret" --dry-run=client -o yaml |
    kubectl -n "$namespace" apply --server-side -f -
}}

{(chr(10) * 2).join(parts)}
"""
    return {"credentials.sh": script}


_HASH_KEY: Final = f"""# The key of redactions that hash: equal values stay recognizable only as long as it stays.
template='{{{{with .data}}}}{{{{with index . "{HASH_KEY}"}}}}{{{{. | base64decode}}}}{{{{end}}}}{{{{end}}}}'
kubectl -n "$namespace" get secret "$secret" --ignore-not-found -o go-template="$template" >"$folder/$secret/{HASH_KEY}"
[ -s "$folder/$secret/{HASH_KEY}" ] || openssl rand -hex 32 >"$folder/$secret/{HASH_KEY}"
"""


def _flags(flags: Flags, major: int, minor: int) -> str:
    lines = [f"# {line}" for line in _MADE.split("\n")]
    lines.append(f"# Flags of kube-apiserver {major}.{minor}; in parentheses what holds without them.")
    if flags.body_limit is not None:
        lines.append(f"# The largest POST they allow, and so what the receiver takes: {flags.body_limit} bytes.")
        ceiling = flags.events_per_second
        most = "not limited" if ceiling is None else f"{ceiling} events a second"
        lines.append(f"# The most that one API server delivers: {most}.")
    for flag in flags.flags:
        lines += ["", f"# {flag.why} ({flag.default or 'not set'})", str(flag)]
    return "\n".join(lines) + "\n"


def _certificates_script(exposed: Exposed, namespace: str) -> str:
    names = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in exposed.names)
    return f"""#!/bin/sh
# Makes what receivers and API servers need to trust each other, for a first try: a CA, a certificate for the receivers,
# one for API servers. Where there is a CA already, let that one make them. Needs openssl.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p certificates
cd certificates

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=audit-operator \\
  -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout ca.key -out ca.crt

issue() {{ # file common-name extended-key-usage subject-alternative-names
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1.key" -out "$1.csr"
  printf 'basicConstraints=critical,CA:FALSE\\nkeyUsage=critical,digitalSignature\\n' >"$1.ext"
  printf 'extendedKeyUsage=%s\\nsubjectAltName=%s\\n' "$3" "$4" >>"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.crt"
  rm "$1.csr" "$1.ext"
}}
issue receiver {RECEIVER} serverAuth {names}
issue client kube-apiserver clientAuth DNS:kube-apiserver

cp ca.crt client.crt client.key ../apiserver/
cat <<'EOF'
kubectl -n {namespace} create secret generic {RECEIVER_TLS} --type=kubernetes.io/tls \\
  --from-file=ca.crt=certificates/ca.crt \\
  --from-file=tls.crt=certificates/receiver.crt --from-file=tls.key=certificates/receiver.key
EOF
"""


def guide(
    *,
    statuses: Sequence[ResourceStatus],
    notices: Sequence[str],
    flags: Flags | None,
    rules: int,
    delivering: bool,
    credentials: bool,
    cert_manager: bool,
    exposed: Exposed,
    world: World,
) -> str:
    """README.md: what became of every resource, what to know, and the way by hand.

    ``flags`` None: there is nothing for API servers and receivers. ``delivering``: some AuditPolicy names a sink that
    receivers are to fill.
    """
    major, minor = world.server_version
    sections = [f"# Audit configuration for Kubernetes {major}.{minor}"]
    if flags is None:
        sections.append("Nothing is here for API servers and receivers; *To know* says why.")
    else:
        recorded = (
            f"API servers get one policy of {counted(rules, 'rule')} (`apiserver/policy.yaml`), {_whose(statuses)}."
        )
        sections.append(f"{recorded} {_way_of_events(delivering, webhook=flags.body_limit is not None)}")
    rows = []
    for status in statuses:
        state, follows = status.rendered
        rows.append(f"| {_cell(str(status.identity))} | {state} | {_cell(follows)} |")
    sections.append("\n".join(["## Resources", "", "| resource | | what follows |", "|---|---|---|", *rows]))
    if notices:
        sections.append("\n".join(["## To know", "", *(f"* {_cell(notice)}" for notice in notices)]))
    if flags is not None:
        webhook = flags.body_limit is not None
        namespace = f"The namespace: `kubectl create namespace {world.root_namespace}`."
        steps = (
            _receiver_steps(namespace, credentials, cert_manager, exposed, world)
            if webhook
            else (namespace, "What API servers are to run: `kubectl apply --server-side -f manifests/`.")
        )
        steps = (*steps, _SERVER_STEP)
        numbered = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
        trial = _trial(cert_manager, exposed, world) if webhook else "`kind create cluster --config kind/cluster.yaml`."
        sections.append("\n".join(["## By hand", "", *numbered, "", f"Or a cluster to try it in: {trial}"]))
    return "\n\n".join(sections) + "\n"


def _whose(statuses: Sequence[ResourceStatus]) -> str:
    """How far the server policy goes, seen from the AuditPolicies that count."""
    verdicts = [each.status for status in statuses for each in status.conditions if each.type == "Covered"]
    enough = verdicts.count("True")
    if not verdicts:
        return "and no AuditPolicy asks for anything"
    if len(verdicts) == enough:
        return "which records all that AuditPolicies need"
    return f"which records all that {enough} of {len(verdicts)} AuditPolicies need"


def _way_of_events(delivering: bool, *, webhook: bool) -> str:
    if not webhook:
        return (
            "They only write log files of their own: the webhook is off, so there is no receiver, and no sink gets any."
        )
    if not delivering:
        return "No AuditPolicy delivers to a sink: receivers would take every event and pass none on."
    return "Receivers apply each AuditPolicy exactly (`receiver/program.json`)."


_SERVER_STEP: Final = (
    f"API servers, one control-plane node after the other: copy `apiserver/` to `{NODE_DIRECTORY}` and add the "
    "flags of `apiserver/flags.txt`. With kubeadm: put `kubeadm/cluster-configuration.yaml` into the "
    "ClusterConfiguration and run `kubeadm init phase control-plane apiserver --config`. Go on when it serves."
)


def _receiver_steps(
    namespace: str, credentials: bool, cert_manager: bool, exposed: Exposed, world: World
) -> Iterator[str]:
    """What comes before API servers may send events: an API server loses what nobody takes within minutes."""
    if world.image == IMAGE:
        yield (
            f"The receiver's image: none is published yet, `{IMAGE}` is only its name. Bring one of your own to a "
            "registry and render again with `--image`. Without one, end here: write `webhook: {enabled: false}` into "
            "the AuditBackend and render again, and API servers write log files of their own."
        )
    yield namespace
    copy = (
        f"copy `ca.crt`, `tls.crt` and `tls.key` of Secret {CLIENT_TLS} to `apiserver/` as `ca.crt`, `client.crt` and "
        "`client.key`."
    )
    if not cert_manager and world.certificates is None:
        yield (
            f"Certificates: `sh certificates.sh` makes some for a first try, puts those of API servers into "
            f"`apiserver/` and prints the command that creates Secret {RECEIVER_TLS}."
        )
    if credentials:
        yield "Credentials: `sh credentials.sh` copies what sinks refer to into the Secrets that receivers read."
    yield (
        "The receiver, and what API servers are to run: `kubectl apply --server-side -f manifests/`. Go on when the "
        f"receiver's pods are ready: `kubectl -n {world.root_namespace} get pods`."
    )
    if cert_manager:
        yield f"When cert-manager has made the certificates, {copy}"
    elif world.certificates is not None:
        yield f"Certificates: {copy}"
    if exposed.unknown:
        yield (
            f"The receiver's address: `kubectl -n {world.root_namespace} get service {RECEIVER}` shows what the "
            "cluster gave it. Render again with `--receiver-address`, or replace the placeholder in "
            "`apiserver/webhook.kubeconfig`."
        )


def _trial(cert_manager: bool, exposed: Exposed, world: World) -> str:
    if cert_manager:
        return "choose `spec.certificates.selfSigned`, because its API server starts before cert-manager can."
    if exposed.unknown:
        # kind starts the API server before anybody could ask it for an address.
        return (
            f"give `{exposed.unknown.path}` in the AuditBackend and render again, because its API server starts with "
            "that file."
        )
    first = "`sh certificates.sh` first, then " if world.certificates is None else ""
    return f"{first}`kind create cluster --config kind/cluster.yaml`, then the steps above but for that of API servers."


def _cell(text: str) -> str:
    """Text in a table or list: on one line, without a mark that would end it."""
    return "; ".join(filter(None, map(str.strip, text.split("\n")))).replace("|", "\\|")
