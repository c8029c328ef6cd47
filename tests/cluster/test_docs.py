"""What docs/cluster.md and its files say: that they are whole, ask for what the recipe asks for, and that the script works.

There is neither Slurm nor Kubernetes here. The script runs for real, with real Ray, but with stand-ins for Slurm's commands
that do everything on this machine; the RayJob is held against the fields that KubeRay and Kubernetes document.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field

from rlcore.cli.main import app
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Cluster

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT, RAYJOB = DOCS / "cluster" / "slurm.sh", DOCS / "cluster" / "rayjob.yaml"


def recipe_of(command: str) -> RL:
    """What `rlcore train …`, as it stands in a text, would run."""
    words = shlex.split(command.replace('"$RUNS', '"/shared/runs'), comments=True)
    verb = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    given = verb.make_context("train", words[2:]).params
    recipe = load([*given["recipe"], *([f"cluster.address={given['cluster']}"] if given["cluster"] else [])]).recipe
    assert isinstance(recipe, RL)
    return recipe


def gpus(cluster: Cluster | None) -> float:
    assert cluster
    return cluster.workers * cluster.gpus_per_worker + cluster.ranks * cluster.gpus_per_rank


# -- the page ------------------------------------------------------------------------------------------------------------


def test_the_page_names_every_key_of_the_section() -> None:
    first_cells = [row.split("|")[1] for row in (DOCS / "cluster.md").read_text().splitlines() if row.startswith("| `")]
    assert set(Cluster.model_fields) <= set(re.findall(r"`(\w+)`", " ".join(first_cells)))


def test_every_command_of_the_page_is_one_that_loads() -> None:
    commands = re.findall(r"^rlcore train (?!runs/).*", (DOCS / "cluster.md").read_text(), re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        assert recipe_of(command).cluster is not None


@pytest.mark.parametrize("page", ["docs/cluster.md", "README.md"])
def test_its_links_lead_somewhere(page: str) -> None:
    path = DOCS.parent / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


# -- KubeRay: https://ray-project.github.io/kuberay/reference/api/, v1.6 ---------------------------------------------------


class Fields(BaseModel):
    """Exactly these, as the API server has it."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False)


class Metadata(Fields):
    name: str = Field(default="", pattern=r"^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$")  # 47: KubeRay adds to it
    namespace: str = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class EnvVar(Fields):
    name: str
    value: str = ""
    valueFrom: dict[str, Any] = {}  # noqa: N815


class Resources(Fields):
    requests: dict[str, str | int] = {}
    limits: dict[str, str | int] = {}


class Mount(Fields):
    name: str
    mountPath: str  # noqa: N815
    readOnly: bool = False  # noqa: N815
    subPath: str = ""  # noqa: N815


class Container(Fields):
    name: str
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"  # noqa: N815
    command: list[str] = []
    args: list[str] = []
    env: list[EnvVar] = []
    resources: Resources
    volumeMounts: list[Mount] = []  # noqa: N815
    securityContext: dict[str, Any] = {}  # noqa: N815
    lifecycle: dict[str, Any] = {}


class ClaimReference(Fields):
    claimName: str  # noqa: N815
    readOnly: bool = False  # noqa: N815


class EmptyDir(Fields):
    medium: Literal["", "Memory"] = ""
    sizeLimit: str = ""  # noqa: N815


class Volume(Fields):
    name: str
    persistentVolumeClaim: ClaimReference | None = None  # noqa: N815
    emptyDir: EmptyDir | None = None  # noqa: N815


class PodSpec(Fields):
    containers: list[Container] = Field(min_length=1)
    initContainers: list[Container] = []  # noqa: N815
    volumes: list[Volume] = []
    nodeSelector: dict[str, str] = {}  # noqa: N815
    tolerations: list[dict[str, Any]] = []
    imagePullSecrets: list[dict[str, str]] = []  # noqa: N815
    serviceAccountName: str = ""  # noqa: N815


class Pod(Fields):
    metadata: Metadata = Metadata()
    spec: PodSpec


class HeadGroup(Fields):
    template: Pod
    headService: dict[str, Any] = {}  # noqa: N815
    enableIngress: bool = False  # noqa: N815
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    rayStartParams: dict[str, str] = {}  # noqa: N815
    serviceType: str = "ClusterIP"  # noqa: N815


class WorkerGroup(Fields):
    groupName: str  # noqa: N815
    template: Pod
    replicas: int = 0
    minReplicas: int = 0  # noqa: N815
    maxReplicas: int = 2**31 - 1  # noqa: N815
    idleTimeoutSeconds: int | None = None  # noqa: N815
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    rayStartParams: dict[str, str] = {}  # noqa: N815
    scaleStrategy: dict[str, Any] = {}  # noqa: N815
    numOfHosts: int = 1  # noqa: N815
    suspend: bool = False


class Auth(Fields):
    mode: Literal["disabled", "token"] = "token"
    secretName: str = ""  # noqa: N815
    enableK8sTokenAuth: bool = False  # noqa: N815


