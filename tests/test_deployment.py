"""The files under serve/: they parse, and what they name exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SERVE = ROOT / "serve"


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of `prism serve`."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "prism.cli", "serve", "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(re.findall(r"--[a-z][a-z-]*", done.stdout))


def given(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


def manifests() -> dict[tuple[str, str], Any]:
    found = yaml.safe_load_all((SERVE / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def test_compose_starts_the_endpoint_with_options_it_has(options):
    services = yaml.safe_load((SERVE / "compose.yaml").read_text(encoding="utf-8"))["services"]
    endpoint, vllm = services["endpoint"], services["vllm"]
    assert given(endpoint["command"]) <= options
    served = next(argument for argument in endpoint["command"] if argument.startswith("--served-model="))
    assert served.partition("=")[2] == "prism"
    assert "--served-model-name=prism" in vllm["command"]
    assert "--speculative-config" not in " ".join(vllm["command"])
    assert endpoint["environment"]["PRISM_ENGINE_API_KEY"] == vllm["environment"]["VLLM_API_KEY"]
    assert (SERVE.parent / endpoint["build"]["dockerfile"]).is_file()


def test_kubernetes_names_every_vllm_pod(options):
    found = manifests()
    vllm = found["StatefulSet", "prism-vllm"]
    (container,) = found["Deployment", "prism-endpoint"]["spec"]["template"]["spec"]["containers"]
    assert given(container["args"]) <= options
    urls = [argument.partition("=")[2] for argument in container["args"] if argument.startswith("--base-url")]
    assert urls == [f"http://prism-vllm-{pod}.prism-vllm:8000/v1" for pod in range(vllm["spec"]["replicas"])]
    for kind, name in (("Service", "prism"), ("Service", "prism-vllm"), ("PodDisruptionBudget", "prism-endpoint")):
        assert (kind, name) in found
    for workload in (vllm, found["Deployment", "prism-endpoint"]):
        assert (
            workload["spec"]["selector"]["matchLabels"].items()
            <= workload["spec"]["template"]["metadata"]["labels"].items()
        )


def test_ray_serves_the_name_and_settings_vllm_knows():
    config = yaml.safe_load((SERVE / "ray_serve.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    (model,) = application["args"]["llm_configs"]
    assert model["model_loading_config"]["model_id"] == "prism"
    assert "speculative_config" not in model["engine_kwargs"]
    assert model["engine_kwargs"]["enable_prefix_caching"] is True


def test_images_start_the_endpoint_with_options_it_has(options):
    for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
        text = (SERVE / name).read_text(encoding="utf-8")
        (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
        command = json.loads(entry)
        assert command[:2] == ["prism", "serve"]
        assert given(command) <= options
        for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
            assert all((ROOT / part).exists() for part in source.split()), source
        assert re.search(r"^USER prism$", text, re.MULTILINE), "nothing runs as root"


def expressions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "expr" in value:
            yield value["expr"]
        for part in value.values():
            yield from expressions(part)
    elif isinstance(value, list):
        for part in value:
            yield from expressions(part)


def test_the_dashboard_asks_for_metrics_that_exist():
    from prism.serving.observability import Metrics

    board = json.loads((SERVE / "grafana" / "prism.json").read_text(encoding="utf-8"))
    metrics = Metrics(lambda: 0)
    declared = set(re.findall(r"^# TYPE (\S+) ", metrics.text().decode(), re.MULTILINE))
    asked = {name for text in expressions(board) for name in re.findall(r"\bprism_\w+", text)}
    assert len(asked) >= 9
    assert {re.sub(r"_bucket$", "", name) for name in asked} <= declared


def test_the_load_script_measures_a_running_endpoint():
    """Against an endpoint that refuses every other request."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Endpoint(BaseHTTPRequestHandler):
        count = 0

        def do_POST(self) -> None:
            type(self).count += 1
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert len(body["documents"]) == 3
            self.send_response(200 if type(self).count % 2 else 429)
            self.send_header("retry-after", "0.01")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *arguments: Any) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "serve/load.py", "--url", f"http://127.0.0.1:{server.server_port}"]
        done = subprocess.run(
            [*command, "--clients", "2", "--documents", "3", "--seconds", "0.5"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert re.search(r"[1-9]\d* requests, .* documents/s", done.stdout)
    assert "429 x" in done.stdout


def test_what_serves_without_torch_has_all_that_the_extra_serve_asks_for():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = pyproject["project"]["optional-dependencies"]
    listed = (ROOT / "serve" / "llamacpp-requirements.txt").read_text(encoding="utf-8")
    assert [each for extra in ("serve", "llamacpp") for each in extras[extra] if each not in listed.splitlines()] == []
