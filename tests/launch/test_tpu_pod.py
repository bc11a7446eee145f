"""launch/tpu_pod.sh and worker.sh, with folders in place of TPU machines."""

import os
import re
import shlex

import pytest

from tests.launch.conftest import ROOT

ZONE = "--zone=us-east5-a"
TYPE = "--accelerator_type=v5p-32"
FLAGS = [
  "--config=configs/digits/student.py",
  "--workdir=/mnt/two words",
  '--config.note=it\'s "$HOME"; `id` \\ *',
]
TRAIN = ["--", *FLAGS]


def words(text):
  return [shlex.split(line) for line in text.splitlines()]


def test_a_run_from_its_creation_to_its_end(cloud):
  two = [ZONE, "--node_count=2"]
  cloud.states("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
  told = cloud.pod("create", "pod", *two, TYPE, "--poll_seconds=0").stderr
  assert told.splitlines() == [
    "tpu_pod.sh: pod is WAITING_FOR_RESOURCES",
    "tpu_pod.sh: pod is PROVISIONING",
    "tpu_pod.sh: pod is ACTIVE",
  ]
  assert cloud.pod("status", "pod", *two).stdout.count("not set up") == 4

  cloud.pod("setup", "pod", *two)
  home = cloud.home("pod-1", 1)
  assert (home / "dollar/code/requirements/tpu.txt").is_file()
  assert not (home / "dollar.new").exists()
  installed = (cloud.folder / "python3.txt").read_text().splitlines()
  into = f"--quiet --python {home}/dollar/venv/bin/python"
  pins = f"{home}/dollar/code/requirements/tpu.txt"
  assert f"-m uv pip sync {into} {pins}" in installed
  assert cloud.pod("status", "pod", *two).stdout.count(": no run") == 4

  cloud.pod("train", "pod", *two, *TRAIN)
  for node in ("pod-0", "pod-1"):
    for worker in (0, 1):
      assert cloud.trainings(node, worker) == [["train", *FLAGS]]
      log = cloud.home(node, worker) / "dollar/train.log"
      assert log.read_text() == f"training in {log.parent}/code\n"
  assert cloud.pod("status", "pod", *two).stdout.count(": running") == 4
  again = cloud.pod("train", "pod", *two, *TRAIN, code=1)
  assert again.stderr.count("a run is under way here; stop it first") == 4
  kept = cloud.pod("setup", "pod", *two, code=1)
  assert kept.stderr.count("a run is under way here; stop it first") == 4

  stopped = cloud.pod("stop", "pod", *two).stdout
  assert stopped.count(": stopped, exit code 143") == 4
  cloud.pod("delete", "pod", *two)
  assert cloud.calls()[-1] == [
    *["gcloud", "compute", "tpus", "queued-resources", "delete", "pod"],
    *["--force", "--quiet", ZONE],
  ]


def test_dry_run_prints_what_would_be_run_and_runs_nothing(cloud):
  options = [ZONE, TYPE, "--spot", "--create_flag=--network=a b"]
  options += ["--ssh_flag=--internal-ip", "--project=project-1"]
  train = ["--poll_seconds=0", *TRAIN]
  files = sorted(cloud.folder.rglob("*"))
  printed = cloud.pod("run", "pod", *options, "--dry_run", *train).stdout
  dry = words(printed)
  for command in ("status", "logs", "stop", "delete"):
    more = cloud.pod(command, "pod", *options, "--dry_run").stdout
    assert words(more)[-1][0] == "gcloud"
  assert sorted(cloud.folder.rglob("*")) == files
  assert cloud.calls() == []

  cloud.pod("create", "pod", *options, "--poll_seconds=0")
  cloud.pod("setup", "pod", *options)
  cloud.pod("train", "pod", *options, *train)
  assert cloud.trainings("pod") == [["train", *FLAGS]]
  [archive] = [line for line in dry if line[0] == "git"]
  assert archive[1:4] == ["-C", str(cloud.checkout), "archive"]
  file = archive[5].removeprefix("--output=")
  made = cloud.calls()
  [copy] = [call for call in made if call[4] == "scp"]
  copy[5] = file  # there, it lies in a folder of that call's own
  assert [line for line in dry if line[0] == "gcloud"] == made


@pytest.mark.parametrize(
  "count, given, expected",
  [
    (1, [], ["--node-id=pod"]),
    (1, ["--spot"], ["--node-id=pod", "--spot"]),
    (3, [], ["--node-count=3", "--node-prefix=pod"]),
  ],
)
def test_slices_are_asked_for(cloud, count, given, expected):
  flags = [ZONE, "--accelerator-type=v6e-16", f"--node-count={count}", *given]
  printed = cloud.pod("create", "pod", *flags, "--dry_run").stdout
  assert words(printed)[0] == [
    *["gcloud", "compute", "tpus", "queued-resources", "create", "pod"],
    *["--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e"],
    *[*expected, ZONE],
  ]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "DELETING"])
