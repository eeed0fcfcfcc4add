"""deploy/kubernetes against the schemas of Kubernetes, the service's own settings and routes, and the alerts.

`kubectl kustomize` builds the overlays; where there is no kubectl, the files of the base alone are looked at.
"""

import shutil
import subprocess
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app.access.needs import NEEDS
from app.settings import PREFIX, Settings
from deploy.containers.dockerfile import stages
from deploy.kubernetes.write_rules import manifest
from tests.app.serving import ROOT
from tests.patience import PATIENCE_S

KUBERNETES = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")
"""The oldest and the newest that is promised."""
OURS = {"app.kubernetes.io/name": "foretell"}
# The packages of schemas have none of the Prometheus operator's; of these this is what is used.
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}


def _object(required: list[str], **properties: object) -> dict[str, object]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_RULE = _object(["expr"], alert=_TEXT, record=_TEXT, expr=_TEXT, labels=_TEXTS, annotations=_TEXTS, **{"for": _TEXT})
_GROUP = _object(["name", "rules"], name=_TEXT, interval=_TEXT, rules={"type": "array", "items": _RULE})
_ENDPOINT = _object(
    ["port", "path"],
    port=_TEXT,
    path=_TEXT,
    interval=_TEXT,
    authorization=_object(["credentials"], credentials=_object(["name", "key"], name=_TEXT, key=_TEXT)),
)
OPERATOR = {
    "PrometheusRule": _object(["groups"], groups={"type": "array", "items": _GROUP}),
    "ServiceMonitor": _object(
        ["selector", "endpoints"],
        selector=_object(["matchLabels"], matchLabels=_TEXTS),
        endpoints={"type": "array", "items": _ENDPOINT, "minItems": 1},
    ),
}


@cache
def overlay(name: str) -> dict[str, dict[str, Any]]:
    """The resources of the base or of an overlay, by kind; of these each is there once."""
    if name == "base":
        listed = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())["resources"]
        text = "\n---\n".join((KUBERNETES / "base" / file).read_text() for file in listed)
    else:
        built = subprocess.run(
            ["kubectl", "kustomize", KUBERNETES / "overlays" / name],
            capture_output=True,
            check=False,
            text=True,
            timeout=PATIENCE_S,
        )
        assert built.returncode == 0, built.stderr
        text = built.stdout
    found = list(yaml.safe_load_all(text))
    kinds = {resource["kind"]: resource for resource in found}
    assert len(kinds) == len(found)
    return kinds


@pytest.fixture(params=["base", "cpu", "gpu"])
def resources(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Each of them."""
    if request.param != "base" and shutil.which("kubectl") is None:
        pytest.skip("this machine has no kubectl")
    return overlay(request.param)


def test_resources_are_valid(resources: dict[str, dict[str, Any]]) -> None:
    """By the schemas of Kubernetes, and for the operator's kinds by what is used of theirs."""
    assert len(resources) == 9
    for kind, resource in resources.items():
        if kind in OPERATOR:
            assert resource["apiVersion"] == "monitoring.coreos.com/v1"
            assert resource.keys() == {"apiVersion", "kind", "metadata", "spec"}
            jsonschema.validate(resource["spec"], OPERATOR[kind])
        else:
            for version in VERSIONS:
                kubernetes_validate.validate(resource, version, strict=True)


def test_settings(resources: dict[str, dict[str, Any]]) -> None:
    """They are settings of the service, and what they name is mounted."""
    given = resources["ConfigMap"]["data"]
    assert given.keys() <= {PREFIX + name.upper() for name in Settings.model_fields}
    settings = Settings.model_validate({name.removeprefix(PREFIX).lower(): value for name, value in given.items()})
    spec = _pod(resources)
    assert spec["terminationGracePeriodSeconds"] > settings.grace_s + settings.drain_s + 5
    (container,) = spec["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": resources["ConfigMap"]["metadata"]["name"]}}]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts[str(settings.artifacts)]["readOnly"] is True
    assert settings.keys_file is not None
    assert mounts[str(settings.keys_file.parent)]["readOnly"] is True
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in spec["volumes"]}
    (models,) = [volume for volume in spec["volumes"] if volume["name"] == mounts[str(settings.artifacts)]["name"]]
    claim = resources["PersistentVolumeClaim"]["metadata"]["name"]
    assert models["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}


def test_pod_is_careful(resources: dict[str, dict[str, Any]]) -> None:
    """As the image's user, who is not root, with nothing to write to but /tmp, and bounded."""
    final = stages((ROOT / "Dockerfile").read_text())[-1]
    spec = _pod(resources)
    user, group = map(int, final.all("USER")[-1].rest.split(":"))
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (user, group)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]
    assert "memory" in container["resources"]["limits"]


