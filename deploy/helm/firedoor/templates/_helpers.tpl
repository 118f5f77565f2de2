{{- define "firedoor.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "firedoor.broker" -}}
{{ include "firedoor.name" . }}-broker
{{- end }}

{{- define "firedoor.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "firedoor.webhook" -}}
{{ .Release.Namespace }}-{{ include "firedoor.name" . }}-injector
{{- end }}

{{- /* The name is what `firedoor segment export` opens the way to. */ -}}
{{- define "firedoor.selector" -}}
app.kubernetes.io/name: firedoor-broker
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: broker
{{- end }}

{{- define "firedoor.release" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "firedoor.labels" -}}
{{ include "firedoor.selector" . }}
{{ include "firedoor.release" . }}
{{- end }}

{{- /* The sidecars of nodes. */ -}}
{{- define "firedoor.node" -}}
{{ include "firedoor.name" . }}-node
{{- end }}

{{- define "firedoor.nodeSelector" -}}
app.kubernetes.io/name: firedoor-node
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end }}

{{- define "firedoor.nodeLabels" -}}
{{ include "firedoor.nodeSelector" . }}
{{ include "firedoor.release" . }}
{{- end }}

{{- /* Their sidecar.yaml. The admin socket is not where pods see it. */ -}}
{{- define "firedoor.nodeConfig" -}}
{{- $own := dict "trust_domain" .Values.trustDomain "broker" (list (include "firedoor.reached" .)) "bootstrap_bundle" "/etc/firedoor/bundle/bundle.json" }}
{{- $own = merge $own (dict "k8s_psat" (dict "cluster" .Values.broker.cluster "token" "/var/run/secrets/tokens/firedoor") "k8s_workloads" (dict "pods_from" "api-server")) }}
{{- $own = merge $own (dict "auth_socket" "/run/firedoor/node/auth.sock" "admin_socket" "/run/firedoor/admin/admin.sock" "data_dir" "/var/lib/firedoor/sidecar") }}
{{- toYaml (mergeOverwrite (dict "log" (dict "format" "json")) (deepCopy .Values.nodes.config) $own) }}
{{- end }}

{{- /* Where sidecars find brokers. */ -}}
{{- define "firedoor.reached" -}}
{{ include "firedoor.broker" . }}.{{ .Release.Namespace }}.svc:8081
{{- end }}

{{- /* Whether brokers are asked about pods: not empty, then. */ -}}
{{- define "firedoor.asked" -}}
{{- if and .Values.injector.enabled (eq .Values.injector.policy "webhook") }}yes{{ end }}
{{- end }}

{{- /* A manifest of deploy/kubernetes, as this release's: its file, and what there is. */ -}}
{{- define "firedoor.delivered" -}}
{{- $root := index . 1 }}
{{- $text := $root.Files.Get (index . 0) | replace "firedoor-system" $root.Release.Namespace }}
{{- $text = $text | replace "resourceNames: [firedoor-bundle]" (printf "resourceNames: [%s]" $root.Values.injector.bundleConfigMap) }}
{{- range splitList "\n---\n" ($text | replace "name: firedoor-broker" (printf "name: %s" (include "firedoor.broker" $root))) }}
{{- $one := fromYaml . }}
{{- $_ := set $one.metadata "labels" (fromYaml (include "firedoor.labels" $root)) }}
---
{{ toYaml $one }}
{{- end }}
{{- end }}

{{- /* broker.yaml: what the chart decides, and over it nothing. */ -}}
{{- define "firedoor.brokerConfig" -}}
{{- $own := dict "trust_domain" .Values.trustDomain "listen" "0.0.0.0:8081" "metrics" "0.0.0.0:9090" "metrics_for_all" true }}
{{- if .Values.broker.segments }}{{ $_ := set $own "segments" "/etc/firedoor/segments" }}{{ end }}
{{- with .Values.broker.database }}{{ $_ := set $own "database" . }}{{ end }}
{{- if .Values.broker.databaseSecret }}{{ $_ := set $own "database_password_file" "/etc/firedoor/database/password" }}{{ end }}
{{- if .Values.broker.passphraseSecret }}{{ $_ := set $own "key_passphrase_file" "/etc/firedoor/passphrase/passphrase" }}{{ end }}
{{- if .Values.broker.bundleEndpoint }}{{ $_ := set $own "bundle_endpoint" (dict "listen" "0.0.0.0:8443") }}{{ end }}
{{- with .Values.broker.cluster }}{{ $_ := set $own "k8s_pod" (dict "clusters" (list (dict "name" .))) }}{{ end }}
{{- if .Values.nodes.enabled }}
{{- $agents := dict "name" .Values.broker.cluster "service_accounts" (list (printf "%s:%s" .Values.nodes.namespace (include "firedoor.node" .))) }}
{{- with .Values.nodes.nodeLabels }}{{ $_ := set $agents "node_labels" . }}{{ end }}
{{- $_ := set $own "k8s_psat" (dict "clusters" (list $agents)) }}
{{- end }}
{{- if .Values.broker.policyFromCluster }}{{ $_ := set $own "kubernetes_policy" (dict "cluster" .Values.broker.cluster) }}{{ end }}
{{- if .Values.controllers.enabled }}
{{- $follow := dict "cluster" .Values.broker.cluster "namespace" .Release.Namespace }}
{{- if and .Values.controllers.config.trust_bundle (ne .Values.injector.bundleConfigMap "firedoor-bundle") }}
{{- $_ := set $follow "bundle_config_map" .Values.injector.bundleConfigMap }}
{{- end }}
{{- $_ := set $own "kubernetes_controllers" (merge $follow .Values.controllers.config) }}
{{- end }}
{{- if include "firedoor.asked" . }}
{{- $service := printf "%s-injector.%s.svc" (include "firedoor.name" .) .Release.Namespace }}
{{- $injector := dict "listen" "0.0.0.0:9443" "names" (list $service) "cluster" .Values.broker.cluster "image" (include "firedoor.image" .) "broker" (list (include "firedoor.reached" .)) }}
{{- $injector = merge $injector (dict "webhook" (include "firedoor.webhook" .) "uid" .Values.injector.uid "bundle_config_map" .Values.injector.bundleConfigMap "strict_users" .Values.injector.strictUsers) }}
{{- with .Values.injector.acceptedImages }}{{ $_ := set $injector "accepted_images" . }}{{ end }}
{{- $_ := set $own "injector" $injector }}
{{- end }}
{{- $log := dict "log" (dict "format" "json") }}
{{- toYaml (mergeOverwrite $log .Values.broker.config $own) }}
{{- end }}
