"""The files in docker/, read by the linters and schemas of those who will run them, and held against each other."""

from __future__ import annotations

import http.server
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from containers import ignored, instructions
from harness import ROOT, free_port

from mosec_asgi.batching.coordinator import CLOSE_SECONDS
from mosec_asgi.batching.engine import StageStatistics, Statistics
from mosec_asgi.config import Settings
from mosec_asgi.host.draining import SILENCE_SECONDS
from mosec_asgi.observing.exposition import Exposition
from mosec_asgi.observing.metrics import ServiceMetrics, StageMetrics

DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "Dockerfile.cuda"]
KUBERNETES = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))
ADAPTER = yaml.safe_load((DOCKER / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "mosec.json").read_text())


def tool(name: str, reason: str) -> str:
    """Return where a program is, or skip the test."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(reason)
    return found


def passes(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = of_kind("Deployment")["spec"]["template"]["spec"]
    return spec


def of_kind(kind: str) -> dict[str, Any]:
    """Return the one document of a kind that the manifest has."""
    found: list[dict[str, Any]] = [document for document in KUBERNETES if document["kind"] == kind]
    [document] = found
    return document


def shown_metrics() -> str:
    """Return what a service with one stage shows at `/metrics`."""
    metrics = ServiceMetrics("mosec_service", [StageMetrics("Model_1", batched=True, streams=True)])
    stage = StageStatistics("Model_1", 0, 0, 0, ready=1, workers=1, restarts=0, down=False)
    return Exposition(metrics, lambda: Statistics(0, False, (stage,))).render("")[0].decode()


def shutdown_seconds(timeout_ms: int) -> float:
    """Return the most that a stop may take.

    Silent connections may bring their last requests, uvicorn waits for these, the coordinator for tasks and workers.
    """
    timeout = Settings(timeout=timeout_ms).timeout_seconds
    return SILENCE_SECONDS + (math.ceil(timeout) + 1) + timeout + CLOSE_SECONDS


# -- the images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing_in_a_dockerfile(file: Path) -> None:
    hadolint = tool("hadolint", "hadolint has no wheel for this machine")
    passes(hadolint, "--failure-threshold=style", "--no-color", str(file))


def test_both_images_run_the_same_service_in_the_same_way() -> None:
    def last_stage(file: Path) -> list[tuple[str, str]]:
        steps = instructions(file)
        start = max(place for place, (instruction, _) in enumerate(steps) if instruction == "FROM")
        return [step for step in steps[start + 1 :] if step[0] != "RUN"]

    plain, cuda = map(last_stage, DOCKERFILES)
    assert plain == cuda
    assert {"COPY", "ENV", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"} <= {instruction for instruction, _ in plain}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_a_dockerfile_copies_reaches_the_build_and_nothing_else_does(file: Path) -> None:
    copied = [
        source
        for instruction, value in instructions(file)
        if instruction == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    assert len(copied) == 6
    for source in copied:
        assert (ROOT / source).exists()
        assert not ignored(ROOT, source), source
    for path in (".git/config", ".venv/bin/python", "tests/harness.py", "docker/README.md", "mosec_asgi/__pycache__"):
        assert ignored(ROOT, path), path


@pytest.fixture
def answering() -> Iterator[Callable[[int], int]]:
    """Serve a given status at /readyz, and 200 everywhere else; returns the port."""
    servers = []

    def serve(status: int) -> int:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/readyz" else 200)
                self.end_headers()
                self.wfile.write(b"said so")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,)).start()
        return int(servers[-1].server_port)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "said"), [(200, 0, ""), (503, 1, "503: said so\n"), (None, 1, "no answer from port ")]
)
def test_the_healthcheck_asks_whether_the_service_is_ready(
    answering: Callable[[int], int], status: int | None, code: int, said: str
) -> None:
    port = free_port() if status is None else answering(status)
    command = [sys.executable, "-I", "-S", str(DOCKER / "healthcheck.py")]
    done = subprocess.run(command, env={"MOSEC_PORT": str(port)}, capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert bool(done.stderr) == bool(code)


def test_the_image_of_your_own_in_the_readme_is_a_good_dockerfile(tmp_path: Path) -> None:
    hadolint = tool("hadolint", "hadolint has no wheel for this machine")
    [text] = re.findall(r"```dockerfile\n(.*?)```", (DOCKER / "README.md").read_text(), re.DOTALL)
    file = tmp_path / "Dockerfile"
    file.write_text(text)
    passes(hadolint, "--failure-threshold=style", "--no-color", str(file))
    users = [value for instruction, value in instructions(file) if instruction == "USER"]
    assert users[-1] == dict(instructions(DOCKERFILES[0]))["USER"]


# -- compose -----------------------------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_compose_specification() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    assert set(compose_spec.PyCompose.from_yaml(text).service_names()) == {"mosec", "prometheus", "grafana"}
    # It looks at each key.
    with pytest.raises(ValueError, match="shm_sizes"):
        compose_spec.PyCompose.from_yaml(text.replace("shm_size:", "shm_sizes:"))


def test_what_compose_mounts_and_builds_is_there() -> None:
    services = COMPOSE["services"]
    volumes = [volume.split(":") for service in services.values() for volume in service.get("volumes", ())]
    files = [source for source, *_ in volumes if source.startswith(".")]
    assert len(files) == 4
    assert all((DOCKER / source).exists() for source in files)
    assert {source for source, *_ in volumes} - set(files) <= COMPOSE["volumes"].keys()
    build = services["mosec"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKERFILES[0]


def test_the_parts_of_compose_find_each_other() -> None:
    services = COMPOSE["services"]
    [scraped] = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    assert scraped["static_configs"][0]["targets"] == ["mosec:8000"]
    assert f"MOSEC_PORT={8000}" in dict(instructions(DOCKERFILES[0]))["ENV"]
    provisioning = DOCKER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "mosec.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DOCKER / "grafana" / "dashboards" / Path(home).relative_to(folder)).exists()


def test_compose_gives_a_stop_the_time_that_it_may_take() -> None:
    service = COMPOSE["services"]["mosec"]
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace >= shutdown_seconds(int(service["environment"]["MOSEC_TIMEOUT"]))


# -- Kubernetes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.30", "1.34"])
@pytest.mark.parametrize("document", KUBERNETES, ids=lambda document: document["kind"])
def test_the_manifest_follows_the_schema_of_kubernetes(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_looks_at_each_key() -> None:
    wrong = json.loads(json.dumps(KUBERNETES[0]))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProbes"):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_kubernetes_gives_a_stop_the_time_that_it_may_take() -> None:
    [container] = pod()["containers"]
    [timeout] = [int(variable["value"]) for variable in container["env"] if variable["name"] == "MOSEC_TIMEOUT"]
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod()["terminationGracePeriodSeconds"] >= waits + shutdown_seconds(timeout)


def test_the_startup_probe_waits_as_long_as_a_worker_may_take_to_load() -> None:
    probe = pod()["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= Settings().start_timeout / 1000


def test_kubernetes_keeps_the_images_init_and_its_user() -> None:
    [container] = pod()["containers"]
    image = dict(instructions(DOCKERFILES[0]))
    assert "command" not in container
    assert container["args"] == json.loads(image["CMD"])
    user = pod()["securityContext"]
    assert image["USER"] == f"{user['runAsUser']}:{user['runAsGroup']}"


def test_the_service_of_kubernetes_finds_the_pods() -> None:
    deployment, service = of_kind("Deployment"), of_kind("Service")
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    [port] = template["spec"]["containers"][0]["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    assert port["containerPort"] == Settings().port


def test_an_update_of_kubernetes_takes_no_pod_before_another_is_ready() -> None:
    deployment, budget, scaler = map(of_kind, ["Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler"])
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert budget["spec"]["maxUnavailable"] < scaler["spec"]["minReplicas"]
    container = pod()["containers"][0]
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    # No request comes any more before the stop begins to refuse connections.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] <= int(container["lifecycle"]["preStop"]["exec"]["command"][-1])


def test_the_autoscaler_scales_the_deployment_by_metrics_that_the_adapter_makes() -> None:
    scaler, deployment = of_kind("HorizontalPodAutoscaler")["spec"], of_kind("Deployment")
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    asked = [metric["pods"]["metric"]["name"] for metric in scaler["metrics"]]
    assert asked == [rule["name"]["as"] for rule in ADAPTER]
    [wait, _] = scaler["metrics"]
    assert 0 < int(wait["pods"]["target"]["averageValue"]) < Settings().timeout / 2, "before requests are refused"


def test_the_series_of_the_adapters_rules_are_metrics_of_the_service() -> None:
    text = shown_metrics()
    for rule in ADAPTER:
        names = re.findall(r"mosec_service_\w+", rule["seriesQuery"] + rule["metricsQuery"])
        assert len(names) == 3
        for name in names:
            assert re.search(rf"^{name}\{{stage=", text, re.M), name


# -- Prometheus and Grafana --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yaml"), ("test", "rules", "alerts_test.yaml")],
    ids=["the configuration is valid", "the alerts fire when they should"],
)
def test_promtool(arguments: tuple[str, str, str]) -> None:
    promtool = tool("promtool", "promtool is not installed (Debian's package prometheus)")
    passes(promtool, *arguments[:2], str(DOCKER / "prometheus" / arguments[2]))


def test_each_alert_is_tested_both_ways_and_says_what_to_do() -> None:
    [group] = yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text())["groups"]
    tested: dict[str, set[bool]] = {rule["alert"]: set() for rule in group["rules"]}
    for case in yaml.safe_load((DOCKER / "prometheus" / "alerts_test.yaml").read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            tested[expected["alertname"]].add(bool(expected["exp_alerts"]))
    assert all(outcomes == {True, False} for outcomes in tested.values()), tested
    assert all(rule["annotations"].keys() == {"summary", "action"} for rule in group["rules"])


def test_the_dashboards_panels_can_be_told_apart_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_the_dashboard_uses_its_variables_and_no_others() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps(DASHBOARD)
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__all"}
    assert used == variables
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            assert 'job=~"$job", instance=~"$instance"' in target["expr"], panel["title"]


def test_the_dashboard_shows_each_metric_of_the_service() -> None:
    """Each but those that say the same as another in a coarser or an older way."""
    text = shown_metrics()
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ()))
    shown += (DOCKER / "prometheus" / "alerts.yaml").read_text()
    missing = {name for name in re.findall(r"(?m)^# TYPE (\S+?)(?:_total)? ", text) if name not in shown}
    assert missing == set()
