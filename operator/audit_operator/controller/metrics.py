"""What the operator counts and measures of itself, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram, Info

PASSES = Counter("audit_operator_reconciles", "Passes over everything, by how they ended.", ["result"])
PASS_SECONDS = Histogram(
    "audit_operator_reconcile_seconds",
    "Duration of a pass over everything.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LAST_SUCCESS = Gauge("audit_operator_last_successful_reconcile_timestamp_seconds", "When the last pass went well.")
REQUESTS = Counter("audit_operator_api_requests", "Requests answered by the API server.", ["verb", "resource"])
REQUEST_ERRORS = Counter(
    "audit_operator_api_request_errors",
    "Requests that failed, by HTTP status; 0: no answer.",
    ["verb", "resource", "status"],
)
REPAIRS = Counter("audit_operator_repairs", "Objects of ours that somebody else had changed or deleted.", ["kind"])
RESOURCES = Gauge("audit_operator_resources", "Custom resources by what their condition Ready says.", ["kind", "ready"])
CERTIFICATE_EXPIRY = Gauge(
    "audit_operator_certificate_expiry_timestamp_seconds", "When a certificate ends.", ["certificate"]
)
RECEIVERS = Gauge("audit_operator_receivers", "Receivers, by whether they answer the operator.", ["state"])
PUSHES = Counter("audit_operator_program_pushes", "Programs pushed to receivers, by what became of them.", ["result"])
LEADER = Gauge("audit_operator_leader", "1 on the replica that writes.")
BUILD = Info("audit_operator_build", "The operator's version.")
