"""launch/gke_jobset.yaml against the schemas and the rules of its controllers.

Kubernetes' schemas come with a package. JobSet's lie in its repository only;
`JOBSET` lists what its v1alpha2 has at version 0.10.
"""

import copy
import math
import pathlib
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from dollar_jax.programs import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "launch/gke_jobset.yaml").read_text()
DOCKERFILE = (ROOT / "launch/Dockerfile.tpu").read_text()
KUBERNETES = ("1.31", "1.35")  # 1.31 is the first with a stable failure policy


def fields(required=(), **properties):
  return {
    "type": "object",
    "required": list(required),
    "properties": properties,
    "additionalProperties": False,
  }


def items(schema, **more):
  return {"type": "array", "items": schema, **more}


NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
NUMBER = {"type": "integer", "minimum": 0}
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"]
REASONS += ["MaxFailedIndexesExceeded", "PodFailurePolicy"]
RULE = fields(
  ["action", "name"],
  action={"enum": ACTIONS},
  name={"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
  onJobFailureReasons=items({"enum": REASONS}, uniqueItems=True),
  onJobFailureMessagePatterns=items({"type": "string"}, uniqueItems=True),
  targetReplicatedJobs=items(NAME),
)
JOBSET = fields(
  ["apiVersion", "kind", "metadata", "spec"],
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=fields(
    ["name"],
    name=NAME,
    annotations={"additionalProperties": {"type": "string"}},
  ),
  spec=fields(
    ["replicatedJobs"],
    failurePolicy=fields(
      maxRestarts=NUMBER,
      restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
      rules=items(RULE),
    ),
    replicatedJobs=items(
      fields(["name", "template"], name=NAME, replicas=NUMBER, template={})
    ),
  ),
)


@pytest.fixture
def jobset():
  return yaml.safe_load(TEXT)


def check(jobset):
  """Raises what is wrong with a JobSet's fields and those of its Jobs."""
  jsonschema.validate(jobset, JOBSET)
  for replicated in jobset["spec"]["replicatedJobs"]:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
    job |= replicated["template"]
    for version in KUBERNETES:
      kubernetes_validate.validate(job, version, strict=True)


def parts(jobset):
  """The one replicated job, its Job, its pod and its container."""
  [replicated] = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  return replicated, job, pod, container


def test_it_has_the_fields_that_there_are(jobset):
  check(jobset)


@pytest.mark.parametrize(
  "path, value",
  [
    (["spec", "replicatedJob"], []),
    (["spec", "failurePolicy", "maxRestarts"], "5"),
    (["spec", "failurePolicy", "rules", 0, "action"], "Restart"),
    (["spec", "failurePolicy", "rules", 0, "onJobFailureReason"], []),
    (["spec", "replicatedJobs", 0, "replica"], 1),
    (["spec", "replicatedJobs", 0, "template", "spec", "backofLimit"], 0),
  ],
)
def test_the_check_sees_faults(jobset, path, value):
  node = jobset
  for step in path[:-1]:
    node = node[step]
  node[path[-1]] = value
  with pytest.raises(jsonschema.ValidationError):
    check(jobset)


@pytest.mark.parametrize(
  "name, value",
  [
    ("terminationGracePeriod", 600),
    ("terminationGracePeriodSeconds", "600"),
    ("containers", [{"image": "a"}]),
    ("volumes", [{"name": "runs", "csi": {"drivers": "a"}}]),
  ],
)
def test_the_check_sees_faults_of_the_pod(jobset, name, value):
  parts(jobset)[2][name] = value
  with pytest.raises(jsonschema.ValidationError):
    check(jobset)


def reason_of_failure(job, exit_code, disrupted):
  """Why Kubernetes' Job controller lets a Job fail whose pod has failed."""
  pod = "default/dollar-slice-0-0-abcde"
  for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
    assert rule["action"] == "FailJob"
    end = f"matching FailJob rule at index {index}"
    codes = rule.get("onExitCodes")
    if codes:
      assert codes["operator"] == "In"
      if exit_code in codes["values"]:
        name = codes["containerName"]
        text = f"Container {name} for pod {pod} failed with exit code"
        return "PodFailurePolicy", f"{text} {exit_code} {end}"
    elif disrupted:
      [condition] = rule["onPodConditions"]
      assert condition == {"type": "DisruptionTarget", "status": "True"}
      text = f"Pod {pod} has condition DisruptionTarget"
      return "PodFailurePolicy", f"{text} {end}"
  assert job["backoffLimit"] == 0
  return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def action(policy, reason, message):
  """What JobSet's controller then does: its first rule that fits."""
  for rule in policy["rules"]:
    patterns = rule.get("onJobFailureMessagePatterns", [""])
    if reason in rule["onJobFailureReasons"] and any(
      re.search(pattern, message) for pattern in patterns
    ):
      return rule["action"]
  return "RestartJobSet"


@pytest.mark.parametrize(
  "exit_code, disrupted, expected",
  [
    (143, False, "RestartJobSetAndIgnoreMaxRestarts"),
    (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
    (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
    (1, True, "RestartJobSetAndIgnoreMaxRestarts"),
    (1, False, "FailJobSet"),
    (2, False, "FailJobSet"),
    (134, False, "RestartJobSet"),
    (137, False, "RestartJobSet"),
    (139, False, "RestartJobSet"),
  ],
)
def test_what_follows_the_end_of_a_pod(jobset, exit_code, disrupted, expected):
  job = parts(jobset)[1]
  reason, message = reason_of_failure(job, exit_code, disrupted)
  policy = jobset["spec"]["failurePolicy"]
  assert action(policy, reason, message) == expected
  assert policy["maxRestarts"] > 0


def test_exit_codes_are_those_of_the_training(jobset):
  _, job, pod, container = parts(jobset)
  assert pod["restartPolicy"] == "Never"  # else there is no failure policy
  for rule in job["podFailurePolicy"]["rules"]:
    name = rule.get("onExitCodes", {}).get("containerName", "train")
    assert name == container["name"]


def test_there_is_a_pod_for_every_machine_of_a_slice(jobset):
  _, job, pod, container = parts(jobset)
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = math.prod(map(int, topology.split("x")))
  machines = chips // container["resources"]["limits"]["google.com/tpu"]
  assert job["parallelism"] == job["completions"] == machines
  assert job["completionMode"] == "Indexed"


def test_it_trains_as_the_user_of_the_image(jobset):
  _, _, pod, container = parts(jobset)
  [user] = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
  security = pod["securityContext"]
  assert f"{security['runAsUser']}:{security['runAsGroup']}" == user
  [volume] = pod["volumes"]
  options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
  assert {"uid=1000", "gid=1000"} <= set(options)
  assert user == "1000:1000"
  [mount] = container["volumeMounts"]
  assert mount["name"] == volume["name"]
  annotations = parts(jobset)[1]["template"]["metadata"]["annotations"]
  assert annotations["gke-gcsfuse/volumes"] == "true"


def test_its_arguments_are_those_of_dollar_train(jobset):
  container = parts(jobset)[3]
  [mount] = container["volumeMounts"]
  command, *flags = container["args"]
  assert command == "train"
  values = dict(flag.partition("=")[::2] for flag in flags)
  config = values["--config"].partition(":")[0]
  assert (ROOT / config).is_file()
  assert values["--workdir"].startswith(mount["mountPath"] + "/")
  for flag in values:
    name = flag.removeprefix("--").partition(".")[0]
    assert name.removeprefix("no") in train.FLAGS or name in train.FLAGS, flag


def test_a_copy_may_have_more_slices(jobset):
  more = copy.deepcopy(jobset)
  parts(more)[0]["replicas"] = 4
  check(more)
  annotations = more["metadata"]["annotations"]
  key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
  assert annotations[key] == "cloud.google.com/gke-nodepool"
