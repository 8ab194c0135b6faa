"""What in a rule can never match, whatever the other rules are: verbs, resources, names, users, namespaces, paths."""

import re
from collections.abc import Iterator, Sequence

from audit_operator.policy.findings import Finding, Place, Severity
from audit_operator.policy.kinds import (
    AUTHORIZATION_ONLY,
    AUTHORIZATION_VERBS,
    REMOVED_GROUPS,
    RESOURCE_VERBS,
    Kind,
    Kinds,
    Version,
)
from audit_operator.policy.load import suggest
from audit_operator.policy.model import GroupResources, Rule
from audit_operator.policy.region import NON_RESOURCE, RESOURCE, Region


def value_findings(rule: Rule, place: Place, kinds: Kinds, server: Version) -> Iterator[Finding]:
    """Findings on one rule by itself; ``place`` is the rule's."""
    yield from _verbs(rule, place)
    for index, entry in enumerate(rule.resources):
        yield from _entry(rule, entry, place.at("resources", index), kinds, server)
    yield from _users(rule, place)
    yield from _namespaces(rule, place, kinds)
    yield from _urls(rule, place)
    yield from _repeats(rule, place)


# -- verbs -----------------------------------------------------------------------------------------------------------

_METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "connect", "trace")
_VERB_OF_METHOD = {"post": "create", "put": "update", "head": "get"}
_METHOD_OF_VERB = {"create": "post", "update": "put", "list": "get", "watch": "get", "deletecollection": "delete"}
_PROXY = "proxy"
"""The verb of /api/v1/proxy/…, which no server serves any more; requests for it still have it."""


def _verbs(rule: Rule, place: Place) -> Iterator[Finding]:
    scope = Region.of(rule).scope
    for index, verb in enumerate(rule.verbs):
        at = place.at("verbs", index)
        if verb not in RESOURCE_VERBS and verb not in _METHODS and verb != _PROXY:
            yield _unknown_verb(verb, scope, at)
        elif scope == RESOURCE and verb not in RESOURCE_VERBS and verb != _PROXY:
            message = f"requests for resources never have the verb {verb}"
            instead = _VERB_OF_METHOD.get(verb)
            fix = f"write {instead}" if instead else f"use {', '.join(RESOURCE_VERBS)}, or remove it"
            yield at.finding("verb-out-of-scope", message, fix)
        elif scope == NON_RESOURCE and verb not in _METHODS:
            message = f"for nonResourceURLs the verb is the HTTP method in lower case, so never {verb}"
            instead = _METHOD_OF_VERB.get(verb, "")
            yield at.finding("verb-out-of-scope", message, f"write {instead}" if instead else "remove it")


def _unknown_verb(verb: str, scope: int, at: Place) -> Finding:
    if verb == "*":
        message = "* is no wildcard here: it is compared with the verb of the request, and no request has this one"
        return at.finding("unknown-verb", message, "remove verbs: a rule without them matches every verb")
    if verb in AUTHORIZATION_VERBS:
        message = f"{verb} is a permission in RBAC, not the verb of a request"
        fix = "name the verb of the request that needs the permission, such as create or update"
        if verb == "impersonate":
            fix = "remove it: the policy sees the user who asks, and events say impersonatedUser; there is no such verb"
        return at.finding("unknown-verb", message, fix)
    lower = verb.lower()
    known = _METHODS if scope == NON_RESOURCE else RESOURCE_VERBS
    near = _VERB_OF_METHOD.get(lower, "") if scope != NON_RESOURCE else ""
    near = near or suggest(lower, known)
    message = f"no request has the verb {verb!r}: verbs are compared exactly, and are lower case"
    return at.finding("unknown-verb", message, f"write {near}" if near else f"use {', '.join(known)}")


# -- resources -------------------------------------------------------------------------------------------------------

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_ITEM = re.compile(r"\*|\*/[^*/]+|[^*/]+(?:/(?:\*|[^*/]+))?")