class RayClusterSpec(Fields):
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup] = []  # noqa: N815
    rayVersion: str = ""  # noqa: N815
    authOptions: Auth | None = None  # noqa: N815
    enableInTreeAutoscaling: bool = False  # noqa: N815
    autoscalerOptions: dict[str, Any] = {}  # noqa: N815
    gcsFaultToleranceOptions: dict[str, Any] = {}  # noqa: N815
    headServiceAnnotations: dict[str, str] = {}  # noqa: N815
    upgradeStrategy: dict[str, Any] = {}  # noqa: N815
    managedBy: str = ""  # noqa: N815
    suspend: bool = False


class RayJobSpec(Fields):
    entrypoint: str
    rayClusterSpec: RayClusterSpec  # noqa: N815
    backoffLimit: int = Field(default=0, ge=0)  # noqa: N815
    shutdownAfterJobFinishes: bool = False  # noqa: N815
    ttlSecondsAfterFinished: int = Field(default=0, ge=0)  # noqa: N815
    activeDeadlineSeconds: int | None = Field(default=None, gt=0)  # noqa: N815
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"  # noqa: N815
    submitterPodTemplate: Pod | None = None  # noqa: N815
    submitterConfig: dict[str, Any] = {}  # noqa: N815
    entrypointNumCpus: float = 0  # noqa: N815
    entrypointNumGpus: float = 0  # noqa: N815
    entrypointResources: str = ""  # noqa: N815
    runtimeEnvYAML: str = ""  # noqa: N815
    clusterSelector: dict[str, str] = {}  # noqa: N815
    deletionStrategy: dict[str, Any] = {}  # noqa: N815
    metadata: dict[str, str] = {}
    managedBy: str = ""  # noqa: N815
    jobId: str = ""  # noqa: N815
    suspend: bool = False


class RayJob(Fields):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class ClaimSpec(Fields):
    accessModes: list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]]  # noqa: N815
    storageClassName: str | None = None  # noqa: N815
    resources: Resources


class Claim(Fields):
    apiVersion: Literal["v1"]  # noqa: N815
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


@pytest.fixture(scope="module")
def claim() -> Claim:
    first, _ = yaml.safe_load_all(RAYJOB.read_text())
    return Claim.model_validate(first)


@pytest.fixture(scope="module")
def rayjob() -> RayJob:
    _, second = yaml.safe_load_all(RAYJOB.read_text())
    return RayJob.model_validate(second)


def pods(rayjob: RayJob) -> list[PodSpec]:
    cluster = rayjob.spec.rayClusterSpec
    return [cluster.headGroupSpec.template.spec, *(group.template.spec for group in cluster.workerGroupSpecs)]


def test_the_rayjob_offers_the_gpus_that_its_recipe_asks_for(rayjob: RayJob) -> None:
    offered = 0
    for group in rayjob.spec.rayClusterSpec.workerGroupSpecs:
        [container] = group.template.spec.containers
        assert container.resources.limits == container.resources.requests  # Kubernetes takes GPUs no other way
        assert group.minReplicas <= group.replicas <= group.maxReplicas
        offered += group.replicas * int(container.resources.limits["nvidia.com/gpu"])
    recipe = recipe_of(rayjob.spec.entrypoint)
    assert recipe.cluster
    assert recipe.cluster.address == "auto"
    assert offered == gpus(recipe.cluster) > 0


def test_its_pods_share_the_volume_that_the_run_is_written_to(rayjob: RayJob, claim: Claim) -> None:
    assert "ReadWriteMany" in claim.spec.accessModes
    output = Path(recipe_of(rayjob.spec.entrypoint).output)
    for pod in pods(rayjob):
        [container] = pod.containers
        volumes = {volume.name: volume for volume in pod.volumes}
        mounted = {Path(mount.mountPath): volumes[mount.name] for mount in container.volumeMounts}
        written = mounted[next(folder for folder in mounted if output.is_relative_to(folder))]
        assert written.persistentVolumeClaim
        assert written.persistentVolumeClaim.claimName == claim.metadata.name
        memory = mounted[Path("/dev/shm")].emptyDir
        assert memory
        assert memory.medium == "Memory"
        assert int(memory.sizeLimit.removesuffix("Gi")) >= 2
        for variable in container.env:
            assert any(Path(variable.value).is_relative_to(folder) for folder in mounted)


def test_nobody_joins_its_cluster_without_the_token(rayjob: RayJob) -> None:
    auth = rayjob.spec.rayClusterSpec.authOptions
    assert auth
    assert auth.mode == "token"


def test_its_ray_is_that_of_the_locks(rayjob: RayJob) -> None:
    version = rayjob.spec.rayClusterSpec.rayVersion
    locks = [path.read_text() for path in (DOCS.parent / "locks").iterdir()]
    assert any(f"\nray=={version}" in lock for lock in locks)
    assert all(re.findall(r"\nray(?:\[\S+\])?==(\S+)", lock) in ([], [version]) for lock in locks)


