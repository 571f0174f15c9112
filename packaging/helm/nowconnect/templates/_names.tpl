{{- define "nowconnect.name" -}}
{{- if contains "nowconnect" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-nowconnect" (.Release.Name | trunc 29) }}{{ end }}
{{- end }}

{{- /* Labels of a part: (list . "hub") */ -}}
{{- define "nowconnect.selector" -}}
app.kubernetes.io/name: nowconnect
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "nowconnect.labels" -}}
{{ include "nowconnect.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "nowconnect.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* What is the same for every pod; "restricted" of the Pod Security Standards. */ -}}
{{- define "nowconnect.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  # Secrets are handed to this group.
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "nowconnect.container" -}}
image: {{ include "nowconnect.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- define "nowconnect.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: {{ . }} }
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /readyz, port: {{ . }} }
  periodSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /healthz, port: {{ . }} }
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}

{{- define "nowconnect.hub" -}}
{{ include "nowconnect.name" . }}-hub
{{- end }}

{{- define "nowconnect.agent" -}}
{{ include "nowconnect.name" . }}-agent
{{- end }}

{{- define "nowconnect.drain" -}}
{{ dig "limits" "drain_timeout_sec" 30 .Values.hub.config }}
{{- end }}
