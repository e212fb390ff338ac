"""The deployment files: valid for the tools that will read them, and true to each other and to the server."""

import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.request

import kubernetes_validate
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import keras_bn_serving
from keras_bn_serving.client import Client
from keras_bn_serving.local_server import launch
from keras_bn_serving.local_server.catalog import MonitoringConfig
from keras_bn_serving.local_server.flags import Flags

SERVING = pathlib.Path(keras_bn_serving.__file__).parents[1]
DEPLOY = SERVING / "deploy"
KUBERNETES = [
    path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) if path.name != "kustomization.yaml"
]
YAML = [*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml"), *SERVING.glob("config/*.yaml")]
METRIC = re.compile(r":tensorflow:[\w:]+")


def documents(path: pathlib.Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def kubernetes(kind: str, name: str = "tf-serving") -> dict:
    found = itertools.chain.from_iterable(map(documents, KUBERNETES))
    return next(entry for entry in found if entry["kind"] == kind and entry["metadata"]["name"] == name)


COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
POD = kubernetes("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "tf-serving.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = [
    rule["expr"]
    for group in documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"]
    for rule in group["rules"]
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models") / "digits"
    module = tf.Module()
    module.call = tf.function(
        lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(root / "1"), signatures={"serving_default": module.call})
    with launch(root, "digits", monitoring_config_file=SERVING / "config" / "monitoring.config") as running:
        yield running


# Each file by itself


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_it_is_yaml(path):
    assert all(isinstance(document, dict) for document in documents(path))


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_accepts_it(path):
    for document in documents(path):
        kubernetes_validate.validate(document, "1.32", strict=True)  # strict: no unknown field


def test_kustomize_builds_it():
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH")
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = {entry["kind"]: entry for entry in yaml.safe_load_all(built)}
    for document in found.values():
        kubernetes_validate.validate(document, "1.32", strict=True)
    # The pods mount the very ConfigMap, under the name that has the hash of its contents.
    name = found["ConfigMap"]["metadata"]["name"]
    assert name != "tf-serving-config"
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": name}} in volumes
    for file, text in found["ConfigMap"]["data"].items():
        assert text == (SERVING / "config" / file).read_text()


def test_the_compose_file_is_one_by_the_specification():
    schema = ["--builtin-schema", "vendor.compose-spec"]
    command = [sys.executable, "-m", "check_jsonschema", *schema, DEPLOY / "docker-compose.yml"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


def test_docker_compose_accepts_it():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "-f", str(DEPLOY / "docker-compose.yml"), "config", "--quiet"]
    subprocess.run(command, env={"MODELS": "/tmp", "PATH": os.defpath}, check=True, timeout=60)


def test_promtool_accepts_the_scrapes_the_alerts_and_the_dashboard(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian: prometheus) is not on PATH")
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    cluster = tmp_path / "prometheus" / "kubernetes.yml"
    # Debian builds promtool without Kubernetes; the rest of the job is checked.
    cluster.write_text(
        re.sub(r"kubernetes_sd_configs:\n +- role: pod", "static_configs: []", cluster.read_text())
    )
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "1m").replace("$model", ".*")}
        for number, expr in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    for check, file in [("config", "prometheus/prometheus.yml"), ("config", "prometheus/kubernetes.yml"),
                        ("rules", "dashboard.yml")]:  # fmt: skip
        result = subprocess.run(
            ["promtool", "check", check, file], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr


# Against each other


@pytest.mark.parametrize(
    ("command", "mounts"),
    [
        (
            COMPOSE["services"]["tf-serving"]["entrypoint"] + COMPOSE["services"]["tf-serving"]["command"],
            {
                volume.split(":")[-2]: volume.rsplit(":", 2)[0]
                for volume in COMPOSE["services"]["tf-serving"]["volumes"]
            },
        ),
        (
            CONTAINER["command"] + CONTAINER["args"],
            {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]},
        ),
    ],
    ids=["compose", "kubernetes"],
)
def test_the_command_is_tf_servings_and_its_files_are_mounted(command, mounts):
    assert command[0] == "tensorflow_model_server"
    known = set(vars(Flags()))
    for argument in command[1:]:
        name, value = argument.removeprefix("--").split("=")  # TF Serving knows --name=value alone
        assert name in known
        if value.startswith("/config/"):
            assert "/config" in mounts
            assert (SERVING / "config" / pathlib.Path(value).name).is_file()
    (model,) = models()
    assert any(model.base_path.startswith(f"{mount}/") for mount in mounts)


def models():
    text = (SERVING / "config" / "models.config").read_text()
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config


def test_the_mounts_of_compose_exist():
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.rsplit(":", 2)[0]
            assert source.startswith("${MODELS") or (DEPLOY / source).exists(), source


def test_the_parts_of_the_deployment_fit_together():
    labels = POD["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert kubernetes("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    for name in ("tf-serving", "tf-serving-grpc"):
        spec = kubernetes("Service", name)["spec"]
        assert spec["selector"] == labels
        assert all(ports[port["targetPort"]] == port["port"] for port in spec["ports"])
    assert kubernetes("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "tf-serving"
    arguments = dict(argument.removeprefix("--").split("=") for argument in CONTAINER["args"])
    assert ports == {"grpc": int(arguments["port"]), "rest": int(arguments["rest_api_port"])}
    mounted = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["spec"]["volumes"]}
    claim = kubernetes("PersistentVolumeClaim", "tf-serving-models")["metadata"]["name"]
    assert claim in json.dumps(POD["spec"]["volumes"])
    # A request in flight survives the end of its pod only if the wait is inside the grace period.
    wait = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert wait < POD["spec"]["terminationGracePeriodSeconds"]


def test_every_scrape_asks_where_the_metrics_are():
    text = (SERVING / "config" / "monitoring.config").read_text()
    path = text_format.Parse(text, MonitoringConfig()).prometheus_config.path
    annotations = POD["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == path
    assert int(annotations["prometheus.io/port"]) == 8501
    (job,) = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"]
    assert job["metrics_path"] == path
    assert job["static_configs"] == [{"targets": ["tf-serving:8501"]}]
    assert "tf-serving" in COMPOSE["services"]


def test_kserve_serves_the_same_model():
    (document,) = documents(DEPLOY / "kserve" / "inference-service.yaml")
    predictor = document["spec"]["predictor"]
    (model,) = models()
    assert document["metadata"]["name"] == model.name
    claim, folder = predictor["model"]["storageUri"].removeprefix("pvc://").split("/")
    assert claim == kubernetes("PersistentVolumeClaim", "tf-serving-models")["metadata"]["name"]
    assert f"/models/{folder}" == model.base_path
    images = {CONTAINER["image"], COMPOSE["services"]["tf-serving"]["image"]}
    assert images == {f"tensorflow/serving:{predictor['model']['runtimeVersion']}"}


# Against a server


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_exist(server):
    with Client(f"http://localhost:{server.rest_port}", "digits") as client:
        client.predict([1.0])
    url = f"http://localhost:{server.rest_port}{POD['metadata']['annotations']['prometheus.io/path']}"
    page = urllib.request.urlopen(url, timeout=10).read().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE))
    exist = {
        name + suffix
        for name, kind in kinds.items()
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    asked = {name for expr in EXPRESSIONS + ALERTS for name in METRIC.findall(expr)}
    assert len(asked) > 5
    assert asked <= exist, asked - exist
    # And the labels they are grouped and chosen by.
    for expr in EXPRESSIONS + ALERTS:
        for name, chosen in re.findall(r"(:tensorflow:[\w:]+)\{([^}]*)\}", expr):
            for label in re.findall(r"(\w+)(?:=~|!=|=)\"", chosen):
                assert re.search(rf"^{name}\{{[^}}]*{label}=", page, re.MULTILINE), (name, label)


def test_the_probes_ask_what_the_server_answers(server):
    path = CONTAINER["readinessProbe"]["httpGet"]["path"]
    assert urllib.request.urlopen(f"http://localhost:{server.rest_port}{path}", timeout=10).status == 200
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(
            f"http://localhost:{server.rest_port}{path.replace('digits', 'none')}", timeout=10
        )


def test_the_health_check_of_compose(server):
    _, *command = COMPOSE["services"]["tf-serving"]["healthcheck"]["test"]
    if shutil.which(command[0]) is None:
        pytest.skip("bash is not on PATH")
    script = command[-1].replace("8501", str(server.rest_port))
    assert subprocess.run([*command[:-1], script], timeout=10).returncode == 0
    assert subprocess.run([*command[:-1], script.replace("digits", "none")], timeout=10).returncode != 0


def test_the_dashboard_is_whole():
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    cells = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        mine = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert place["x"] + place["w"] <= 24
        assert not mine & cells
        cells |= mine
        assert panel["description"]
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", " ".join(EXPRESSIONS))) - {"__rate_interval"} <= variables