def _entry(rule: Rule, entry: GroupResources, place: Place, kinds: Kinds, server: Version) -> Iterator[Finding]:
    group_finding = _group(entry.group, place, kinds)
    if group_finding is not None:
        yield group_finding
    for index, item in enumerate(entry.resources):
        at = place.at("resources", index)
        if not _ITEM.fullmatch(item):
            yield _bad_pattern(item, at)
        elif item != item.lower():
            message = f"{item!r} matches nothing: resources are compared exactly, and are lower case"
            yield at.finding("resource-case", message, f"write {_plural(item, entry.group, kinds)}")
        elif entry.group in kinds.groups and group_finding is None:
            yield from _in_table(entry, item, at, kinds, server)
    yield from _names(rule, entry, place)
    yield from _exec_by_get(rule, entry, place)


def _group(group: str, place: Place, kinds: Kinds) -> Finding | None:
    at = place.at("group")
    if group in REMOVED_GROUPS and group not in kinds.groups:
        went = REMOVED_GROUPS[group]
        message = f"no API server since 1.28 serves the group {group}"
        fix = f"use {went}" if went else "remove it"
        return at.finding("unknown-group", message, fix, severity=Severity.INFO)
    if group in kinds.groups or group == "*":
        return None
    if "." not in group and not kinds.complete:
        # Groups of custom resources have a dot, so this is one of Kubernetes' own, misspelled.
        known = [name for name in sorted(kinds.groups) if name.partition(".")[0] == group]
        near = '""' if group in {"core", "v1"} else known[0] if known else suggest(group, sorted(kinds.groups))
        message = f"there is no group {group}" + ("; the core group is the empty string" if near == '""' else "")
        return at.finding("unknown-group", message, f"write {near}" if near else "name the group, or remove the entry")
    if kinds.complete:
        near = suggest(group, sorted(kinds.groups))
        return at.finding(
            "unknown-group",
            f"this cluster does not serve the group {group!r}",
            f"write {near}" if near else "remove it, or install what serves it",
        )
    return None


def _bad_pattern(item: str, at: Place) -> Finding:
    message = f"{item!r} matches nothing: a pattern is *, pods, pods/log, pods/* or */log"
    if item == "*/*":
        return at.finding("resource-pattern", message, 'write "*": it includes subresources')
    parts = item.strip("/").split("/")
    if not item.strip("/"):
        return at.finding("resource-pattern", message, "name a resource, or remove resources to match all")
    if len(parts) > 2:
        return at.finding("resource-pattern", message, f"write {'/'.join(parts[:2])}: there is one subresource")
    if "*" in parts[0]:
        name = parts[0].strip("*")
        fix = f"write {name}/* for {name} and its subresources; prefixes do not exist: name each resource"
        return at.finding("resource-pattern", message, fix)
    return at.finding("resource-pattern", message, f"write {item.strip('/').replace('**', '*')}")


def _plural(item: str, group: str, kinds: Kinds) -> str:
    """What a person most likely meant by ``item`` in ``group``; the item in lower case if the table does not tell."""
    name, slash, subresource = item.lower().partition("/")
    meant = [kind for kind in kinds.meant_by(name) if kind.group == group]
    return f"{meant[0].resource if meant else name}{slash}{subresource}"


def _in_table(entry: GroupResources, item: str, at: Place, kinds: Kinds, server: Version) -> Iterator[Finding]:
    """Findings on a well-formed item of a group whose resources are all known."""
    name, _, subresource = item.partition("/")
    if name == "*":
        parts = {part for kind in kinds.all if kind.group == entry.group for part in kind.subresources}
        if subresource and subresource not in parts:
            message = f"no resource of {_group_text(entry.group)} has a subresource {subresource}"
            near = suggest(subresource, sorted(parts))
            fix = f"write */{near}" if near else "remove it"
            yield at.finding("unknown-subresource", message, fix)
        return
    kind = kinds.get(entry.group, name)
    if kind is None:
        yield _unknown_resource(entry.group, item, at, kinds)
    elif not kind.served_by(server):
        yield _other_version(kind, at, server)
    elif subresource not in {"", "*"} and subresource not in kind.subresources:
        message = f"{name} has no subresource {subresource}"
        if item in AUTHORIZATION_ONLY and entry.group == "":
            message = f"{item} exists in RBAC only, for requests to kubelets; no request to an API server is for it"
        near = suggest(subresource, sorted(kind.subresources))
        yield at.finding("unknown-subresource", message, f"write {name}/{near}" if near else "remove it")