# -- Slurm: https://slurm.schedmd.com/sbatch.html --------------------------------------------------------------------------

OPTIONS = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "signal", "output"}
OPTIONS |= {"partition", "account", "exclusive", "requeue", "open-mode", "constraint", "qos"}


def asked_of_slurm() -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE)
    assert len(lines) == SCRIPT.read_text().count("\n#SBATCH")  # none is of another form
    return dict(lines)


def test_the_script_asks_slurm_for_the_gpus_of_its_recipe() -> None:
    asked = asked_of_slurm()
    assert asked.keys() <= OPTIONS
    [command] = re.findall(r"^rlcore train .*(?= &$)", SCRIPT.read_text(), re.MULTILINE)
    recipe = recipe_of(command)
    assert recipe.cluster
    assert recipe.cluster.address == "auto"
    assert Path(recipe.output).is_absolute()
    assert int(asked["nodes"]) * int(asked["gpus-per-node"]) == gpus(recipe.cluster)
    assert asked["ntasks-per-node"] == "1"


def test_the_shell_and_its_linter_take_the_script() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


STAND_INS = {
    "scontrol": "#!/bin/sh\nprintf 'first\\nsecond\\n'",
    "hostname": "#!/bin/sh\necho 127.0.0.1 192.0.2.1",
    "srun": """\
        #!/bin/sh
        while case $1 in --*) ;; *) false ;; esac; do options="$options $1"; shift; done
        echo "$options $*" >> "$LOG"
        exec "$@"
        """,
    "rlcore": f"""\
        #!{sys.executable}
        import os, shlex, signal, sys, time
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # as a run that finishes its step
        from rlcore.cluster.connect import connected
        with connected("auto"):
            import ray
            while sum(node["Alive"] for node in ray.nodes()) < 2:
                time.sleep(0.1)
            print("joined", len(os.environ["RAY_AUTH_TOKEN"]), shlex.join(sys.argv[1:]), flush=True)
            time.sleep(120)
        """,
}


LOSING_NODE = {
    "ray": f"""\
        #!{sys.executable}
        import re, socket, sys, time
        if "--head" not in sys.argv:
            sys.exit(3)
        port = int(re.findall(r"--port=(\\d+)", " ".join(sys.argv))[0])
        with socket.create_server(("127.0.0.1", port)):
            time.sleep(120)
        """,
    "rlcore": "#!/bin/sh\nexec sleep 120",
}


@pytest.fixture
def slurm(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """The script, run as Slurm would; the parameter has further stand-ins."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (STAND_INS | getattr(request, "param", {})).items():
        (programs / name).write_text(textwrap.dedent(text) + "\n")
        (programs / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(DOCS.parent),
        "LOG": str(tmp_path / "log"),
        "RUNS": "/shared/my runs",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "[first-second]",
        "SLURM_CPUS_PER_TASK": "1",
        "AUTOSCALER_METRIC_PORT": "0",
    }
    process = subprocess.Popen(
        ["bash", SCRIPT],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"),
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for each in alive(environment["LOG"]):
            each.kill()
        process.wait()


def alive(log: str) -> list[psutil.Process]:
    """What the script has started, and the script: those that have inherited this LOG."""
    every = psutil.process_iter(["environ", "status"])
    return [p for p in every if (p.info["environ"] or {}).get("LOG") == log and p.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.mark.xdist_group("ray")
def test_the_script_starts_a_cluster_drives_it_and_leaves_nothing(slurm: subprocess.Popen[str], tmp_path: Path) -> None:
    """Until Slurm says that the time is up. The driver gets its arguments whole, and a token; it joins two nodes."""
    assert slurm.stdout
    said = next((line for line in slurm.stdout if line.startswith("joined")), "")
    errors = (tmp_path / "errors").read_text()[-3000:]
    assert said == "joined 64 train grpo_gsm8k cluster/gpus --cluster auto --resume 'output=/shared/my runs/grpo_gsm8k'\n", (
        errors
    )
    steps = (tmp_path / "log").read_text().splitlines()
    assert [re.findall(r"--nodelist=(\S+)", step) for step in steps] == [["first"], ["second"]]
    slurm.send_signal(signal.SIGUSR1)
    assert slurm.wait(timeout=90) == 130
    end = time.monotonic() + 60
    while alive(str(tmp_path / "log")):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not Path(f"/tmp/ray-{os.getpid()}").exists()


@pytest.mark.parametrize("slurm", [LOSING_NODE], indirect=True)
def test_the_script_fails_when_ray_ends_on_a_node(slurm: subprocess.Popen[str], tmp_path: Path) -> None:
    """Where the driver would wait for its GPUs for ever."""
    assert slurm.wait(timeout=60) == 1
    assert "Ray ended on a node" in (tmp_path / "errors").read_text()
    assert alive(str(tmp_path / "log")) == []
