"""OCSF's own published schema, as a validator: unknown members are errors, and so are missing required ones."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from tidegate.ocsf.terms import SCHEMA


@cache
def validator(name: str, *profiles: str) -> jsonschema.Draft202012Validator:
    """Of a class, as "api_activity", under these profiles."""
    return jsonschema.Draft202012Validator(_published().get_class_schema(name, list(profiles)))


@cache
def _published() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(SCHEMA))


def problems(value: dict[str, Any], name: str = "api_activity", profiles: Iterable[str] = ()) -> list[str]:
    """What the schema does not allow; none of a valid object. Profiles default to those that the object names."""
    named = tuple(profiles) or tuple(value.get("metadata", {}).get("profiles", ()))
    return [f"{error.json_path}: {error.message}" for error in validator(name, *named).iter_errors(value)]
