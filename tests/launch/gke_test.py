"""launch/gke.sh and the JobSet that it fills in."""

from __future__ import annotations

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.stand_ins import ROOT, RUN_FLAGS, executable, lines, run

GKE = ROOT / "launch" / "gke.sh"
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def only(required: str, **properties):
  """The schema of an object with these properties and no others."""
  return {
    "type": "object",
    "properties": properties,
    "required": required.split(),
    "additionalProperties": False,
  }


# The part of jobset.x-k8s.io/v1alpha2 that a JobSet for training uses. Jobs have their own schema.
JOBSET = only(
  "apiVersion kind metadata spec",
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=only("name", name=TEXT, annotations={"type": "object", "additionalProperties": TEXT}),
  spec=only(
    "replicatedJobs",
    network=only("", enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=TEXT),
    coordinator=only("replicatedJob", replicatedJob=TEXT, jobIndex=NUMBER, podIndex=NUMBER),
    failurePolicy=only(
      "",
      maxRestarts=NUMBER,
      rules={
        "type": "array",
        "items": only(
          "name action",
          name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
          action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
          onJobFailureReasons={
            "type": "array",
            "items": {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]},
          },
          targetReplicatedJobs={"type": "array", "items": TEXT},
        ),
      },
    ),
    replicatedJobs={
      "type": "array",
      "minItems": 1,
      "items": only(
        "name template", name=TEXT, replicas=NUMBER, template=only("spec", spec={"type": "object"})
      ),
    },
  ),
)
GKE_FLAGS = ("--name=mine", "--image=europe-docker.pkg.dev/p/r/egad_jax:1", "--bucket=gs://mine")


def rendered(stubs, *flags: str, run_flags=RUN_FLAGS):
  out, _ = run(stubs, GKE, *GKE_FLAGS, *flags, "--dry_run", "--", *run_flags)
  assert not (stubs / "calls").exists()
  return yaml.safe_load(out)


def test_the_jobset_is_valid(stubs):
  jobset = rendered(stubs)
  jsonschema.validate(jobset, JOBSET)
  (job,) = jobset["spec"]["replicatedJobs"]
  kubernetes_validate.validate(
    {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **job["template"]},
    "1.34",
    strict=True,
  )
  assert jobset["spec"]["coordinator"]["replicatedJob"] == job["name"]
  # Names end up in the host names of pods, NAME-slice-0-0.
  assert len(f"{job['name']}-0-0") < 63


def test_only_codes_2_and_3_end_the_jobset(stubs):
  jobset = rendered(stubs, "--max_restarts=7")["spec"]
  (job,) = jobset["replicatedJobs"]
  spec = job["template"]["spec"]
  (container,) = spec["template"]["spec"]["containers"]
  assert spec["podFailurePolicy"]["rules"] == [
    {
      "action": "FailJob",
      "onExitCodes": {
        "containerName": container["name"],
        "operator": "In",
        "values": [2, 3, 126, 127],
      },
    }
  ]
  (rule,) = jobset["failurePolicy"]["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  assert jobset["failurePolicy"]["maxRestarts"] == 7
  assert spec["backoffLimit"] == 0
  assert spec["template"]["spec"]["restartPolicy"] == "Never"
  assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


@pytest.mark.parametrize(
  ("topology", "chips", "hosts"), [("4x4", 4, 4), ("16x16", 4, 64), ("2x2x4", 4, 4), ("2x4", 8, 1)]
)
def test_workers_follow_from_the_topology(topology, chips, hosts, stubs):
  flags = (f"--topology={topology}", f"--chips_per_host={chips}", "--slices=3", "--accelerator=x")
  (job,) = rendered(stubs, *flags)["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  pod = spec["template"]["spec"]
  assert job["replicas"] == 3
  assert (spec["parallelism"], spec["completions"]) == (hosts, hosts)
  assert spec["completionMode"] == "Indexed"
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "x",
    "cloud.google.com/gke-tpu-topology": topology,
  }


def test_flags_arrive_in_the_container_as_they_were_given(stubs):
  (job,) = rendered(stubs)["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  # Kubernetes reads $$ as $, so that $(b) is not a variable of the container.
  assert [word.replace("$$(", "$(") for word in container["args"]] == list(RUN_FLAGS)
  assert "$$(b)" in container["args"][1]
  assert "command" not in container  # The ENTRYPOINT of the image stays.


def test_without_dry_run_the_manifest_goes_to_kubectl(stubs):
  executable(
    stubs / "bin" / "kubectl", '#!/bin/sh\necho "$*" > "$STUBS/calls"\ncat > "$STUBS/in"\n'
  )
  expected = rendered(stubs)
  run(stubs, GKE, *GKE_FLAGS, "--", *RUN_FLAGS, cwd=stubs)
  assert lines(stubs / "calls") == ["create -f -"]
  assert yaml.safe_load((stubs / "in").read_text()) == expected


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (GKE_FLAGS[1:], "--name=… is required"),
    (GKE_FLAGS, "the flags of launch/run.py must follow after --"),
    ((*GKE_FLAGS, "--", "a\nb"), "has more than one line"),
    ((*GKE_FLAGS, "--colour=red", "--", "a"), "there is no flag --colour"),
    ((*GKE_FLAGS, "--topology=4by4", "--", "a"), "--topology must be like 4x4"),
    ((*GKE_FLAGS, "--chips_per_host=3", "--", "a"), "has 16 chips, which --chips_per_host=3 does"),
    ((*GKE_FLAGS, "--slices=0", "--", "a"), "--slices must be a positive number, got '0'"),
    ((*GKE_FLAGS, "--image=a: b", "--", "a"), "--image must be letters, digits"),
    ((*GKE_FLAGS, "now"), "unexpected 'now'"),
    # 4x4 is the default.
    (
      (*GKE_FLAGS, "--accelerator=tpu7x", "--", "a"),
      "tpu7x has three sizes, such as 2x2x1; got '4x4'",
    ),
    ((*GKE_FLAGS, "--accelerator=tpu-v5p-slice", "--topology=2x2", "--", "a"), "has three sizes"),
    ((*GKE_FLAGS, "--accelerator=tpu-v6e-slice", "--topology=2x2x1", "--", "a"), "has two sizes"),
  ],
)
def test_bad_flags_of_gke(arguments, message, stubs):
  _, err = run(stubs, GKE, *arguments, code=2)
  assert message in err
  assert not (stubs / "calls").exists()


def test_a_slice_of_tpu7x_is_counted_in_chips(stubs):
  (job,) = rendered(stubs, "--accelerator=tpu7x", "--topology=2x2x2")["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["parallelism"] == 2
  pod = spec["template"]["spec"]
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu7x",
    "cloud.google.com/gke-tpu-topology": "2x2x2",
  }