def test_a_request_that_fails_ends_the_wait(cloud, state):
  cloud.states("WAITING_FOR_RESOURCES", state)
  done = cloud.pod("create", "pod", ZONE, TYPE, "--poll_seconds=0", code=1)
  last = done.stderr.splitlines()[-1]
  assert last.startswith(f"tpu_pod.sh: error: pod is {state} and will not")


def test_run_goes_on_after_a_preemption(cloud):
  cloud.plans({"state": "SUSPENDED"}, {"exit": 0})
  run = ["run", "pod", ZONE, TYPE, "--poll_seconds=0", "--max_restarts=0"]
  told = cloud.pod(*run, *TRAIN).stderr
  verbs = [verb for verb in cloud.verbs() if verb != "ssh"]
  assert verbs == ["create", "scp", "delete", "create", "scp"]
  assert "the training has ended; the TPUs cost money until" in told
  assert cloud.trainings("pod") == [["train", *FLAGS]]


def test_run_starts_again_where_it_stands_and_ends_when_told(cloud):
  cloud.plans({"exit": 143}, {"exit": 134}, {"exit": 0})
  run = ["run", "pod", ZONE, TYPE, "--poll_seconds=0", "--max_restarts=1"]
  cloud.pod(*run, *TRAIN)
  assert len(cloud.trainings("pod")) == 3
  assert cloud.verbs().count("scp") == 1


@pytest.mark.parametrize(
  "plans, sentence",
  [
    ([{"exit": 1}], "the training refused with exit code 1; its log tells"),
    ([{"exit": 2}], "the training refused with exit code 2; its log tells"),
    (
      [{"exit": 134}, {"exit": 139}],
      "the training crashed, and that 2 times; --max_restarts=1 allows no more",
    ),
  ],
)
def test_run_does_not_repeat_what_is_hopeless(cloud, plans, sentence):
  cloud.plans(*plans)
  run = ["run", "pod", ZONE, TYPE, "--poll_seconds=0", "--max_restarts=1"]
  last = cloud.pod(*run, *TRAIN, code=1).stderr.splitlines()[-1]
  assert last.startswith(f"tpu_pod.sh: error: {sentence}")
  assert len(cloud.trainings("pod")) == len(plans)


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    ([], "no command given; launch/tpu_pod.sh --help lists them"),
    (["make"], "there is no command 'make'"),
    (["create"], "'' is no name of a TPU"),
    (["create", ZONE], f"'{ZONE}' is no name of a TPU"),
    (["create", "a;b", ZONE, TYPE], "'a;b' is no name of a TPU"),
    (["create", "pod", TYPE], "--zone=ZONE is missing"),
    (["create", "pod", ZONE], "--accelerator_type=TYPE is missing"),
    (["create", "pod", ZONE, "--zone"], "unexpected '--zone'"),
    (["create", "pod", ZONE, TYPE, "--sport"], "unexpected '--sport'"),
    (["create", "pod", ZONE, TYPE, "--spot=no"], "unexpected '--spot=no'"),
    (["create", "pod", ZONE, TYPE, "--node_count=0"], "--node_count=0 is not"),
    (["create", "pod", ZONE, TYPE, "--node_count=a[$(id)]"], "--node_count=a"),
    (["create", "pod", ZONE, "--accelerator_type=tpu7x-8"], "tpu7x-8 is lent"),
    (["train", "pod", ZONE], "--config=FILE is missing behind --"),
    (["train", "pod", ZONE, *FLAGS], "unexpected '--config="),
    (["train", "pod", ZONE, "--", FLAGS[0]], "--workdir=FOLDER is missing"),
    (["stop", "pod", ZONE, "--", "a"], "'stop' takes nothing behind --"),
  ],
)
def test_what_is_missing_is_told(cloud, arguments, sentence):
  done = cloud.pod(*arguments, code=1)
  assert done.stdout == ""
  [line] = done.stderr.splitlines()
  assert line.startswith(f"tpu_pod.sh: error: {sentence}")
  assert cloud.calls() == []


def test_without_gcloud_it_says_so(cloud):
  cloud.environment["PATH"] = str(cloud.folder / "few")
  (cloud.folder / "few").mkdir()
  for tool in ("bash", "dirname", "tr"):
    found = next(
      f"{folder}/{tool}"
      for folder in os.environ["PATH"].split(":")
      if os.access(f"{folder}/{tool}", os.X_OK)
    )
    os.symlink(found, cloud.folder / "few" / tool)
  done = cloud.pod("create", "pod", ZONE, TYPE, code=1)
  assert "there is no gcloud; install" in done.stderr


def test_help_lists_every_command_and_flag(cloud):
  text = cloud.pod("--help").stdout
  script = (ROOT / "launch/tpu_pod.sh").read_text()
  commands = re.search(r"^(create .*)\) shift", script, re.MULTILINE)[1]
  flags = re.findall(r"^  (--[a-z_]+)=?\) ", script, re.MULTILINE)
  assert len(flags) == 12
  for word in [*commands.split(" | "), *flags]:
    assert re.search(rf"{word}\b", text), word
