"""cluster.yaml and deploy/: of the shapes Ray and Kubernetes accept, and open to nobody else.

The shapes of KubeRay's own parts are a table of its API reference (v1.7.0), below; pods and
policies are checked for what they must say.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
import yaml

from study.cli import _parser
from study.config import load_config

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DEPLOYED = {file.name: file.read_text() for file in sorted((REPOSITORY / "deploy").iterdir())}
Tree = dict[str, Any]

# https://docs.ray.io/en/master/cluster/kubernetes/references/api.html
KUBERAY: dict[str, dict[str, Any]] = {
    "RayJobSpec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "entrypoint": str,
        "entrypointNumCpus": float,
        "jobId": str,
        "metadata": dict,
        "preRunningDeadlineSeconds": int,
        "rayClusterSpec": "RayClusterSpec",
        "runtimeEnvYAML": str,
        "shutdownAfterJobFinishes": bool,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "submitterConfig": dict,
        "submitterPodTemplate": "PodTemplate",
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
    "RayClusterSpec": {
        "authOptions": "AuthOptions",
        "autoscalerOptions": "AutoscalerOptions",
        "enableInTreeAutoscaling": bool,
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": str,
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"mode": {"token", "disabled"}, "secretName": str},
    "AutoscalerOptions": {
        "idleTimeoutSeconds": int,
        "resources": dict,
        "securityContext": dict,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "version": {"v1", "v2"},
    },
    "HeadGroupSpec": {
        "rayStartParams": "Strings",
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
        "template": "PodTemplate",
    },
    "WorkerGroupSpec": {
        "groupName": str,
        "idleTimeoutSeconds": int,
        "maxReplicas": int,
        "minReplicas": int,
        "rayStartParams": "Strings",
        "replicas": int,
        "template": "PodTemplate",
    },
    "PodTemplate": {"metadata": dict, "spec": dict},
}


def problems(tree: Any, kind: Any, where: str = "spec") -> Iterator[str]:
    """What of a tree KubeRay would refuse or, worse, silently drop."""
    if isinstance(kind, list):
        for number, item in enumerate(tree):
            yield from problems(item, kind[0], f"{where}[{number}]")
    elif isinstance(kind, set):
        if tree not in kind:
            yield f"{where}: found {tree!r}, expected one of {sorted(kind)}"
    elif kind == "Strings":
        yield from (f"{where}.{key}: {v!r}" for key, v in tree.items() if not isinstance(v, str))
    elif isinstance(kind, str):
        known = KUBERAY[kind]
        yield from (f"{where}.{key}: unknown" for key in tree.keys() - known.keys())
        for key in tree.keys() & known.keys():
            yield from problems(tree[key], known[key], f"{where}.{key}")
    elif type(tree) is not kind:
        yield f"{where}: found {tree!r}, expected {kind.__name__}"


@pytest.fixture(scope="module")
def cluster() -> Tree:
    tree: Tree = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return tree


def of_kind(kind: str) -> Tree:
    trees = [t for n, text in DEPLOYED.items() if n.endswith(".yaml") for t in _trees(text)]
    [found] = [tree for tree in trees if tree["kind"] == kind]
    return found


def _trees(text: str) -> Iterator[Tree]:
    yield from yaml.safe_load_all(text)


def pod_templates() -> dict[str, Tree]:
    spec = of_kind("RayJob")["spec"]
    cluster = spec["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    head = cluster["headGroupSpec"]["template"]
    return {"submitter": spec["submitterPodTemplate"], "head": head, **workers}


def test_ray_accepts_the_cluster_file(cluster: Tree) -> None:
    """By the very functions that ``ray up`` calls; they are private, so they may move."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(copy.deepcopy(cluster))
    util.validate_config(prepared)
    commands = prepared["setup_commands"] + prepared["head_setup_commands"]
    commands += prepared["worker_setup_commands"] + prepared["head_start_ray_commands"]
    assert not [c for c in commands if "nightly" in c or "latest" in c or "0.0.0.0" in c]
    spoilt = copy.deepcopy(prepared) | {"idle_timeout_minute": 5}
    with pytest.raises(Exception, match="idle_timeout_minute"):
        util.validate_config(spoilt)


