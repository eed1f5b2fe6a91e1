{{- define "finetune.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "finetune.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune.labels" -}}
{{ include "finetune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Labels that are given besides the chart's own. With one of those the object would have a key twice. */ -}}
{{- define "finetune.moreLabels" -}}
{{- range $key, $_ := .labels -}}
{{- if hasKey ($.own | fromYaml) $key -}}
{{- fail (printf "%s: %s is the chart's own label; take it out" $.value $key) -}}
{{- end -}}
{{- end -}}
{{- toYaml .labels -}}
{{- end -}}

{{- /* Names of what belongs to the whole cluster: several namespaced releases may have the same name. */ -}}
{{- define "finetune.clusterName" -}}
{{- include "finetune.fullname" . -}}{{- if .Values.watchNamespace -}}-{{ .Release.Namespace }}{{- end -}}
{{- end -}}

{{- define "finetune.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "finetune.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount, because serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "finetune.image" -}}
{{- $image := .image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "finetune.trainerImage" -}}
{{- include "finetune.image" (dict "image" .Values.trainer.image "root" .) -}}
{{- end -}}

{{- define "finetune.progressHost" -}}
{{- include "finetune.fullname" . -}}-progress.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "finetune.progressUrl" -}}
{{- default (printf "https://%s:%d" (include "finetune.progressHost" .) (int .Values.progress.port)) .Values.progress.url -}}
{{- end -}}

{{- define "finetune.tlsSecret" -}}
{{- default (printf "%s-tls" (include "finetune.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{- /* Whether anything is served over TLS: `true`, or empty. */ -}}
{{- define "finetune.tls" -}}
{{- if or .Values.progress.enabled .Values.metrics.secure -}}true{{- end -}}
{{- end -}}

{{- define "finetune.metricsHost" -}}
{{- include "finetune.fullname" . -}}-metrics.{{ .Release.Namespace }}.svc
{{- end -}}

{{- /* The DNS names of the certificate, a JSON list. */ -}}
{{- define "finetune.dnsNames" -}}
{{- $hosts := list -}}
{{- if .Values.progress.enabled -}}{{- $hosts = append $hosts (include "finetune.progressHost" .) -}}{{- end -}}
{{- if .Values.metrics.secure -}}{{- $hosts = append $hosts (include "finetune.metricsHost" .) -}}{{- end -}}
{{- $names := list -}}
{{- range $host := $hosts -}}
{{- $names = concat $names (list $host (printf "%s.cluster.local" $host) (trimSuffix ".svc" $host)) -}}
{{- end -}}
{{- $given := include "finetune.givenHost" . -}}
{{- if and $given (not (include "finetune.isAddress" $given)) -}}
{{- $names = append $names $given | uniq -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{- define "finetune.ipAddresses" -}}
{{- $given := include "finetune.givenHost" . -}}
{{- toJson (ternary (list $given) list (include "finetune.isAddress" $given | eq "true")) -}}
{{- end -}}

{{- define "finetune.givenHost" -}}
{{- with .Values.progress.url -}}
{{- regexReplaceAll ":[0-9]+$" (get (urlParse .) "host") "" | trimPrefix "[" | trimSuffix "]" -}}
{{- end -}}
{{- end -}}

{{- define "finetune.isAddress" -}}
{{- if regexMatch "^[0-9.]+$|:" . -}}true{{- end -}}
{{- end -}}

{{- define "finetune.namespaceSelector" -}}
{{- if . -}}
matchLabels:
  {{- toYaml . | nindent 2 }}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{- define "finetune.certificateNames" -}}
{{- join "," (concat (include "finetune.dnsNames" . | fromJsonArray) (include "finetune.ipAddresses" . | fromJsonArray)) -}}
{{- end -}}

{{- /* A list of resources without those that are empty. */ -}}
{{- define "finetune.resourceList" -}}
{{- $list := dict -}}
{{- range $name, $value := . -}}
{{- if $value -}}{{- $_ := set $list $name $value -}}{{- end -}}
{{- end -}}
{{- if $list -}}{{- toYaml $list -}}{{- end -}}
{{- end -}}

{{- /* Where `progress.url` leads when it is not to the Service, and so not to the operator's pods: host and port. */ -}}
{{- define "finetune.progressDetour" -}}
{{- if and .Values.progress.enabled .Values.progress.url -}}
{{- $host := include "finetune.givenHost" . -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" (get (urlParse .Values.progress.url) "host")) | default "443" -}}
{{- $service := include "finetune.progressHost" . -}}
{{- $ours := or (eq $host .Values.progress.service.clusterIP $service (trimSuffix ".svc" $service)) (hasPrefix (printf "%s." $service) $host) -}}
{{- if not (and $ours (eq $port (toString .Values.progress.port))) -}}
{{- printf "%s, port %s, and not to the Service, port %d" $host $port (int .Values.progress.port) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "finetune.dnsEgress" -}}
{{- $dns := .Values.networkPolicy.dns -}}
{{- if or $dns.namespaces $dns.cidrs -}}
- to:
    {{- range $dns.namespaces }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ . }}
    {{- end }}
    {{- range $dns.cidrs }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  ports:
    {{- range $dns.ports }}
    - port: {{ . }}
      protocol: UDP
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end -}}
{{- end -}}

{{- define "finetune.policyBinding" }}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "finetune.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
  {{- with .root.Values.admissionPolicy.namespaceLabels }}
  matchResources:
    namespaceSelector:
      matchLabels:
        {{- toYaml . | nindent 8 }}
  {{- end }}
{{- end -}}

{{- /* CEL: whether it has a label. */ -}}
{{- define "finetune.hasLabel" -}}
has({{ .of }}.metadata) && has({{ .of }}.metadata.labels) && '{{ .label }}' in {{ .of }}.metadata.labels
{{- end -}}

{{- /* CEL: the images of a pod or a pod's template. */ -}}
{{- define "finetune.imagesOf" -}}
{{- $lists := list -}}
{{- range $kind := list "containers" "initContainers" "ephemeralContainers" -}}
{{- $field := printf "%s.spec.%s" $ $kind -}}
{{- $lists = append $lists (printf "(has(%s) ? %s.map(container, container.image) : [])" $field $field) -}}
{{- end -}}
{{- join " + " $lists -}}
{{- end -}}

{{- /* What a policy says of images: allowed is what is listed, and what a training pod or its Job had before. */ -}}
{{- define "finetune.judgedImages" -}}
{{- $old := printf "oldObject%s" .pod -}}
variables:
  - name: former
    expression: >-
      oldObject != null && {{ include "finetune.hasLabel" (dict "of" $old "label" .label) }}
      ? {{ include "finetune.imagesOf" $old }} : []
  - name: refused
    expression: >-
      ({{ include "finetune.imagesOf" (printf "object%s" .pod) }})
      .filter(image, !(image in {{ .allowed }}) && !(image in variables.former))
validations:
  - expression: variables.refused.size() == 0
    messageExpression: "'a pod labelled as a training pod may not run ' + variables.refused.join(', ')"
    reason: Forbidden
{{- end -}}

{{- /* Rules of the roles that ask the API server who speaks, and what that user may. */ -}}
{{- define "finetune.reviewRules" -}}
{{- if include "finetune.tls" . -}}
# The tokens that training pods report their progress with, and that Prometheus scrapes with.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end }}
{{- if .Values.metrics.secure }}
# Whether the token's user may get the metrics.
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
{{- end }}
{{- end -}}
