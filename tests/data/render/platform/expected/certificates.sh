#!/bin/sh
# Makes what receivers and API servers need to trust each other, for a first try: a CA, a certificate for the receivers,
# one for API servers. Where there is a CA already, let that one make them. Needs openssl.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p certificates
cd certificates

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=audit-operator \
  -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout ca.key -out ca.crt

issue() { # file common-name extended-key-usage subject-alternative-names
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1.key" -out "$1.csr"
  printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n' >"$1.ext"
  printf 'extendedKeyUsage=%s\nsubjectAltName=%s\n' "$3" "$4" >>"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.crt"
  rm "$1.csr" "$1.ext"
}
issue receiver audit-receiver serverAuth DNS:audit-receiver.audit-system.svc,DNS:audit-receiver.audit-system.svc.cluster.local,IP:10.96.0.77
issue client kube-apiserver clientAuth DNS:kube-apiserver

cp ca.crt client.crt client.key ../apiserver/
cat <<'EOF'
kubectl -n audit-system create secret generic audit-receiver-tls --type=kubernetes.io/tls \
  --from-file=ca.crt=certificates/ca.crt \
  --from-file=tls.crt=certificates/receiver.crt --from-file=tls.key=certificates/receiver.key
EOF
