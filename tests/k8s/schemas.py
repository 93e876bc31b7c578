"""Objects against Kubernetes' own schemas and those of the CRDs, unknown fields refused."""

import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema
import pytest
import yaml

from tests.k8s.manifests import ROOT, Object, called

CRDS = ROOT.parent / "shared/crds"
VERSIONS = ("1.29", "1.37")
"""The oldest version that the manifests are for (k8s/README.md), and the newest there is."""


def problems(objects: Sequence[Object]) -> Iterator[str]:
    for item in objects:
        group = item["apiVersion"].partition("/")[0]
        if group in ("ray.io", "monitoring.coreos.com", "vae-pipeline.internal"):
            for error in crd_validator(item["kind"].removesuffix("Template")).iter_errors(item):
                where = ".".join(map(str, error.absolute_path))
                yield f"{called(item)}: {where}: {error.message[:200]}"
        else:
            yield from _builtin(item)


@functools.cache
def crd_validator(kind: str) -> Any:
    files = sorted(CRDS.glob(f"*_{kind.lower()}s.*yaml"))
    if not files:
        pytest.skip(f"the schema of {kind} is not there ({CRDS}): it can't be validated")
    crd = yaml.load(files[0].read_text(), Loader=yaml.CSafeLoader)
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema = _strict(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
    # The API server knows these itself.
    schema["properties"] |= {"metadata": {"type": "object"}, "apiVersion": {}, "kind": {}}
    return jsonschema.Draft4Validator(schema)


def _strict(node: Any) -> Any:
    """Kubernetes' structural schema as JSON Schema that refuses what it does not name."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
    closed = node.get("type") == "object" and "properties" in node
    if closed and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    for key, value in node.items():
        node[key] = _strict(value)
    return node


def _builtin(item: Object) -> Iterator[str]:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate has Kubernetes' own schemas"
    )
    for version in VERSIONS:
        try:
            validate.validate(item, version, strict=True)
        except validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            yield f"{called(item)}: {version}: {where}: {error.message[:200]}"


def pruned(schema: Any, item: Any) -> Any:
    """What the API server keeps of an object: fields that the schema names, or is told to keep."""
    if not isinstance(item, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return item
    known = schema.get("properties", {})
    always = ("apiVersion", "kind", "metadata")
    return {
        key: pruned(known[key], value) if key in known else value
        for key, value in item.items()
        if key in known or key in always
    }
