#!/bin/sh
# Copies what AuditSinks refer to into the Secrets that receivers read, audit-receiver-credentials and audit-receiver-credentials-02. Needs kubectl.
set -eu
umask 077
namespace=audit-system
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

secret() { # name
  secret=$1
  mkdir "$folder/$secret"
}

copy() { # kind namespace name key file
  case $1 in secret) decode=' | base64decode' ;; *) decode= ;; esac
  kubectl -n "$2" get "$1" "$3" -o go-template="{{index .data \"$4\"$decode}}" >"$folder/$secret/$5"
}

apply() {
  kubectl -n "$namespace" create secret generic "$secret" --from-file="$folder/$secret" --dry-run=client -o yaml |
    kubectl -n "$namespace" apply --server-side -f -
}

secret audit-receiver-credentials
copy configmap audit-system siem-ca ca.crt configmap_audit-system_siem-ca_ca.crt
copy secret audit-system siem api-key secret_audit-system_siem_api-key
copy secret audit-system siem-client tls.crt secret_audit-system_siem-client_tls.crt
copy secret audit-system siem-client tls.key secret_audit-system_siem-client_tls.key
# The key of redactions that hash: equal values stay recognizable only as long as it stays.
template='{{with .data}}{{with index . "hash-key"}}{{. | base64decode}}{{end}}{{end}}'
kubectl -n "$namespace" get secret "$secret" --ignore-not-found -o go-template="$template" >"$folder/$secret/hash-key"
[ -s "$folder/$secret/hash-key" ] || openssl rand -hex 32 >"$folder/$secret/hash-key"
apply

secret audit-receiver-credentials-02
copy secret shop loki password secret_shop_loki_password
apply