def _unknown_resource(group: str, item: str, at: Place, kinds: Kinds) -> Finding:
    name, slash, subresource = item.partition("/")
    meant = [kind for kind in kinds.meant_by(name) if kind.group == group]
    if meant:
        message = f"{name!r} matches nothing: rules take the plural of a resource, as it stands in URLs"
        return at.finding("resource-name", message, f"write {meant[0].resource}{slash}{subresource}")
    elsewhere = kinds.named(name) or kinds.meant_by(name)
    if elsewhere:
        groups = " or ".join(_group_text(kind.group) for kind in elsewhere)
        fix = f"move it to an entry with group {groups}"
        if elsewhere[0].resource != name:
            fix += f", as {elsewhere[0].resource}"
        return at.finding("wrong-group", f"{name} is not in {_group_text(group)}, but in {groups}", fix)
    near = suggest(name, [kind.resource for kind in kinds.all if kind.group == group])
    fix = f"write {near}{slash}{subresource}" if near else "correct the resource or the group, or remove it"
    return at.finding("unknown-resource", f"{_group_text(group)} has no resource {name}", fix)


def _group_text(group: str) -> str:
    return group or '"" (core)'


def _other_version(kind: Kind, at: Place, server: Version) -> Finding:
    message = f"{kind.resource} is not in Kubernetes {_version(server)}"
    if kind.since is not None and server < kind.since:
        message += f", but from {_version(kind.since)} on"
    elif kind.until is not None:
        message += f": {_version(kind.until)} was the last that had it"
    return at.finding("other-version", message, "remove it, unless the policy is for other versions too")


def _version(version: Version) -> str:
    return ".".join(map(str, version))


_NAMELESS = ("create", "deletecollection")


def _names(rule: Rule, entry: GroupResources, place: Place) -> Iterator[Finding]:
    """resourceNames against verbs that have no name; the verbs of a subresource, such as serviceaccounts/token, do."""
    if not entry.resource_names or any("/" in item or item == "*" for item in entry.resources):
        return
    at = place.at("resourceNames")
    nameless = [verb for verb in rule.verbs if verb in _NAMELESS]
    if not nameless:
        return
    verbs = " and ".join(nameless)
    message = f"with verb {verbs} there is no name yet when the policy is asked, so this entry "
    if len(nameless) == len(rule.verbs):
        yield at.finding("name-not-known", message + "never matches", "remove resourceNames")
    else:
        message += f"never matches {verbs}"
        fix = f"put {verbs} into a rule of their own, without resourceNames"
        yield at.finding("name-not-known", message, fix, severity=Severity.WARNING)


_STREAMS = frozenset({"pods/attach", "pods/exec", "pods/portforward"})


def _exec_by_get(rule: Rule, entry: GroupResources, place: Place) -> Iterator[Finding]:
    streams = sorted(_STREAMS & set(entry.resources))
    if streams and entry.group == "" and "create" in rule.verbs and "get" not in rule.verbs:
        message = (
            f"{', '.join(streams)}: clients that use WebSockets, as kubectl does since 1.31, send these with verb get; "
            "the rule sees create only"
        )
        yield place.finding("exec-by-get", message, "add get to verbs")


# -- users -----------------------------------------------------------------------------------------------------------

