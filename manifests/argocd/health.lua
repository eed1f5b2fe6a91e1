-- Health of a FineTuneJob for Argo CD: the value of `resource.customizations.health.finetune-operator.io_FineTuneJob` in the
-- ConfigMap argocd-cm (docs/gitops.md). It uses no library, because Argo CD loads none.
local health = { status = "Progressing", message = "the operator has not seen the job yet" }

local status = obj.status
if status == nil or status.conditions == nil then
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local function holds(type)
  return conditions[type] ~= nil and conditions[type].status == "True"
end

local function words(type)
  local condition = conditions[type]
  if condition.message == nil or condition.message == "" then
    return condition.reason
  end
  return condition.reason .. ": " .. condition.message
end

if obj.metadata.generation ~= nil and status.observedGeneration ~= obj.metadata.generation then
  health.message = "the operator has not seen the change yet"
elseif holds("Failed") then
  health.status = "Degraded"
  health.message = words("Failed")
elseif holds("Complete") then
  health.status = "Healthy"
  health.message = words("Complete")
elseif holds("Suspended") then
  health.status = "Suspended"
  health.message = words("Suspended")
elseif holds("Running") then
  health.message = words("Running")
  local progress = status.progress
  if progress ~= nil and progress.totalSteps ~= nil then
    health.message = "step " .. tostring(progress.step) .. " of " .. tostring(progress.totalSteps)
    if progress.loss ~= nil then
      health.message = health.message .. ", loss " .. tostring(progress.loss)
    end
  end
elseif holds("Queued") then
  health.message = words("Queued")
elseif holds("Reconciling") then
  health.message = words("Reconciling")
end

return health
