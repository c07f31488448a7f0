"""What lies in deploy/: valid for the tools that read it, hardened, and in step with settings, commands and metrics."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from callboard.cli.commands import app
from callboard.metrics import (
    BUCKETS,
    COUNTERS,
    IN_PROGRESS,
    QUEUE_SECONDS,
    RUN_SECONDS,
    SCHEDULER_METRICS,
    SHARED_METRICS,
    WORKER_METRICS,
)

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
#: Seconds that interrupting jobs and the last acknowledgements may take after the worker's grace.
AFTER_GRACE = 13
KUBERNETES = "1.34"

Object = dict[str, Any]


def run(program: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    """What a tool prints. One that isn't installed skips the test, and fails it where `CI` is set and
    `make test` could have installed it. (kubectl it can't: Debian's is too old for today's kustomizations.)"""
    found = shutil.which(program, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if found is None:
        if os.environ.get("CI") and program != "kubectl":
            pytest.fail(f"{program} isn't installed, and deploy/ must not go unchecked", pytrace=False)
        pytest.skip(f"{program} isn't installed")
    done = subprocess.run(
        [found, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{program} {shlex.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done.stdout


# -- Kubernetes


@cache
def rendered(folder: str) -> tuple[Object, ...]:
    return tuple(yaml.safe_load_all(run("kubectl", "kustomize", str(DEPLOY / "kubernetes" / folder))))


@pytest.fixture(params=["base", "example"])
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return rendered(request.param)


def of_kind(objects: tuple[Object, ...], kind: str) -> list[Object]:
    found = [one for one in objects if one["kind"] == kind]
    assert found, f"there is no {kind}"
    return found


def pods(objects: tuple[Object, ...]) -> dict[str, Object]:
    """The pod that each Deployment makes."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in of_kind(objects, "Deployment")
    }


def containers(objects: tuple[Object, ...]) -> list[Object]:
    return [
        one for pod in pods(objects).values() for one in (*pod.get("initContainers", ()), *pod["containers"])
    ]


def test_kubernetes_knows_every_field(objects: tuple[Object, ...]) -> None:
    for one in objects:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_there_is_a_deployment_for_each_class_of_workers_and_one_for_the_scheduler(
    objects: tuple[Object, ...],
) -> None:
    assert pods(objects).keys() == {"callboard-fast", "callboard-bulk", "callboard-scheduler"}


def test_pods_are_nobody_and_have_no_token(objects: tuple[Object, ...]) -> None:
    for pod in pods(objects).values():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == "callboard"
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert all(volume.keys() & {"emptyDir", "configMap"} for volume in pod["volumes"])
    assert of_kind(objects, "ServiceAccount")[0]["automountServiceAccountToken"] is False


def test_containers_can_write_nowhere_but_where_they_must_and_gain_no_rights(
    objects: tuple[Object, ...],
) -> None:
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = container["volumeMounts"]
        assert {mount["mountPath"] for mount in mounts if not mount.get("readOnly")} <= {
            "/tmp",
            "/var/lib/callboard",
        }


def test_containers_have_requests_and_limits(objects: tuple[Object, ...]) -> None:
    for container in containers(objects):
        resources = container["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        assert "memory" in resources["limits"]


def test_workers_and_schedulers_are_probed_at_the_port_that_they_are_told_to_open(
    objects: tuple[Object, ...],
) -> None:
    settings = of_kind(objects, "ConfigMap")[0]["data"]
    for name, pod in pods(objects).items():
        [container] = pod["containers"]
        setting = f"CALLBOARD_{container['args'][0].upper()}_HTTP"
        port = int(settings[setting].rpartition(":")[2])
        assert container["ports"] == [{"name": "http", "containerPort": port}], name
        paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert paths == {
            "startup": {"path": "/healthz", "port": "http"},
            "liveness": {"path": "/healthz", "port": "http"},
            "readiness": {"path": "/readyz", "port": "http"},
        }


def test_pods_have_longer_to_end_than_their_jobs(objects: tuple[Object, ...]) -> None:
    for name in ("callboard-fast", "callboard-bulk"):
        pod = pods(objects)[name]
        arguments = pod["containers"][0]["args"]
        grace = float(arguments[arguments.index("--grace") + 1])
        assert pod["terminationGracePeriodSeconds"] > grace + AFTER_GRACE


def test_each_deployment_has_a_disruption_budget_of_its_own(objects: tuple[Object, ...]) -> None:
    selectors = [one["spec"]["selector"]["matchLabels"] for one in of_kind(objects, "PodDisruptionBudget")]
    assert len(selectors) == len(pods(objects))
    for deployment in of_kind(objects, "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert sum(selector.items() <= labels.items() for selector in selectors) == 1
        assert deployment["spec"]["replicas"] > 1  # with one, a budget stops every drain, or protects nothing


def test_the_network_is_closed_but_for_named_ports(objects: tuple[Object, ...]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "NetworkPolicy")}
    deny = policies.pop("callboard-default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        for rule in policy.get("egress", []):
            assert rule["ports"]
        for rule in policy.get("ingress", []):
            assert rule["ports"]
            assert rule["from"]


def test_settings_are_mounted_from_the_map_that_is_made_and_from_a_secret_that_is_not_here(
    objects: tuple[Object, ...],
) -> None:
    [settings] = of_kind(objects, "ConfigMap")
    for container in containers(objects):
        assert container["envFrom"] == [
            {"configMapRef": {"name": settings["metadata"]["name"]}},
            {"secretRef": {"name": "callboard-worker"}},
        ]
        assert "env" not in container
    assert not any(one["kind"] == "Secret" for one in objects)


# -- Compose


@pytest.fixture(scope="module")
def compose() -> Object:
    loaded: Object = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_compose_knows_every_field(compose: Object) -> None:
    compose_spec.PyCompose.from_json(json.dumps(compose)).to_spec()


def test_compose_hardens_every_service(compose: Object) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert not service.keys() & {"privileged", "network_mode", "pid", "devices"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_compose_waits_for_servers_that_answer(compose: Object) -> None:
    services = compose["services"]
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[other]["healthcheck"]["test"][0] == "CMD"
    for name in ("fast", "bulk", "scheduler"):
        assert services[name]["depends_on"].keys() == {"rabbitmq", "redis", "queues"}


def test_compose_mounts_what_is_there_or_what_credentials_makes(compose: Object) -> None:
    made = re.findall(
        r"^    (?=\w)(\S+\.(?:json|acl|env)) ", (DEPLOY / "credentials.py").read_text(), re.MULTILINE
    )
    assert len(made) == 5
    for service in compose["services"].values():
        mounted = [volume.split(":")[0] for volume in service.get("volumes", ()) if volume.startswith("./")]
        for source in (*mounted, *service.get("env_file", ())):
            path = Path(source)
            assert (DEPLOY / path).is_file() or (path.parent.name == "secrets" and path.name in made), source


def test_compose_has_prometheus_ask_the_port_that_each_service_opens(compose: Object) -> None:
    [job, *_] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    [asked] = job["dns_sd_configs"]
    for name in asked["names"]:
        service = compose["services"][name]
        setting = f"CALLBOARD_{service['command'][0].upper()}_HTTP"
        assert service["environment"][setting] == f"0.0.0.0:{asked['port']}"
        assert service["expose"] == [str(asked["port"])]
        assert "healthcheck" not in service, "the image has one"
    assert set(asked["names"]) == {
        name for name, service in compose["services"].items() if "9191" in service.get("expose", ())
    }


def test_compose_ends_workers_later_than_their_jobs(compose: Object) -> None:
    for name in ("fast", "bulk"):
        service = compose["services"][name]
        grace = float(service["command"][service["command"].index("--grace") + 1])
        assert float(service["stop_grace_period"].removesuffix("s")) > grace + AFTER_GRACE


def test_no_password_is_in_what_is_committed(compose: Object) -> None:
    names = [*compose.get("x-app", {}).get("environment", {})]
    for service in compose["services"].values():
        names += service.get("environment", {})
    assert not [name for name in names if re.search("PASS|SECRET|KEY|URL", name)]
    definitions = json.loads((DEPLOY / "rabbitmq" / "definitions.json").read_text())
    assert {user["password_hash"] for user in definitions["users"]} == {""}
    assert not re.search(r"[>#]\S{8}|nopass", (DEPLOY / "redis" / "users.acl").read_text())


# -- the image


def last_stage() -> str:
    return re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)[-1]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run("hadolint", "--failure-threshold", "style", str(DEPLOY / "Dockerfile"))


def test_the_image_runs_as_a_number_and_holds_no_tools() -> None:
    stage = last_stage()
    uid = re.search(r"^ARG UID=(\d+)$", stage, re.MULTILINE)
    assert uid and int(uid[1]) >= 10_000
    assert re.search(r"^USER \$\{UID\}$", stage, re.MULTILINE)
    assert not re.search(r"\b(pip|apt-get|hatchling)\b", stage)
    assert re.search(r'^ENTRYPOINT \["callboard"\]$', stage, re.MULTILINE)
    installed = re.findall(r"^([\w.-]+)==", (DEPLOY / "locks" / "image.txt").read_text(), re.MULTILINE)
    assert {"dramatiq", "pika", "redis", "pydantic"} <= set(installed)
    assert not set(installed) & {"hatchling", "pytest", "mypy", "ruff", "pip", "hypothesis"}


def test_docker_is_sent_what_the_image_copies_and_nothing_else() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    sent = {line[1:] for line in ignore if line.startswith("!")}
    copied = set()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert {re.sub(r"^deploy/locks/.*", "deploy/locks", name) for name in copied} == sent
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.slow  # it downloads what the image holds
def test_the_build_stage_makes_an_environment_in_which_the_application_runs(tmp_path: Path) -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    _, build, last = re.split(r"^FROM .*$", text, flags=re.MULTILINE)
    places = {"/build": tmp_path / "build", "/opt/callboard": tmp_path / "opt", "/app": tmp_path / "app"}
    for place in (places["/build"], places["/app"]):
        place.mkdir()
    for line in build.splitlines():
        step, _, rest = line.partition(" ")
        if step == "COPY":
            copy(rest, places["/build"])
        elif step == "RUN":
            for name, place in places.items():
                rest = re.sub(rf"(?<![\w/]){name}\b", str(place), rest)
            subprocess.run(["sh", "-ec", rest], cwd=places["/build"], check=True)
    for line in last.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copy(line.partition(" ")[2], places["/app"])
    environment = {
        "PATH": f"{places['/opt/callboard']}/bin:/usr/bin:/bin",
        "CALLBOARD_BROKER_URL": f"file:{tmp_path}",
    }
    shown = subprocess.run(
        ["callboard", "queues", "list", "--all"],
        cwd=places["/app"], env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "email.high" in shown.stdout
    assert not (places["/opt/callboard"] / "bin" / "pip").exists()


def copy(arguments: str, workdir: Path) -> None:
    """What COPY does with files and folders of the checkout."""
    *sources, target = arguments.split()
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(
                ROOT / source, workdir / target, ignore=shutil.ignore_patterns("__pycache__", "var")
            )
        else:
            shutil.copy(ROOT / source, workdir / target)


# -- in step with the code


def settings_in_manifests() -> set[str]:
    texts = [
        path.read_text() for path in sorted(DEPLOY.rglob("*")) if path.suffix in {".yaml", ".py", ".yml"}
    ]
    return set(re.findall(r"\bCALLBOARD_[A-Z_]+\b", "".join([*texts, (DEPLOY / "Dockerfile").read_text()])))


def callboard(*arguments: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "callboard.cli", *arguments, "--json"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    done = subprocess.run(
        command, cwd=ROOT, env=quiet | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_every_setting_is_one_that_callboard_knows() -> None:
    known = {setting["variable"] for setting in callboard("settings")["settings"]}
    found = settings_in_manifests()
    assert {"CALLBOARD_BROKER_URL", "CALLBOARD_SCHEDULER_HTTP", "CALLBOARD_ENVIRONMENT"} <= found
    assert found <= known


def command_lines() -> Iterator[list[str]]:
    """What containers are told to run, and what alerts and their docs tell people to."""
    for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        if service.get("image") == "callboard":
            yield service["command"]
    for folder in ("base", "example"):
        for container in containers(rendered(folder)):
            yield container["args"]
    for rule in alert_rules():
        for command in re.findall(r"callboard ([a-z][^;,]*)", rule["annotations"]["action"]):
            yield shlex.split(re.sub(r"\{\{.*?\}\}", "mail", command))


def parse(line: list[str]) -> None:
    """Take a command line as the command does, and stop before it does anything."""
    command: Any = get_command(app)
    arguments, context = list(line), command.make_context("callboard", list(line))
    while hasattr(command, "resolve_command"):
        _, command, arguments = command.resolve_command(context, arguments)
        assert command is not None, line
        context = command.make_context(command.name, list(arguments), parent=context)


def test_every_command_line_is_one_that_callboard_understands() -> None:
    lines = list(command_lines())
    assert len(lines) > 10
    for line in lines:
        parse(line)


@pytest.mark.parametrize("line", ["worker --prozesses 2", "queues creat", "jobs list --stat dead", "work"])
def test_a_command_line_that_is_wrong_is_found(line: str) -> None:
    with pytest.raises(Exception, match="No such"):
        parse(shlex.split(line))


def test_each_queue_has_exactly_one_class_of_workers(tmp_path: Path) -> None:
    listed = callboard(
        "queues", "list", CALLBOARD_BROKER_URL=f"file:{tmp_path}", CALLBOARD_STORE_URL="memory:"
    )
    queues = [queue["name"] for queue in listed["queues"] if queue["kind"] == "jobs"]
    assert len(queues) > 4
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    in_compose = [services[name]["command"] for name in ("fast", "bulk")]
    in_kubernetes = [
        pods(rendered("base"))[name]["containers"][0]["args"] for name in ("callboard-fast", "callboard-bulk")
    ]
    assert in_compose == in_kubernetes
    patterns = [command[command.index("--queues") + 1].split(",") for command in in_compose]
    for queue in queues:
        assert sum(any(fnmatchcase(queue, pattern) for pattern in each) for each in patterns) == 1


# -- Prometheus


def alert_rules() -> list[Object]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def test_promtool_takes_configuration_and_alerts() -> None:
    run("promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    run("promtool", "check", "rules", str(ALERTS))


def test_alerts_fire_when_they_should_and_are_silent_else() -> None:
    run("promtool", "test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))


def test_each_alert_is_tested_firing_and_silent_and_told_of_in_the_docs() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    firing: set[str] = set()
    silent: set[str] = set()
    for check in (one for test in tests for one in test["alert_rule_test"]):
        (firing if check.get("exp_alerts") else silent).add(check["alertname"])
    names = {rule["alert"] for rule in alert_rules()}
    assert firing == silent == names
    docs = (ROOT / "docs" / "howto" / "deploy.md").read_text()
    assert set(re.findall(r"`(Callboard\w+)`", docs)) == names


def test_alerts_ask_for_metrics_that_there_are() -> None:
    histograms = {
        f"{name}_{part}" for name in (RUN_SECONDS, QUEUE_SECONDS) for part in ("bucket", "sum", "count")
    }
    known = {IN_PROGRESS, *histograms, *(f"callboard_jobs_{name}_total" for name in COUNTERS)}
    for name, (kind, *_) in (WORKER_METRICS | SCHEDULER_METRICS | SHARED_METRICS).items():
        known.add(f"{name}_total" if kind == "counter" else name)
    asked = set(re.findall(r"\bcallboard_\w+", "".join(rule["expr"] for rule in alert_rules())))
    assert asked <= known
    in_tests = set(re.findall(r"\bcallboard_\w+", (DEPLOY / "prometheus" / "alerts_test.yml").read_text()))
    assert in_tests <= known
    bounds = {"+Inf", *(str(float(bound)) for bound in BUCKETS)}
    assert set(re.findall(r'le="([^"]+)"', (DEPLOY / "prometheus" / "alerts_test.yml").read_text())) <= bounds