_SERVICE_ACCOUNT = "system:serviceaccount:"
_SYSTEM_USERS = frozenset(
    {
        "system:admin",
        "system:anonymous",
        "system:apiserver",
        "system:kube-controller-manager",
        "system:kube-proxy",
        "system:kube-scheduler",
    }
)
_SYSTEM_GROUPS = frozenset(
    {
        "system:authenticated",
        "system:bootstrappers",
        "system:masters",
        "system:monitoring",
        "system:nodes",
        "system:serviceaccounts",
        "system:unauthenticated",
    }
)


def _users(rule: Rule, place: Place) -> Iterator[Finding]:
    for index, user in enumerate(rule.users):
        at = place.at("users", index)
        if "*" in user:
            yield at.finding("user-wildcard", _no_wildcard(user, "user"), _user_wildcard_fix(user))
        elif user in _SYSTEM_GROUPS or user.startswith("system:serviceaccounts:"):
            message = f"{user} is a group; no user has this name"
            yield at.finding("group-as-user", message, f"move it to userGroups: [{_yaml(user)}]")
        elif user.startswith(_SERVICE_ACCOUNT) and user.count(":") != 3:
            message = f"{user!r} is no service account: their names are system:serviceaccount:NAMESPACE:NAME"
            namespace = user.removeprefix(_SERVICE_ACCOUNT).rstrip(":")
            fix = f"write {_SERVICE_ACCOUNT}{namespace or 'NAMESPACE'}:NAME"
            if namespace and ":" not in namespace:
                fix += f", or userGroups: [{_yaml(f'system:serviceaccounts:{namespace}')}] for all of the namespace"
            yield at.finding("impossible-user", message, fix)
        elif user in {"", "system:node:"}:
            fix = "userGroups: [system:nodes]" if user else "name a user, or remove users"
            yield at.finding("impossible-user", f"no user is called {user!r}", f"write {fix}" if user else fix)
        elif _differs_in_case(user, _SYSTEM_USERS | _SYSTEM_GROUPS):
            message = f"{user!r}: users are compared exactly, and those of Kubernetes are lower case"
            yield at.finding("impossible-user", message, f"write {user.lower()}")
    for index, group in enumerate(rule.user_groups):
        at = place.at("userGroups", index)
        if "*" in group:
            fix = "name the groups, or remove userGroups"
            if group == "*":
                fix = "remove userGroups, or write system:authenticated"
            elif group.startswith("system:serviceaccounts"):
                fix = "write system:serviceaccounts for those of all namespaces"
            yield at.finding("user-wildcard", _no_wildcard(group, "group"), fix)
        elif group in _SYSTEM_USERS or group.startswith((_SERVICE_ACCOUNT, "system:node:")):
            message = f"{group} is a user; no group has this name"
            yield at.finding("group-as-user", message, f"move it to users: [{_yaml(group)}]")
        elif not group or _differs_in_case(group, _SYSTEM_USERS | _SYSTEM_GROUPS):
            message = f"no group is called {group!r}"
            yield at.finding("impossible-user", message, f"write {group.lower()}" if group else "remove it")


def _no_wildcard(name: str, what: str) -> str:
    return f"{name!r}: * is no wildcard here, and no {what} has it in its name"


def _user_wildcard_fix(user: str) -> str:
    if user.startswith("system:node:"):
        return "write userGroups: [system:nodes]"
    if user == "*":
        return "remove users, or write userGroups: [system:authenticated]"
    if user.startswith(_SERVICE_ACCOUNT):
        namespace = user.removeprefix(_SERVICE_ACCOUNT).split(":")[0]
        group = "system:serviceaccounts" + ("" if "*" in namespace else f":{namespace}")
        return f"write userGroups: [{_yaml(group)}]"
    return "name the users, or use userGroups"


def _differs_in_case(name: str, known: frozenset[str]) -> bool:
    lower = name.lower()
    return name != lower and (lower in known or lower.startswith((_SERVICE_ACCOUNT, "system:node:")))


def _yaml(text: str) -> str:
    """The text inside a YAML flow list."""
    return f'"{text}"' if ":" in text else text


