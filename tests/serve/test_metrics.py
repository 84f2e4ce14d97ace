"""The figures for Prometheus: judged by promtool and a Prometheus that scrapes them, and the dashboard's names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from edged.serve import metrics
from edged.serve.fleet_state import FleetState
from tests.support import ROOT, Device, free_port, wait_until

DASHBOARD = ROOT / "config" / "grafana-dashboard.json"
FOLDERS = "/usr/bin:" + str(ROOT / ".edged" / "prometheus" / "usr" / "bin")  # scripts/test --all unpacks it there
TELEMETRY = {
    "uptime_s": 5, "cpu": {"percent": 50}, "temperature_c": 61.5, "throttled": False, "disk": {"free_bytes": 7e10},
    "memory": {"used_bytes": 10, "total_bytes": 20}, "speed": {"tokens_per_second": 12.5, "ttft_ms": 80},
    "queue": {"open": 1, "running": 1, "answered": 3, "refused": 0}, "agent": {"rss_bytes": 5},
}  # fmt: skip


def program(name: str) -> str:
    found = shutil.which(name, path=FOLDERS)
    if found is None:
        pytest.skip(f"needs {name} (scripts/test --all fetches it)")
    return found


def rendered() -> str:
    fleet = FleetState("home", lambda: 1_800_000_000.0)
    documents: dict[str, Any] = {
        "telemetry": TELEMETRY,
        "health": {
            "state": "ok",
            "version": "1",
            "model": {"name": 'a "model"\\\n'},
            "findings": [{"code": "throttled"}],
        },
        "config/reported": {"in_force": {"fleet": 7, "device": 2}},
    }
    fleet.apply("edged/v1/home/device/pi/status", b"online")
    for kind, document in documents.items():
        fleet.apply(f"edged/v1/home/device/pi/{kind}", json.dumps(document).encode())
    return metrics.render(fleet)


def test_figures_are_in_base_units() -> None:
    lines = rendered().splitlines()
    for line in ('edged_cpu_usage_ratio{device="pi"} 0.5', 'edged_time_to_first_token_seconds{device="pi"} 0.08',
                 'edged_throttled{device="pi"} 0', 'edged_prompts_answered_total{device="pi"} 3',
                 'edged_config_revision{device="pi",layer="fleet"} 7'):  # fmt: skip
        assert line in lines
    assert not [line for line in lines if line.startswith("edged_agent") and "worker" in line]


def test_the_dashboard_uses_names_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    known = set(re.findall(r"^# TYPE (\w+)", rendered(), re.MULTILINE))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [variable["query"] for variable in dashboard["templating"]["list"]]
    used = {name for expression in expressions for name in re.findall(r"edged_\w+", expression)}
    assert used
    assert set() == used - known
    assert len(dashboard["panels"]) == len({panel["id"] for panel in dashboard["panels"]})


def test_promtool_finds_nothing() -> None:
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=rendered(), capture_output=True, text=True, check=False
    )
    assert (0, "", "") == (checked.returncode, checked.stdout, checked.stderr)


@pytest.mark.slow
@pytest.mark.broker
def test_a_real_prometheus_scrapes_it(serve: Callable[..., str], device: Callable[..., Device], tmp_path: Path) -> None:
    server = program("prometheus")
    device()
    target = serve().removeprefix("http://")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: edged, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    command = [server, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
               f"--web.listen-address={address}"]  # fmt: skip
    process = subprocess.Popen(command, stderr=(tmp_path / "log").open("wb"), cwd=tmp_path)
    try:

        def result(query: str) -> Any:
            try:
                answer = httpx.get(f"http://{address}/api/v1/query", params={"query": query}, timeout=5).json()
            except (httpx.TransportError, ValueError):
                return None
            return answer.get("data", {}).get("result")

        assert "1" == wait_until(lambda: result('up{job="edged"} == 1'), 60, "a scrape", every=0.2)[0]["value"][1]
        for query in ('edged_device_status{status="online"} == 1', "edged_memory_total_bytes > 1e6"):
            found = wait_until(lambda query=query: result(query), 30, query, every=0.2)
            assert "pi" == found[0]["metric"]["device"]
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
            expression = panel["targets"][0]["expr"].replace("$device", ".*")
            assert result(expression) is not None, expression
    finally:
        process.terminate()
        process.wait(20)
