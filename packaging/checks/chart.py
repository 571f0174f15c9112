"""Judges rendered manifests: against Kubernetes' schemas, and the configurations in them by `nowconnect check`.

    chart.py schema VALUES...            values against values.schema.json
    chart.py manifests BINARY FILE...    rendered files
    chart.py rules RULES FILE            the PrometheusRule in a rendered file is RULES
    chart.py lint                        the chart by Helm's own rules, by its library (pip install helm-sdkpy)
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import yaml

CHART = pathlib.Path(__file__).parent.parent / "helm" / "nowconnect"


def merge(base, over):
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: merge(base.get(key), value) for key, value in over.items()}


def schema(files):
    import jsonschema

    judge = jsonschema.Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    problems = [f"values.yaml: {error.json_path}: {error.message}" for error in judge.iter_errors(defaults)]
    for file in files:
        values = merge(defaults, yaml.safe_load(pathlib.Path(file).read_text()))
        problems += [f"{file}: {error.json_path}: {error.message}" for error in judge.iter_errors(values)]
    # And it must object to what is wrong.
    wrong = [
        {"hub": {"listeners": [{"name": "ldap", "port": 389, "connector": "ldap"}]}},
        {"hub": {"ha": {"mode": False}}},
        {"hub": {"replica": 3}},
        {"hub": {"config": {"ha": {"mode": "off"}}}},
        {"agent": {"config": {"tunnel": {"agent_id": "a b"}}}},
    ]
    problems += [f"accepted: {bad}" for bad in wrong if judge.is_valid(merge(defaults, bad))]
    return problems


def judge_config(binary, name, text):
    """The program's own word on a configuration. Certificates and tokens that are not here are warnings, and expected."""
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        (root / "redis").mkdir()
        (root / "redis" / "url").write_text("redis://user:password@redis:6379/0")
        (root / "redis" / "url").chmod(0o440)
        (root / "config.yaml").write_text(text)
        command = [binary, "check", "--config", "config.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env={})
    return [] if done.returncode == 0 else [f"{name}: {done.stdout}{done.stderr}"]


def relations(documents):
    """What must fit together within one rendering."""
    problems = []
    services = {item["metadata"]["name"] for item in documents if item["kind"] == "Service"}
    for item in documents:
        kind, name = item["kind"], item["metadata"]["name"]
        if kind not in ("StatefulSet", "Deployment"):
            continue
        if kind == "StatefulSet" and item["spec"]["serviceName"] not in services:
            problems.append(f"{name}: no service {item['spec']['serviceName']}")
        pod = item["spec"]["template"]["spec"]
        labels = item["spec"]["template"]["metadata"]["labels"]
        if not item["spec"]["selector"]["matchLabels"].items() <= labels.items():
            problems.append(f"{name}: selector does not match its pods")
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            if mounts != volumes:
                problems.append(f"{name}: volumes {volumes} but mounts {mounts}")
            ports = {port["name"] for port in container["ports"]}
            probes = [container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
            if not set(probes) <= ports:
                problems.append(f"{name}: probes ask {probes}, ports are {ports}")
        for volume in pod["volumes"]:
            if "secret" in volume and volume["secret"]["defaultMode"] != 0o440:
                problems.append(f"{name}: mode of secret {volume['name']} is {volume['secret']['defaultMode']:o}")
        if pod["automountServiceAccountToken"] or not pod["securityContext"]["runAsNonRoot"]:
            problems.append(f"{name}: not restricted")
    return problems


def closed(schema):
    """A schema that objects to keys it does not know, as the API server does when asked to be strict."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    open_ended = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & inner.keys()
    return inner | ({"additionalProperties": False} if isinstance(inner.get("properties"), dict) and not open_ended else {})


def custom_resources():
    """Judges by kind and version, of the CustomResourceDefinitions in the directory that CRDS names."""
    import jsonschema

    judges = {}
    for file in pathlib.Path(os.environ["CRDS"]).glob("*.yaml") if os.environ.get("CRDS") else ():
        spec = yaml.safe_load(file.read_text())["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
            judges[spec["names"]["kind"], f"{spec['group']}/{version['name']}"] = jsonschema.Draft7Validator(closed(schema))
    return judges


def manifests(binary, files):
    import kubernetes_validate

    problems = []
    judges = custom_resources()
    for file in files:
        documents = [item for item in yaml.safe_load_all(pathlib.Path(file).read_text()) if item]
        configs = 0
        for item in documents:
            name = f"{pathlib.Path(file).name}: {item['kind']} {item['metadata']['name']}"
            if not item["apiVersion"].startswith("monitoring.coreos.com/"):
                try:
                    kubernetes_validate.validate(item, "1.32", strict=True)
                except kubernetes_validate.ValidationError as error:
                    problems.append(f"{name}: {list(error.path)}: {error.message}")
            elif judge := judges.get((item["kind"], item["apiVersion"])):
                problems += [f"{name}: {error.json_path}: {error.message}" for error in judge.iter_errors(item)]
            elif judges:
                problems.append(f"{name}: no schema in CRDS")
            for key, text in item.get("data", {}).items() if item["kind"] == "ConfigMap" else ():
                configs += 1
                problems += judge_config(binary, f"{name} {key}", text)
        problems += [f"{pathlib.Path(file).name}: {problem}" for problem in relations(documents)]
        print(f"{pathlib.Path(file).name}: {len(documents)} objects, {configs} configurations")
    return problems


def rules(original, file):
    documents = yaml.safe_load_all(pathlib.Path(file).read_text())
    wrapped = [item["spec"] for item in documents if item and item["kind"] == "PrometheusRule"]
    same = wrapped == [yaml.safe_load(pathlib.Path(original).read_text())]
    return [] if same else [f"{file}: its rules are not those of {original}"]


def lint():
    import asyncio

    import helm_sdkpy

    async def judged():
        return await helm_sdkpy.Lint(helm_sdkpy.Configuration(namespace="default")).run(str(CHART))

    messages = asyncio.run(judged())["Messages"]
    # 1 is a remark, 2 a warning, 3 an error; the library keeps the words to itself.
    found = [f"{message['Path']}: severity {message['Severity']}" for message in messages or () if message["Severity"] > 1]
    print(f"{len(messages or ())} remarks, {len(found)} warnings and errors")
    return found


match sys.argv[1:]:
    case ["schema", *files]:
        found = schema(files)
    case ["manifests", binary, *files]:
        found = manifests(binary, files)
    case ["rules", original, file]:
        found = rules(original, file)
    case ["lint"]:
        found = lint()
    case _:
        sys.exit(__doc__)
for problem in found:
    print(problem, file=sys.stderr)
sys.exit(1 if found else 0)