def test_what_ray_would_launch_on_aws(
    cluster: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own AWS provider, against an AWS in this process."""
    config = pytest.importorskip("ray.autoscaler._private.aws.config")
    provider = pytest.importorskip("ray.autoscaler._private.aws.node_provider")
    from ray.autoscaler import tags
    from ray.autoscaler._private.util import prepare_config

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a key pair there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made up")
    tree, region = copy.deepcopy(cluster), cluster["provider"]["region"]
    with moto.mock_aws():
        ec2, iam = boto3.resource("ec2", region), boto3.client("iam")
        vpc = next(iter(ec2.vpcs.all()))
        group = ec2.create_security_group(GroupName="own", Description="own", VpcId=vpc.id)
        for node in tree["available_node_types"].values():
            node["node_config"]["SecurityGroupIds"] = [group.id]
            iam.create_instance_profile(
                InstanceProfileName=node["node_config"]["IamInstanceProfile"]["Name"]
            )
        ready = config.bootstrap_aws(prepare_config(tree))
        nodes = provider.AWSNodeProvider(ready["provider"], ready["cluster_name"])
        for name, node in ready["available_node_types"].items():
            labels = {tags.TAG_RAY_USER_NODE_TYPE: name, tags.TAG_RAY_NODE_NAME: name}
            nodes.create_node(copy.deepcopy(node["node_config"]), labels, 1)
        launched = {i.instance_type: i for i in ec2.instances.all()}
        types = {
            n: t["node_config"]["InstanceType"] for n, t in tree["available_node_types"].items()
        }
        assert launched[types["head"]].instance_lifecycle is None
        assert launched[types["gpu"]].instance_lifecycle == "spot"
        for instance in launched.values():
            assert [g["GroupId"] for g in instance.security_groups] == [group.id]
            assert instance.metadata_options["HttpTokens"] == "required"
        rules = [rule for g in ec2.security_groups.all() for rule in g.ip_permissions]
        assert rules == [], "Ray adds none to a group that is given"


def test_its_head_is_bought_and_its_gpus_are_spot_and_none_while_idle(cluster: Tree) -> None:
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["min_workers"] == 0 < worker["max_workers"] <= cluster["max_workers"]
        assert worker["resources"]["GPU"] >= 1
        assert (
            worker["node_config"]["IamInstanceProfile"] != head["node_config"]["IamInstanceProfile"]
        ), "a worker needs the bucket, and must not start machines"
    assert 0 < cluster["idle_timeout_minutes"] <= 30


def test_no_port_of_the_aws_cluster_is_open_to_the_world(cluster: Tree) -> None:
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert "0.0.0.0" not in text
    assert "security_group" not in cluster["provider"], "Ray adds SSH for the world to these"
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"], "without, Ray opens SSH to the world"
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    [start] = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]


def test_one_version_of_everything(cluster: Tree) -> None:
    wants = dict(re.findall(r"^([a-z]+)\S*?>=(\d+\.\d+)", "\n".join(PROJECT["dependencies"]), re.M))
    python = re.search(r">=(\d)\.(\d+)", PROJECT["requires-python"])
    assert python is not None
    images = [cluster["docker"]["head_image"], cluster["docker"]["worker_image"]]
    images += re.findall(r"^FROM (\S+)", DEPLOYED["Dockerfile"], re.M)
    for image in images:
        found = re.fullmatch(r"rayproject/ray:(\d+\.\d+)\.\d+-py(\d)(\d+)-[cg]pu", image)
        assert found is not None, image
        assert found.groups() == (wants["ray"], *python.groups())
    version = of_kind("RayJob")["spec"]["rayClusterSpec"]["rayVersion"]
    assert {version} == {image.split(":")[1].split("-")[0] for image in images}
    for name in ("torch", "torchvision"):
        [given] = set(
            re.findall(rf'"{name}>=(\d+\.\d+),', "\n".join(cluster["head_setup_commands"]))
        )
        assert given == wants[name]


def test_the_clusters_copy_of_the_project_is_whole_and_small(cluster: Tree) -> None:
    assert cluster["file_mounts"]["/home/ray/mariposa"] == "."
    assert {".git", ".venv", "runs"} <= set(cluster["rsync_exclude"])
    assert not {"data", "models", "study", "analysis"} & set(cluster["rsync_exclude"])
    ignored = set(DEPLOYED["Dockerfile.dockerignore"].split())
    assert {".git", ".venv", "runs"} <= ignored
    assert not {"data", "models", "study", "analysis"} & ignored
    for commands in (cluster["head_setup_commands"], cluster["worker_setup_commands"]):
        assert any("pip install ~/mariposa" in command for command in commands)


def test_an_installation_has_every_file_of_the_packages() -> None:
    """The image and the AWS machines install the project; from a checkout this never shows."""
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.replace(".", "/") for name in setuptools["packages"]}
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, found in setuptools["package-data"].items()
        for pattern in found
    ]
    left_out = [
        name
        for name in _files_of_the_packages()
        if not (name.endswith(".py") and name.rpartition("/")[0] in packages)
        and not any(Path(name).match(pattern) for pattern in patterns)
    ]
    assert left_out == [], "[tool.setuptools] of pyproject.toml names neither these nor their like"


def _files_of_the_packages() -> Iterator[str]:
    for package in ("data", "models", "study", "analysis"):
        for file in (REPOSITORY / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(REPOSITORY).as_posix()


def test_kuberay_knows_every_field_of_the_job() -> None:
    job = of_kind("RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    assert list(problems(job["spec"], "RayJobSpec")) == []
    spoilt = copy.deepcopy(job["spec"])
    spoilt["backoff"] = 3
    spoilt["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    spoilt["rayClusterSpec"]["authOptions"]["mode"] = "none"
    assert len(list(problems(spoilt, "RayJobSpec"))) == 3


def test_a_lost_kubernetes_cluster_is_replaced_and_the_study_goes_on() -> None:
    spec = of_kind("RayJob")["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    program, *words = spec["entrypoint"].split()[2:]
    assert (spec["entrypoint"].split()[:2], program) == (["python", "-m"], "study")
    options = _parser().parse_args(words)
    assert options.out.startswith("s3://"), "storage that outlives the cluster"
    assert load_config(options.config, options.set, {"name": options.name}).name == options.name
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups)
    assert any(
        "nvidia.com/gpu" in container["resources"]["limits"]
        for group in groups
        for container in group["template"]["spec"]["containers"]
    )


@pytest.mark.parametrize("name", list(pod_templates()))
def test_pods_run_as_nobody_special(name: str) -> None:
    """The Pod Security Standard "restricted", and limits for all they use."""
    spec = pod_templates()[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_only_the_cluster_and_its_operator_reach_the_pods() -> None:
    spec = of_kind("RayJob")["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = of_kind("NetworkPolicy")["spec"]
    labels = policy["podSelector"]["matchLabels"]
    for template in pod_templates().values():
        assert labels.items() <= template["metadata"]["labels"].items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert all("podSelector" in source for source in operator["from"])
    assert not any("ipBlock" in source for rule in policy["ingress"] for source in rule["from"])


def test_no_secret_lies_in_these_files() -> None:
    texts = [*DEPLOYED.values(), (REPOSITORY / "cluster.yaml").read_text()]
    secret = re.compile(r"AKIA[0-9A-Z]{16}|[0-9a-f]{64}|-----BEGIN|WANDB_API_KEY\s*[:=]")
    assert not [text for text in texts if secret.search(text)]