# -- namespaces ------------------------------------------------------------------------------------------------------


def _namespaces(rule: Rule, place: Place, kinds: Kinds) -> Iterator[Finding]:
    for index, namespace in enumerate(rule.namespaces):
        at = place.at("namespaces", index)
        if "*" in namespace:
            message = f"{namespace!r}: * is no wildcard here, and no namespace has it in its name"
            fix = "remove namespaces to match all" if namespace == "*" else "name the namespaces"
            yield at.finding("impossible-namespace", message, fix)
        elif namespace and (not _DNS_LABEL.fullmatch(namespace) or len(namespace) > 63):
            message = f"no namespace can be called {namespace!r}"
            lower = namespace.lower()
            fix = f"write {lower}" if _DNS_LABEL.fullmatch(lower) else "correct it"
            yield at.finding("impossible-namespace", message, fix)
    if rule.namespaces and rule.resources:
        yield from _scope_of_resources(rule, place, kinds)


def _scope_of_resources(rule: Rule, place: Place, kinds: Kinds) -> Iterator[Finding]:
    for position, entry in enumerate(rule.resources):
        for index, item in enumerate(entry.resources):
            name = item.partition("/")[0]
            kind = kinds.get(entry.group, name)
            if kind is None:
                continue
            at = place.at("resources", position, "resources", index)
            if (entry.group, name) == ("", "namespaces"):
                if "" in rule.namespaces and not _only_collections(rule.verbs):
                    message = (
                        'a request for one Namespace object carries its name as namespace: namespaces [""] matches '
                        "create, list and watch of namespaces, and no other verb"
                    )
                    fix = "make a rule of its own for them, without namespaces"
                    yield at.finding("namespace-objects", message, fix)
            elif not kind.namespaced and "" not in rule.namespaces:
                message = f"{name} are in no namespace, so requests for them never match namespaces of this rule"
                yield at.finding("cluster-scoped", message, 'move it to a rule without namespaces, or add ""')


def _only_collections(verbs: Sequence[str]) -> bool:
    return bool(verbs) and set(verbs) <= {"create", "list", "watch"}


# -- paths -----------------------------------------------------------------------------------------------------------

_RESOURCE_PATH = re.compile(r"/api/[^/*?]+/[^*?].*|/apis/[^/*?]+/[^/*?]+/[^*?].*")


def _urls(rule: Rule, place: Place) -> Iterator[Finding]:
    for index, url in enumerate(rule.non_resource_urls):
        at = place.at("nonResourceURLs", index)
        if "?" in url:
            message = f"{url} matches nothing: paths are compared without the query"
            yield at.finding("url-query", message, f"write {url.partition('?')[0]}")
        elif _RESOURCE_PATH.fullmatch(url):
            message = f"{url} is the path of a resource; nonResourceURLs match other paths only"
            yield at.finding("resource-path", message, "use resources, with group and namespaces, instead")


# -- repeats ---------------------------------------------------------------------------------------------------------


def _repeats(rule: Rule, place: Place) -> Iterator[Finding]:
    lists = [
        (place.at("users"), rule.users),
        (place.at("userGroups"), rule.user_groups),
        (place.at("verbs"), rule.verbs),
        (place.at("namespaces"), rule.namespaces),
        (place.at("nonResourceURLs"), rule.non_resource_urls),
    ]
    for position, entry in enumerate(rule.resources):
        lists.append((place.at("resources", position, "resources"), entry.resources))
        lists.append((place.at("resources", position, "resourceNames"), entry.resource_names))
    for at, values in lists:
        seen: set[str] = set()
        everything = "*" in values
        for index, value in enumerate(values):
            if value in seen:
                yield at.at(index).finding("repeated-value", f"{value!r} stands twice", "remove one")
            elif everything and value != "*" and at.path[-1] in {"resources", "nonResourceURLs"}:
                yield at.at(index).finding("repeated-value", f"{value!r} is included in *", "remove one of them")
            seen.add(value)
