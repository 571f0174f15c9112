"""Judges Compose files by the schema of the Compose Specification: compose.py SCHEMA FILE..."""

import json
import pathlib
import sys

import jsonschema
import yaml

judge = jsonschema.Draft7Validator(json.loads(pathlib.Path(sys.argv[1]).read_text()))
found = [
    f"{file}: {error.json_path}: {error.message}"
    for file in sys.argv[2:]
    for error in judge.iter_errors(yaml.safe_load(pathlib.Path(file).read_text()))
]
print(f"{len(sys.argv) - 2} files")
sys.exit("\n".join(found) or 0)
