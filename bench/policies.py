"""Policies as people write them, any number of them, the same for the same seed."""

import random

from audit_operator.policy.model import GroupResources, Level, Policy, Rule, Stage

_CORE = (
    "pods",
    "services",
    "configmaps",
    "secrets",
    "serviceaccounts",
    "persistentvolumeclaims",
    "endpoints",
    "events",
)
_APPS = ("deployments", "statefulsets", "daemonsets", "replicasets")
_RBAC = ("roles", "rolebindings", "clusterroles", "clusterrolebindings")
_READS = ("get", "list", "watch")
_WRITES = ("create", "update", "patch", "delete", "deletecollection")
_RECEIVED = frozenset({Stage.REQUEST_RECEIVED})


def noise() -> list[Rule]:
    """What nearly everybody drops first."""
    return [
        Rule(level=Level.NONE, non_resource_urls=("/healthz*", "/readyz*", "/livez*", "/version", "/metrics")),
        Rule(
            level=Level.NONE,
            users=("system:kube-controller-manager", "system:kube-scheduler", "system:apiserver"),
            verbs=("get", "update"),
            namespaces=("kube-system",),
            resources=(GroupResources("coordination.k8s.io", ("leases",)), GroupResources("", ("endpoints",))),
        ),
        Rule(
            level=Level.NONE, users=("system:kube-proxy",), verbs=("watch",), resources=(GroupResources("", _CORE[:2]),)
        ),
        Rule(
            level=Level.NONE, user_groups=("system:nodes",), verbs=("get",), resources=(GroupResources("", ("nodes",)),)
        ),
        Rule(
            level=Level.NONE, resources=(GroupResources("", ("events",)), GroupResources("events.k8s.io", ("events",)))
        ),
    ]


def platform(rng: random.Random, rules: int = 20) -> Policy:
    """A cluster-wide policy: drop noise, keep bodies of what matters, metadata of the rest."""
    result = [rule for rule in noise() if rng.random() < 0.8]
    result.append(
        Rule(level=Level.METADATA, resources=(GroupResources("", ("secrets", "configmaps", "serviceaccounts/token")),))
    )
    while len(result) < rules - 2:
        level = rng.choice((Level.METADATA, Level.REQUEST, Level.REQUEST_RESPONSE))
        verbs = rng.choice((_WRITES, _READS, ("create",), ("delete", "deletecollection"), ()))
        entries = rng.choice(
            (
                (GroupResources("rbac.authorization.k8s.io", tuple(rng.sample(_RBAC, 2))),),
                (GroupResources("apps", tuple(rng.sample(_APPS, 2))),),
                (GroupResources("", ("pods/exec", "pods/attach", "pods/portforward")),),
                (GroupResources("admissionregistration.k8s.io"), GroupResources("apiextensions.k8s.io")),
                (GroupResources("networking.k8s.io", ("ingresses", "networkpolicies")),),
                (GroupResources("batch", ("jobs", "cronjobs")),),
                (GroupResources("", tuple(rng.sample(_CORE, 2))),),
            )
        )
        result.append(Rule(level=level, verbs=verbs, resources=entries))
    result.append(Rule(level=rng.choice((Level.METADATA, Level.REQUEST)), verbs=_WRITES))
    result.append(Rule(level=Level.METADATA))
    return Policy(rules=tuple(result), omit_stages=_RECEIVED)


def application(rng: random.Random, number: int, rules: int = 20) -> Policy:
    """A policy of one application: its service accounts wherever they act, and whoever acts in its namespace."""
    users = tuple(f"system:serviceaccount:app-{number}:{name}" for name in ("controller", "deployer"))
    result = []
    while len(result) < rules - 1:
        entries = rng.choice(
            (
                (GroupResources(f"app{number % 50}.example.com"),),
                (GroupResources("", tuple(rng.sample(_CORE, 3))),),
                (GroupResources("apps", tuple(rng.sample(_APPS, 1))),),
                (GroupResources("", ("secrets",), (f"app-{number}-credentials",)),),
            )
        )
        anyone = rng.random() < 0.4
        result.append(
            Rule(
                level=rng.choice((Level.NONE, Level.METADATA, Level.REQUEST, Level.REQUEST_RESPONSE)),
                users=() if anyone else users,
                verbs=rng.choice((_WRITES, _READS, ("get",), ("patch", "update"))),
                namespaces=(f"app-{number}",) if anyone or rng.random() < 0.5 else (),
                resources=entries,
            )
        )
    result.append(Rule(level=Level.METADATA, users=users))
    return Policy(rules=tuple(result), omit_stages=_RECEIVED)


def tenant(rng: random.Random, namespace: str, rules: int = 20) -> Policy:
    """A policy of one namespace, of one of the shapes that the generator's seed knows."""
    result = []
    while len(result) < rules - 1:
        group, kinds = rng.choice((("", _CORE), ("apps", _APPS), ("rbac.authorization.k8s.io", _RBAC[:2])))
        result.append(
            Rule(
                level=rng.choice((Level.NONE, Level.METADATA, Level.REQUEST, Level.REQUEST_RESPONSE)),
                verbs=rng.choice((_WRITES, _READS, ("get",), ("create", "delete"))),
                namespaces=(namespace,),
                resources=(GroupResources(group, tuple(rng.sample(kinds, rng.randint(1, 2)))),),
            )
        )
    result.append(Rule(level=Level.METADATA, namespaces=(namespace,)))
    return Policy(rules=tuple(result), omit_stages=_RECEIVED)


def tenants(count: int, *, shapes: int = 1, rules: int = 20) -> list[Policy]:
    """Tenants who differ in their namespace only, but for the number of shapes."""
    return [tenant(random.Random(number % shapes), f"team-{number}", rules) for number in range(count)]


def mixed(count: int, *, seed: int = 1, rules: int = 20) -> list[Policy]:
    """A large organisation: 2 % cluster-wide policies, 28 % applications, 70 % namespaces in 25 shapes."""
    rng = random.Random(seed)
    result = []
    for number in range(count):
        if number % 50 == 0:
            result.append(platform(rng, rules))
        elif number % 10 < 3:
            result.append(application(rng, number, rules))
        else:
            result.append(tenant(random.Random(number % 25), f"team-{number}", rules))
    return result
