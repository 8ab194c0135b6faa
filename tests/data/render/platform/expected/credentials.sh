#!/bin/sh
# Copies what AuditSinks refer to into the Secret that receivers read, audit-receiver-credentials. Needs kubectl.
set -eu
umask 077
namespace=audit-system
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

copy() { # kind namespace name key file
  case $1 in secret) decode=' | base64decode' ;; *) decode= ;; esac
  kubectl -n "$2" get "$1" "$3" -o go-template="{{index .data \"$4\"$decode}}" >"$folder/$5"
}
copy configmap audit-system siem-ca ca.crt configmap_audit-system_siem-ca_ca.crt
copy secret audit-system siem api-key secret_audit-system_siem_api-key
copy secret audit-system siem-client tls.crt secret_audit-system_siem-client_tls.crt
copy secret audit-system siem-client tls.key secret_audit-system_siem-client_tls.key
copy secret shop loki password secret_shop_loki_password

# The key of redactions that hash: equal values stay recognizable only as long as it stays.
template='{{with .data}}{{with index . "hash-key"}}{{. | base64decode}}{{end}}{{end}}'
kubectl -n "$namespace" get secret audit-receiver-credentials --ignore-not-found -o go-template="$template" >"$folder/hash-key"
[ -s "$folder/hash-key" ] || openssl rand -hex 32 >"$folder/hash-key"

kubectl -n "$namespace" create secret generic audit-receiver-credentials --from-file="$folder" --dry-run=client -o yaml |
  kubectl -n "$namespace" apply --server-side -f -