def test_ports_and_paths(resources: dict[str, dict[str, Any]]) -> None:
    """Probes and the monitor ask what the service answers, where it listens; keys are given where they are needed."""
    final = stages((ROOT / "Dockerfile").read_text())[-1]
    (container,) = _pod(resources)["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == final.environment()["FORETELL_PORT"]
    for probe, path in (("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "live")):
        asked = container[probe]["httpGet"]
        assert asked == {"path": f"/health/{path}", "port": port["name"]}
        assert NEEDS["GET", asked["path"]] == "open"
    # While the service still mends itself, nobody else is to.
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > Settings().stall_s
    (endpoint,) = resources["ServiceMonitor"]["spec"]["endpoints"]
    assert NEEDS["GET", endpoint["path"]] == "read"
    assert endpoint["authorization"]["credentials"]["name"]
    (served,) = resources["Service"]["spec"]["ports"]
    assert (served["name"], served["targetPort"]) == (endpoint["port"], port["name"])
    (ingress,) = resources["NetworkPolicy"]["spec"]["ingress"]
    assert [allowed["port"] for allowed in ingress["ports"]] == [port["name"]]


def test_selectors_fit(resources: dict[str, dict[str, Any]]) -> None:
    """All that is about the pods picks the pods; the job of the alerts is the Service's name."""
    deployment = resources["Deployment"]
    assert OURS.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert OURS.items() <= resources["Service"]["metadata"]["labels"].items()
    selected = (
        deployment["spec"]["selector"]["matchLabels"],
        resources["Service"]["spec"]["selector"],
        resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        resources["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        resources["ServiceMonitor"]["spec"]["selector"]["matchLabels"],
        *[one["labelSelector"]["matchLabels"] for one in _pod(resources)["topologySpreadConstraints"]],
    )
    assert all(labels == OURS for labels in selected)
    assert resources["Service"]["metadata"]["name"] == "foretell"
    target = resources["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])


def test_autoscaler(resources: dict[str, dict[str, Any]]) -> None:
    """It goes by a metric of the service that the adapter gives, and wants more pods before requests are refused."""
    (rule,) = yaml.safe_load((KUBERNETES / "adapter" / "values.yaml").read_text())["rules"]["custom"]
    pods, cpu = resources["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert pods["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(f"{rule['name']['as']}{{")
    assert f'"{rule["name"]["as"]}"' in (ROOT / "app" / "metrics.py").read_text()
    assert Settings().max_batch_rows < int(pods["pods"]["target"]["averageValue"]) < Settings().max_queue_rows
    assert cpu["resource"]["name"] == "cpu"
    (container,) = _pod(resources)["containers"]
    assert "cpu" in container["resources"]["requests"]
    assert "replicas" not in resources["Deployment"]["spec"]


def test_rules_are_those_of_prometheus(resources: dict[str, dict[str, Any]]) -> None:
    """The same groups, in order; `python deploy/kubernetes/write_rules.py` writes them."""
    expected = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / name).read_text())["groups"]
    ]
    assert resources["PrometheusRule"]["spec"]["groups"] == expected
    assert (KUBERNETES / "base" / "rules.yaml").read_text() == manifest()


def test_every_file_is_used() -> None:
    """No resource lies beside the base that nobody applies."""
    base = KUBERNETES / "base"
    listed = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in base.glob("*.yaml") if path.name != "kustomization.yaml")


def test_the_gpu_overlay_asks_for_one() -> None:
    """A device for each pod, and an image that can use it."""
    if shutil.which("kubectl") is None:
        pytest.skip("this machine has no kubectl")
    (container,) = _pod(overlay("gpu"))["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"] != _pod(overlay("cpu"))["containers"][0]["image"]
    assert overlay("gpu")["ConfigMap"]["data"]["FORETELL_DEVICE"] == "cuda"


def _pod(resources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return found
