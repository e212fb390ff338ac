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

import grpc
import kubernetes_validate
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
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
KUSTOMIZED = ("kubernetes", "kubernetes_in_flight", "kserve")
YAML = [*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml"), *SERVING.glob("config/*.yaml")]
METRIC = re.compile(r":tensorflow:[\w:]+")


def documents(path: pathlib.Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def kubernetes(kind: str, name: str = "tf-serving") -> dict:
    found = itertools.chain.from_iterable(map(documents, KUBERNETES))
    return next(entry for entry in found if entry["kind"] == kind and entry["metadata"]["name"] == name)


def flags(arguments: list[str]) -> dict[str, str]:
    # TF Serving knows --name=value alone.
    return dict(argument.removeprefix("--").split("=") for argument in arguments)


COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
POD = kubernetes("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
PROBE = kubernetes("Deployment", "tf-serving-probe")["spec"]["template"]
(KSERVE,) = documents(DEPLOY / "kserve" / "inference-service.yaml")
PREDICTOR = KSERVE["spec"]["predictor"]
UPLOAD = kubernetes("Pod", "tf-serving-upload")
# What of a predictor is KServe's own; the rest is a pod's specification and a container's.
KSERVE_POD = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "labels", "annotations", "model"}
KSERVE_MODEL = {"modelFormat", "runtimeVersion", "storageUri"}
PREDICTOR_CONTAINER = {"name": "model", "image": "tensorflow/serving"} | {
    name: value for name, value in PREDICTOR["model"].items() if name not in KSERVE_MODEL
}
PREDICTOR_POD = {name: value for name, value in PREDICTOR.items() if name not in KSERVE_POD} | {
    "containers": [PREDICTOR_CONTAINER]
}
PODS = {"server": POD["spec"], "probe": PROBE["spec"], "upload": UPLOAD["spec"], "kserve": PREDICTOR_POD}
ARGUMENTS = {
    "compose": flags(SERVICES["tf-serving"]["command"]),
    "kubernetes": flags(CONTAINER["args"]),
    "kserve": flags(PREDICTOR_CONTAINER["args"]),
}
DASHBOARD = json.loads((DEPLOY / "grafana" / "tf-serving.json").read_text())
(ADAPTER,) = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yml").read_text())["rules"]
IN_FLIGHT = (
    ADAPTER["metricsQuery"]
    .replace("<<.GroupBy>>", "pod")
    .replace("<<.Series>>", METRIC.findall(ADAPTER["seriesQuery"])[0])
    .replace("<<.LabelMatchers>>", "")
)
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]] + [IN_FLIGHT]
ALERTS = [
    rule["expr"]
    for group in documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"]
    for rule in group["rules"]
]


def jobs(file: str) -> dict[str, dict]:
    (configuration,) = documents(DEPLOY / "prometheus" / file)
    return {job["job_name"]: job for job in configuration["scrape_configs"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models") / "digits"
    module = tf.Module()
    module.call = tf.function(
        lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(root / "1"), signatures={"serving_default": module.call})
    # The flags of the deployment, but for its ports and folders.
    chosen = {name: value for name, value in ARGUMENTS["kubernetes"].items() if "config" not in name}
    del chosen["port"], chosen["rest_api_port"]
    monitoring = SERVING / "config" / "monitoring.config"
    with launch(root, "digits", monitoring_config_file=monitoring, **chosen) as running:
        yield running


# Each file by itself


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.relative_to(SERVING).as_posix())
def test_it_is_yaml(path):
    assert all(isinstance(document, dict) for document in documents(path))


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_accepts_it(path):
    for document in documents(path):
        kubernetes_validate.validate(document, "1.32", strict=True)  # strict: no unknown field


def test_kubernetes_accepts_the_pod_of_kserve():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "digits"}, "spec": PREDICTOR_POD}
    kubernetes_validate.validate(pod, "1.32", strict=True)


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


# Two servers: all probes of the one are answered, every fourth of the other's is not.
REFUSALS = """
rule_files: [alerts.yml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - {series: 'up{job="tf-serving", server="calm"}', values: 1x40}
      - {series: 'up{job="tf-serving", server="full"}', values: 1x40}
      - {series: 'probe_success{job="probe-of-tf-serving", server="calm"}', values: 1x40}
      - {series: 'probe_success{job="probe-of-tf-serving", server="full"}', values: '1 1 1 0 PATTERN'}
    promql_expr_test:
      - expr: count by (alertname, server) (ALERTS{alertstate="firing"})
        eval_time: 9m
        exp_samples:
          - {labels: '{alertname="TfServingRefuses", server="full"}', value: 1}
""".replace("PATTERN", "1 1 1 0 " * 9)


@pytest.fixture
def promtool(tmp_path):
    """Runs promtool in a folder that holds the files of Prometheus."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian: prometheus) is not on PATH")
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")

    def run(*arguments):
        done = subprocess.run(
            ["promtool", *arguments], cwd=tmp_path / "prometheus", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run.folder = tmp_path / "prometheus"
    return run


def test_promtool_accepts_the_scrapes_the_alerts_and_the_dashboard(promtool):
    cluster = promtool.folder / "kubernetes.yml"
    # Debian builds promtool without Kubernetes; the rest of the job is checked.
    cluster.write_text(
        re.sub(r"kubernetes_sd_configs:\n +- role: pod", "static_configs: []", cluster.read_text())
    )
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "1m").replace("$model", ".*")}
        for number, expr in enumerate(EXPRESSIONS)
    ]
    (promtool.folder / "dashboard.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]})
    )
    promtool("check", "config", "prometheus.yml")
    promtool("check", "config", "kubernetes.yml")
    promtool("check", "rules", "dashboard.yml")


def test_refused_probes_raise_an_alert(promtool):
    (promtool.folder / "refusals.yml").write_text(REFUSALS)
    promtool("test", "rules", "refusals.yml")


def test_amtool_accepts_the_routes_of_the_alerts():
    if shutil.which("amtool") is None:
        pytest.skip("amtool (Debian: prometheus-alertmanager) is not on PATH")
    subprocess.run(["amtool", "check-config", DEPLOY / "prometheus" / "alertmanager.yml"], check=True)


# What kustomize makes of them


@pytest.fixture(scope="module")
def rendered():
    """The resources that `kubectl apply -k` would send, by folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH")
    built = {}
    for folder in KUSTOMIZED:
        command = ["kubectl", "kustomize", str(DEPLOY / folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        built[folder] = list(yaml.safe_load_all(done.stdout))
    return built


def one(resources: list[dict], kind: str, name: str) -> dict:
    (found,) = (
        entry for entry in resources if entry["kind"] == kind and entry["metadata"]["name"].startswith(name)
    )
    return found


@pytest.mark.parametrize("folder", KUSTOMIZED)
def test_kubernetes_accepts_what_is_rendered(rendered, folder):
    for document in rendered[folder]:
        if document["kind"] != "InferenceService":
            kubernetes_validate.validate(document, "1.32", strict=True)


def test_the_pods_mount_the_very_configuration(rendered):
    """Under the name that has the hash of its contents, so that a changed file rolls the pods."""
    for folder in KUSTOMIZED:
        configuration = one(rendered[folder], "ConfigMap", "tf-serving-config-")
        for file, text in configuration["data"].items():
            assert text == (SERVING / "config" / file).read_text()
        if folder == "kserve":
            pod = one(rendered[folder], "InferenceService", "digits")["spec"]["predictor"]
        else:
            pod = next(
                entry["spec"]["template"]["spec"]
                for entry in rendered[folder]
                if entry["kind"] == "Deployment" and entry["metadata"]["name"] == "tf-serving"
            )
        mounted = {"name": "config", "configMap": {"name": configuration["metadata"]["name"]}}
        assert mounted in pod["volumes"]


def test_deleting_the_deployment_leaves_the_models(rendered):
    for folder in KUSTOMIZED:
        kinds = {document["kind"] for document in rendered[folder]}
        assert not kinds & {"PersistentVolumeClaim", "PersistentVolume", "Namespace"}
    assert kubernetes("PersistentVolumeClaim", "tf-serving-models")


def test_the_option_adds_requests_in_flight_to_cpu(rendered):
    plain, option = (
        one(rendered[folder], "HorizontalPodAutoscaler", "tf-serving")["spec"]
        for folder in ("kubernetes", "kubernetes_in_flight")
    )
    assert option["metrics"][:1] == plain["metrics"]
    assert option["metrics"][1]["pods"]["metric"]["name"] == ADAPTER["name"]["as"]
    assert {name: option[name] for name in option if name != "metrics"} == {
        name: plain[name] for name in plain if name != "metrics"
    }
    names = [
        {(document["kind"], document["metadata"]["name"]) for document in rendered[folder]}
        for folder in ("kubernetes", "kubernetes_in_flight")
    ]
    assert names[0] == names[1]


# Locked up


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_pods_have_no_right_they_do_not_use(pod):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_services_of_compose_have_limits_and_no_right_they_do_not_use(service):
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["cpus"] > 0
    assert service["mem_limit"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}  # logs rotate
    # TF Serving, Prometheus and Alertmanager ask nobody who they are: this machine only.
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_images_are_named_by_exact_tags():
    images = [service["image"] for service in SERVICES.values()]
    images += [pod["containers"][0]["image"] for name, pod in PODS.items() if name != "kserve"]
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images), images
    # And the same release everywhere.
    tags = {}
    for image in images:
        name, tag = image.split(":")
        assert tags.setdefault(name, tag) == tag
    assert tags["tensorflow/serving"] == PREDICTOR["model"]["runtimeVersion"]


def test_grafana_has_no_default_login():
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_grpc_is_for_the_namespace_alone():
    policy = kubernetes("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == POD["metadata"]["labels"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ports = {port["name"] for port in CONTAINER["ports"]}
    for rule in policy["ingress"]:
        opened = {port["port"] for port in rule["ports"]}
        assert opened <= ports
        if "grpc" in opened:  # HandleReloadConfigRequest is a gRPC call like every other
            assert rule["from"] == [{"podSelector": {}}]
        assert rule["from"]
    assert policy["egress"] == []
    # The probe is a pod of the namespace, and of no policy's.
    assert PROBE["metadata"]["labels"] != POD["metadata"]["labels"]


# Against each other


@pytest.mark.parametrize("where", ARGUMENTS)
def test_the_flags_are_tf_servings_and_their_files_are_mounted(where):
    mounts = {
        "compose": {volume.rsplit(":", 2)[1] for volume in SERVICES["tf-serving"]["volumes"]},
        "kubernetes": {mount["mountPath"] for mount in CONTAINER["volumeMounts"]},
        "kserve": {mount["mountPath"] for mount in PREDICTOR_CONTAINER["volumeMounts"]},
    }[where]
    assert set(ARGUMENTS[where]) <= set(vars(Flags()))
    for value in ARGUMENTS[where].values():
        if value.startswith("/config/"):
            assert "/config" in mounts
            assert (SERVING / "config" / pathlib.Path(value).name).is_file()
    if "model_config_file" in ARGUMENTS[where]:
        (model,) = models()
        assert any(model.base_path.startswith(f"{mount}/") for mount in mounts)


def test_the_command_is_tf_servings():
    assert SERVICES["tf-serving"]["entrypoint"] == CONTAINER["command"] == ["tensorflow_model_server"]


def test_there_are_threads_for_64_clients_and_the_probes():
    """And as many for computation as there are cores."""
    for where, arguments in ARGUMENTS.items():
        for flag in ("grpc_max_threads", "rest_api_num_threads"):
            assert int(arguments[flag]) >= 64 + 8, (where, flag)
    cores = {
        "compose": SERVICES["tf-serving"]["cpus"],
        "kubernetes": int(CONTAINER["resources"]["requests"]["cpu"]),
        "kserve": int(PREDICTOR_CONTAINER["resources"]["requests"]["cpu"]),
    }
    for where, arguments in ARGUMENTS.items():
        assert int(arguments["tensorflow_intra_op_parallelism"]) == cores[where]
    assert SERVICES["tf-serving"]["ulimits"]["nofile"] >= 4096  # a connection is a descriptor


def models():
    text = (SERVING / "config" / "models.config").read_text()
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config


def test_the_mounts_of_compose_exist():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = re.match(r"(\$\{[^}]*\}|[^:]*):", volume)[1]
            exists = source.startswith("${MODELS") or source in COMPOSE["volumes"]
            assert exists or (DEPLOY / source).exists(), source


def test_what_is_measured_outlives_the_containers():
    for name, folder in {"prometheus": "/prometheus", "alertmanager": "/alertmanager"}.items():
        assert f"{name}:{folder}" in SERVICES[name]["volumes"]
        assert any(argument.endswith(f".path={folder}") for argument in SERVICES[name]["command"])


@pytest.mark.parametrize("pod", [POD["spec"], PREDICTOR_POD], ids=["kubernetes", "kserve"])
def test_a_request_in_flight_survives_the_end_of_its_pod(pod):
    (container,) = pod["containers"]
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    # SIGTERM ends the server with what it is answering, so the longest request must be over by then.
    assert Flags().rest_api_timeout_in_ms / 1000 <= wait < pod["terminationGracePeriodSeconds"]
    # And it reaches the server, which as process 1 would not get it.
    assert pod["shareProcessNamespace"] is True
    assert SERVICES["tf-serving"]["init"] is True


def test_the_server_reads_what_the_upload_wrote():
    for pod in (POD["spec"], PREDICTOR_POD):
        for name in ("runAsUser", "runAsGroup", "fsGroup"):
            assert pod["securityContext"][name] == UPLOAD["spec"]["securityContext"][name]


def test_the_parts_of_the_deployment_fit_together():
    labels = POD["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert kubernetes("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    for constraint in POD["spec"]["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == labels
    for name in ("tf-serving", "tf-serving-grpc"):
        spec = kubernetes("Service", name)["spec"]
        assert spec["selector"] == labels
        assert all(ports[port["targetPort"]] == port["port"] for port in spec["ports"])
    autoscaler = kubernetes("HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == "tf-serving"
    assert autoscaler["minReplicas"] > kubernetes("PodDisruptionBudget")["spec"]["maxUnavailable"]
    arguments = ARGUMENTS["kubernetes"]
    assert ports == {"grpc": int(arguments["port"]), "rest": int(arguments["rest_api_port"])}
    for pod in PODS.values():
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        # KServe adds the volume of the model.
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    claim = kubernetes("PersistentVolumeClaim", "tf-serving-models")["metadata"]["name"]
    assert claim in json.dumps(POD["spec"]["volumes"])
    assert claim in json.dumps(UPLOAD["spec"]["volumes"])


def test_every_scrape_asks_where_the_metrics_are():
    text = (SERVING / "config" / "monitoring.config").read_text()
    path = text_format.Parse(text, MonitoringConfig()).prometheus_config.path
    for annotations, port in ((POD["metadata"]["annotations"], 8501), (PREDICTOR["annotations"], 8080)):
        assert annotations["prometheus.io/path"] == path
        assert int(annotations["prometheus.io/port"]) == port
    job = jobs("prometheus.yml")["tf-serving"]
    assert job["metrics_path"] == path
    assert job["static_configs"][0]["targets"] == ["tf-serving:8501"]
    keep = jobs("kubernetes.yml")["tf-serving"]["relabel_configs"][0]
    for labels in (POD["metadata"]["labels"], PREDICTOR["labels"]):
        assert re.fullmatch(keep["regex"], labels["app.kubernetes.io/name"])


def test_the_probe_asks_the_grpc_port_by_way_of_the_exporter():
    modules = yaml.safe_load((DEPLOY / "prometheus" / "probe" / "probe.yml").read_text())["modules"]
    service = kubernetes("Service", "tf-serving-probe")
    assert service["spec"]["selector"] == PROBE["metadata"]["labels"]
    (port,) = service["spec"]["ports"]
    exporters = {
        "prometheus.yml": f"probe:{port['port']}",
        "kubernetes.yml": f"{service['metadata']['name']}.$1.svc:{port['port']}",
    }
    for file, exporter in exporters.items():
        job = jobs(file)["probe-of-tf-serving"]
        assert [modules[module]["prober"] for module in job["params"]["module"]] == ["grpc"]
        assert exporter in [rule.get("replacement") for rule in job["relabel_configs"]]
    assert jobs("prometheus.yml")["probe-of-tf-serving"]["static_configs"][0]["targets"] == [
        "tf-serving:8500"
    ]
    assert {"probe", "tf-serving"} <= set(SERVICES)


def test_alerts_reach_the_alertmanager_and_ask_for_jobs_that_exist():
    (configuration,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    ((target,),) = (
        entry["targets"] for entry in configuration["alerting"]["alertmanagers"][0]["static_configs"]
    )
    assert target.split(":")[0] in SERVICES
    for expression in EXPRESSIONS + ALERTS:
        for regex in re.findall(r'job=~?"([^"]*)"', expression):
            for file in ("prometheus.yml", "kubernetes.yml"):
                assert any(re.fullmatch(regex, job) for job in jobs(file)), (regex, file)


def test_kserve_serves_the_same_model():
    (model,) = models()
    assert KSERVE["metadata"]["name"] == model.name
    claim, folder = PREDICTOR["model"]["storageUri"].removeprefix("pvc://").split("/")
    assert claim == kubernetes("PersistentVolumeClaim", "tf-serving-models")["metadata"]["name"]
    assert f"/models/{folder}" == model.base_path
    # Its runtime has REST on 8080 and gRPC on 9000; the first port becomes that of the Service.
    assert [port["containerPort"] for port in PREDICTOR_CONTAINER["ports"]] == [8080, 9000]


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
    assert CONTAINER["startupProbe"]["httpGet"] == {"path": "/v1/models/digits/metadata", "port": "rest"}
    path = CONTAINER["startupProbe"]["httpGet"]["path"]
    assert urllib.request.urlopen(f"http://localhost:{server.rest_port}{path}", timeout=10).status == 200
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(
            f"http://localhost:{server.rest_port}{path.replace('digits', 'none')}", timeout=10
        )
    for probe in ("readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["grpc"] == {"port": 8500}
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_health_check_of_compose(server):
    _, *command = SERVICES["tf-serving"]["healthcheck"]["test"]
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
