"""A real Prometheus beside a real service: all queries of the dashboard, and all alerts' conditions, find numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml
from harness import ROOT, Program, running, serving, wait_until

DOCKER = ROOT / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "mosec.json").read_text())
STAGES = """
    from stream_workers import Count
    server.append_worker(Sabotage, num=2, max_batch_size=8)
    server.append_worker(Gate, route="/gate", timeout=1)
    server.append_worker(Count, route="/stream")
"""


class Traffic:
    """Asks a service for all that it can answer, good and bad, again and again until it is told to stop."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._stopped = threading.Event()
        # One each, so that one that waits for its timeout holds up no other.
        kinds = (self._good_and_bad, self._late, self._left, self._streams)
        self._threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, kind: Callable[[], None]) -> None:
        while not self._stopped.wait(0.02):
            kind()

    def _expect(self, status: int, path: str, item: object, **options: Any) -> None:
        response = self._client.post(path, json=item, **options)
        assert response.status_code == status, response.text

    def _good_and_bad(self) -> None:
        for number in range(10):
            self._expect(200, "/inference", number)
        self._expect(422, "/inference", "invalid")
        # A list cannot be looked up among the ways to break things.
        self._expect(500, "/inference", [])

    def _late(self) -> None:
        response = self._client.post("/gate", json="/never/there", headers={"x-request-timeout": "50"})
        # Refused at once where others that never end are before it.
        assert response.status_code in (408, 429), response.text

    def _left(self) -> None:
        with pytest.raises(httpx.ReadTimeout):
            self._client.post("/gate", json="/never/there", timeout=httpx.Timeout(30.0, read=0.05))

    def _streams(self) -> None:
        self._expect(200, "/stream", {"count": 3, "seconds": 0.001})


@dataclass
class Prometheus:
    """A Prometheus that watches a service."""

    client: httpx.Client

    def ask(self, path: str, **parameters: str) -> Any:
        response = self.client.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, f"{parameters}: {response.text}"
        return response.json()["data"]

    def finds(self, query: str) -> bool:
        """Whether a query has an answer that is a number."""
        values = [float(row["value"][1]) for row in self.ask("query", query=query)["result"]]
        return any(map(math.isfinite, values))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("service")
    arguments, variables = ("--timeout", "20000"), {"NOTES": str(folder)}
    with serving(folder, STAGES, *arguments, environment=variables) as program, Traffic(program.client):
        # Two workers die of it, each once, and the client is told.
        assert program.client.post("/inference", json="kill").status_code == 500
        yield program


@pytest.fixture(scope="module")
def prometheus(service: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian's package of that name)")
    folder = tmp_path_factory.mktemp("prometheus")
    settings = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(DOCKER / "prometheus" / "alerts.yaml", folder)
    command = [
        binary,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with running(command, folder / "output.log") as program:
        program.wait_ready("/-/ready")
        yield Prometheus(program.client)


def dashboard_queries() -> dict[str, str]:
    """Return the queries of the dashboard by panel, with its variables filled in as Grafana does.

    What they say where there is nothing to say, a zero by default, is taken out: each must find numbers of its own.
    """
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "5s").replace(" or vector(0)", "")
            query = query.replace("== 0", "== bool 0")
            found[f"{panel['title']}, {target['refId']}"] = re.sub(r"\$(job|instance|stage)", ".+", query)
    return found


def alert_conditions() -> dict[str, str]:
    """Return the conditions of the alerts, each so that it says 0 or 1 where it would say nothing or something."""
    [group] = yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: re.sub(r"(==|>) (?=[\d.]+$)", r"\1 bool ", rule["expr"]) for rule in group["rules"]}


def assert_answered(prometheus: Prometheus, queries: dict[str, str]) -> None:
    """Wait until Prometheus has seen enough to answer all of the queries."""
    missing = dict(queries)

    def all_answered() -> bool:
        for name, query in list(missing.items()):
            if prometheus.finds(query):
                del missing[name]
        return not missing

    try:
        wait_until(all_answered, "some queries find nothing")
    except AssertionError as error:
        raise AssertionError(
            "\n".join([str(error), *(f"{name}: {query}" for name, query in missing.items())])
        ) from None


def test_each_query_of_the_dashboard_finds_its_numbers(prometheus: Prometheus) -> None:
    queries = dashboard_queries()
    assert len(queries) > 30
    assert_answered(prometheus, queries)


def test_each_condition_of_an_alert_finds_its_numbers(prometheus: Prometheus) -> None:
    conditions = alert_conditions()
    assert all(" bool " in condition for condition in conditions.values())
    assert_answered(prometheus, conditions)
    rules = prometheus.ask("rules")["groups"][0]["rules"]
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(conditions, "ok")


def test_the_autoscalers_metrics_find_their_numbers(prometheus: Prometheus) -> None:
    """The queries of prometheus-adapter's rules, filled in as it does, with an instance in the place of a pod."""
    rules = yaml.safe_load((DOCKER / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]
    for rule in rules:
        query = (
            rule["metricsQuery"].replace("<<.LabelMatchers>>", 'job=~"mosec|other"').replace("<<.GroupBy>>", "instance")
        )
        assert "<<" not in query
        wait_until(lambda query=query: prometheus.finds(f"{query} > 0"), query)
        # One for each pod.
        assert len(prometheus.ask("query", query=query)["result"]) == 1
        assert re.match(r"mosec_service_\w+\{namespace!=\"\",pod!=\"\"\}$", rule["seriesQuery"])


def test_each_variable_of_the_dashboard_has_values(prometheus: Prometheus) -> None:
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            matched = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert matched, variable["query"]
            series = re.sub(r"\$(job|instance|stage)", ".+", matched[1])
            found[variable["name"]] = prometheus.ask(f"label/{matched[2]}/values", **{"match[]": series})
    assert found["job"] == ["mosec"]
    assert len(found["instance"]) == 1
    assert found["stage"] == ["Count_3", "Gate_2", "Sabotage_1"]


def test_what_went_wrong_is_told_apart(service: Program, prometheus: Prometheus) -> None:
    """The numbers behind the panels move with what they count: none stands at zero by mistake."""
    for condition in (
        'sum(mosec_service_throughput_total{code="408", endpoint="/gate"}) > 0',
        'sum(mosec_service_throughput_total{code="422", endpoint="/inference"}) > 0',
        'sum(mosec_service_throughput_total{code="500", endpoint="/inference"}) > 0',
        'mosec_service_tasks_timed_out_total{stage="Gate_2"} > 0',
        'mosec_service_tasks_cancelled_total{stage="Gate_2"} > 0',
        'mosec_service_worker_restarts_total{stage="Sabotage_1"} >= 2',
        'mosec_service_events_sent_total{stage="Count_3"} > 0',
    ):
        wait_until(lambda query=condition: prometheus.finds(query), condition)
