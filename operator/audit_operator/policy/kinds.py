"""Kubernetes' own resources, Kubernetes 1.28 to 1.36: what a rule's ``resources`` can name on any cluster.

The table follows the discovery of a kube-apiserver 1.36.2 with every API and feature on (a test holds both equal), plus
what came and went since 1.28 and the Metrics API, which nearly every cluster serves. Custom resources are not in it;
discovery of a cluster gives a :class:`Kinds` of its own.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

Version = tuple[int, int]
"""A Kubernetes minor version, such as ``(1, 36)``."""

WRITES: Final = ("create", "update", "patch", "delete", "deletecollection")
READS: Final = ("get", "list", "watch")
RESOURCE_VERBS: Final = (*READS, *WRITES)
"""Every verb that the API server gives to a request for a resource it serves, exactly as rules must spell them."""


class Kind(msgspec.Struct, frozen=True):
    """A resource of an API server.

    ``since`` and ``until`` are its first and last minor version, None if that is outside 1.28 to 1.36.
    """

    group: str
    resource: str
    kind: str
    namespaced: bool
    subresources: frozenset[str] = frozenset()
    verbs: frozenset[str] = frozenset(RESOURCE_VERBS)
    short_names: tuple[str, ...] = ()
    since: Version | None = None
    until: Version | None = None

    @property
    def singular(self) -> str:
        return self.kind.lower()

    def served_by(self, server: Version) -> bool:
        """Whether an API server of this version can serve it, with all its features on."""
        return (self.since is None or self.since <= server) and (self.until is None or server <= self.until)


class Kinds:
    """Resources by group and name.

    ``complete``: nothing else is served (discovery of one cluster). Otherwise groups that are not in the table may
    exist too, as those of custom resources do.
    """

    def __init__(self, kinds: Iterable[Kind], *, complete: bool = False) -> None:
        self.complete = complete
        self.all = tuple(kinds)
        self.groups = frozenset(kind.group for kind in self.all)
        self._by_name = {(kind.group, kind.resource): kind for kind in self.all}

    def get(self, group: str, resource: str) -> Kind | None:
        """The resource, None if the table does not have it."""
        return self._by_name.get((group, resource))

    def named(self, resource: str) -> list[Kind]:
        """The resources of this plural name, in any group."""
        return [kind for kind in self.all if kind.resource == resource]

    def meant_by(self, word: str) -> list[Kind]:
        """The resources a person may mean by ``word``: plural, singular, kind or short name, in any case."""
        lower = word.lower()
        return [kind for kind in self.all if lower in (kind.resource, kind.singular, *kind.short_names)]


_CREATE_ONLY = frozenset({"create"})
_READ_ONLY = frozenset({"get", "list"})


def _kinds(group: str, namespaced: bool, *rows: str) -> list[Kind]:
    """Kinds from rows of ``kind plural[/subresource,…] [short name,…]``."""
    kinds = []
    for row in rows:
        kind, resource, *short = row.split()
        plural, _, subresources = resource.partition("/")
        kinds.append(
            Kind(
                group=group,
                resource=plural,
                kind=kind,
                namespaced=namespaced,
                subresources=frozenset(subresources.split(",")) - {""},
                short_names=tuple(short[0].split(",")) if short else (),
            )
        )
    return kinds


def _with(kinds: list[Kind], **changes: object) -> list[Kind]:
    return [msgspec.structs.replace(kind, **changes) for kind in kinds]


KINDS: Final[tuple[Kind, ...]] = (
    *_kinds(
        "",
        True,
        "ConfigMap configmaps cm",
        "Endpoints endpoints ep",
        "Event events ev",
        "LimitRange limitranges limits",
        "PersistentVolumeClaim persistentvolumeclaims/status pvc",
        "Pod pods/attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,resize,status po",
        "PodTemplate podtemplates",
        "ReplicationController replicationcontrollers/scale,status rc",
        "ResourceQuota resourcequotas/status quota",
        "Secret secrets",
        "Service services/proxy,status svc",
        "ServiceAccount serviceaccounts/token sa",
    ),
    *_kinds("", False, "Node nodes/proxy,status no", "PersistentVolume persistentvolumes/status pv"),
    *_with(
        _kinds("", False, "Namespace namespaces/finalize,status ns"),
        verbs=frozenset(RESOURCE_VERBS) - {"deletecollection"},
    ),
    *_with(_kinds("", True, "Binding bindings"), verbs=_CREATE_ONLY),
    *_with(_kinds("", False, "ComponentStatus componentstatuses cs"), verbs=_READ_ONLY),
    *_kinds(
        "admissionregistration.k8s.io",
        False,
        "MutatingWebhookConfiguration mutatingwebhookconfigurations",
        "ValidatingAdmissionPolicy validatingadmissionpolicies/status",
        "ValidatingAdmissionPolicyBinding validatingadmissionpolicybindings",
        "ValidatingWebhookConfiguration validatingwebhookconfigurations",
    ),
    *_with(
        _kinds(
            "admissionregistration.k8s.io",
            False,
            "MutatingAdmissionPolicy mutatingadmissionpolicies",
            "MutatingAdmissionPolicyBinding mutatingadmissionpolicybindings",
        ),
        since=(1, 32),
    ),
    *_kinds("apiextensions.k8s.io", False, "CustomResourceDefinition customresourcedefinitions/status crd,crds"),
    *_kinds("apiregistration.k8s.io", False, "APIService apiservices/status"),
    *_kinds(
        "apps",
        True,
        "ControllerRevision controllerrevisions",
        "DaemonSet daemonsets/status ds",
        "Deployment deployments/scale,status deploy",
        "ReplicaSet replicasets/scale,status rs",
        "StatefulSet statefulsets/scale,status sts",
    ),
    *_with(
        _kinds(
            "authentication.k8s.io",
            False,
            "SelfSubjectReview selfsubjectreviews",
            "TokenReview tokenreviews",
        ),
        verbs=_CREATE_ONLY,
    ),
    *_with(
        _kinds(
            "authorization.k8s.io",
            False,
            "SelfSubjectAccessReview selfsubjectaccessreviews",
            "SelfSubjectRulesReview selfsubjectrulesreviews",
            "SubjectAccessReview subjectaccessreviews",
        ),
        verbs=_CREATE_ONLY,
    ),
    *_with(
        _kinds("authorization.k8s.io", True, "LocalSubjectAccessReview localsubjectaccessreviews"),
        verbs=_CREATE_ONLY,
    ),
    *_kinds("autoscaling", True, "HorizontalPodAutoscaler horizontalpodautoscalers/status hpa"),
    *_kinds("batch", True, "CronJob cronjobs/status cj", "Job jobs/status"),
    *_kinds(
        "certificates.k8s.io",
        False,
        "CertificateSigningRequest certificatesigningrequests/approval,status csr",
        "ClusterTrustBundle clustertrustbundles",
    ),
    *_with(
        _kinds("certificates.k8s.io", True, "PodCertificateRequest podcertificaterequests/status"),
        since=(1, 34),
    ),
    *_kinds("coordination.k8s.io", True, "Lease leases"),
    *_with(_kinds("coordination.k8s.io", True, "LeaseCandidate leasecandidates"), since=(1, 31)),
    *_kinds("discovery.k8s.io", True, "EndpointSlice endpointslices"),
    *_kinds("events.k8s.io", True, "Event events ev"),
    *_kinds(
        "flowcontrol.apiserver.k8s.io",
        False,
        "FlowSchema flowschemas/status",
        "PriorityLevelConfiguration prioritylevelconfigurations/status",
    ),
    *_kinds("internal.apiserver.k8s.io", False, "StorageVersion storageversions/status"),
    *_with(_kinds("metrics.k8s.io", False, "NodeMetrics nodes"), verbs=_READ_ONLY),
    *_with(_kinds("metrics.k8s.io", True, "PodMetrics pods"), verbs=_READ_ONLY),
    *_kinds(
        "networking.k8s.io",
        True,
        "Ingress ingresses/status ing",
        "NetworkPolicy networkpolicies netpol",
    ),
    *_kinds("networking.k8s.io", False, "IngressClass ingressclasses", "IPAddress ipaddresses ip"),
    *_with(_kinds("networking.k8s.io", False, "ServiceCIDR servicecidrs/status"), since=(1, 29)),
    *_with(_kinds("networking.k8s.io", False, "ClusterCIDR clustercidrs cc"), until=(1, 28)),
    *_kinds("node.k8s.io", False, "RuntimeClass runtimeclasses"),
    *_kinds("policy", True, "PodDisruptionBudget poddisruptionbudgets/status pdb"),
    *_kinds(
        "rbac.authorization.k8s.io",
        False,
        "ClusterRole clusterroles",
        "ClusterRoleBinding clusterrolebindings",
    ),
    *_kinds("rbac.authorization.k8s.io", True, "Role roles", "RoleBinding rolebindings"),
    *_kinds(
        "resource.k8s.io",
        True,
        "ResourceClaim resourceclaims/status",
        "ResourceClaimTemplate resourceclaimtemplates",
    ),
    *_with(_kinds("resource.k8s.io", False, "DeviceClass deviceclasses"), since=(1, 31)),
    *_with(_kinds("resource.k8s.io", False, "DeviceTaintRule devicetaintrules/status"), since=(1, 33)),
    *_with(_kinds("resource.k8s.io", False, "ResourceSlice resourceslices"), since=(1, 30)),
    *_with(
        _kinds("resource.k8s.io", False, "ResourcePoolStatusRequest resourcepoolstatusrequests/status"),
        since=(1, 36),
    ),
    *_with(_kinds("resource.k8s.io", True, "PodSchedulingContext podschedulingcontexts/status"), until=(1, 31)),
    *_with(_kinds("resource.k8s.io", False, "ResourceClass resourceclasses"), until=(1, 30)),
    *_with(
        _kinds(
            "resource.k8s.io",
            True,
            "ResourceClaimParameters resourceclaimparameters",
            "ResourceClassParameters resourceclassparameters",
        ),
        since=(1, 30),
        until=(1, 30),
    ),
    *_kinds("scheduling.k8s.io", False, "PriorityClass priorityclasses pc"),
    *_with(_kinds("scheduling.k8s.io", True, "Workload workloads"), since=(1, 35)),
    *_with(_kinds("scheduling.k8s.io", True, "PodGroup podgroups/status"), since=(1, 36)),
    *_kinds(
        "storage.k8s.io",
        False,
        "CSIDriver csidrivers",
        "CSINode csinodes",
        "StorageClass storageclasses sc",
        "VolumeAttachment volumeattachments/status",
    ),
    *_kinds("storage.k8s.io", True, "CSIStorageCapacity csistoragecapacities"),
    *_with(_kinds("storage.k8s.io", False, "VolumeAttributesClass volumeattributesclasses vac"), since=(1, 29)),
    *_with(
        _kinds("storagemigration.k8s.io", False, "StorageVersionMigration storageversionmigrations/status"),
        since=(1, 30),
    ),
)
"""Every resource of Kubernetes 1.28 to 1.36."""

BUILT_IN: Final = Kinds(KINDS)
"""The table for any cluster: groups that are not in it may be those of custom resources."""

GROUPS: Final = tuple(sorted({kind.group for kind in KINDS} | {"custom.metrics.k8s.io", "external.metrics.k8s.io"}))
"""Every API group of Kubernetes itself and of its metrics adapters, the core group ``""`` first."""

REMOVED_GROUPS: Final = {
    "extensions": "apps, networking.k8s.io or policy",
    "auditregistration.k8s.io": "",
    "settings.k8s.io": "",
}
"""Groups that no API server from 1.28 on serves, and where their resources went."""

AUTHORIZATION_ONLY: Final = frozenset(
    {f"nodes/{part}" for part in ("checkpoint", "configz", "healthz", "log", "metrics", "pods", "spec", "stats")}
)
"""Subresources that exist in RBAC rules only (the kubelet's own API asks for them): no request to an API server."""

AUTHORIZATION_VERBS: Final = frozenset({"approve", "attest", "bind", "escalate", "impersonate", "sign", "use"})
"""Verbs that exist in RBAC rules only."""
