{{/* There is one operator in a cluster: its objects have one name. A second release fails on it and changes nothing. */}}
{{- define "audit-operator.name" -}}
audit-operator
{{- end }}

{{/* What tells the operator's pods from others. Never changes: selectors of workloads are immutable. */}}
{{- define "audit-operator.selector" -}}
app.kubernetes.io/name: audit-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{/* metadata.labels and, if there are any, metadata.annotations. Call with (list . MORE_ANNOTATIONS). */}}
{{- define "audit-operator.metadata" -}}
{{- $root := index . 0 -}}
{{- $own := fromYaml (include "audit-operator.selector" $root) -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "audit-operator" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
labels:
  {{- merge $own $root.Values.labels | toYaml | nindent 2 }}
{{- with merge (dict) (index . 1) $root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The image; a digest decides. */}}
{{- define "audit-operator.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* "true" if the operator may read Secrets and ConfigMaps of all namespaces. */}}
{{- define "audit-operator.tenantCredentials" -}}
{{- if kindIs "bool" .Values.rbac.tenantCredentials -}}
{{ .Values.rbac.tenantCredentials }}
{{- else -}}
{{ and .Values.backend.create (dig "tenants" "enabled" false .Values.backend.spec) }}
{{- end -}}
{{- end }}
