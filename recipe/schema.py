"""The JSON schema of a recipe, for editors: the run config's schema, plus the forms that only a file may use."""

from __future__ import annotations

from recipe.config import RunConfig
from recipe.keys import BASE, Schema


def recipe_schema() -> Schema:
    """The schema of a recipe file. It knows `base`, an instruction in a file, and reward services by name.

    A recipe's base may have the keys that the recipe leaves out, so sections require nothing; a recipe without a base
    requires its top-level keys. Only `bicot check` validates combinations of keys.
    """
    schema = RunConfig.model_json_schema()
    models = schema["$defs"]
    needed = schema.pop("required")
    for model in models.values():
        model.pop("required", None)
    instruction = models["Templates"]["properties"]["instruction"]
    in_file = {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"]}
    _or(instruction, {**in_file, "additionalProperties": False})
    services = models["RewardsConfig"]["properties"]["services"]
    services["items"] = {"allOf": [services["items"]], "required": ["name", "target"]}
    service = {"anyOf": [{"$ref": "#/$defs/RewardConfig"}, {"type": "null"}]}
    _or(services, {"type": "object", "additionalProperties": service})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "bicot recipe",
        "properties": {"base": BASE, **schema["properties"]},
        "if": {"not": {"required": ["base"], "properties": {"base": {"type": "string"}}}},
        "then": {"required": needed},
    }


def _or(schema: Schema, other: Schema) -> None:
    """Let a key also accept `other`; its description and default stay where editors look for them."""
    told = ("title", "description", "default")
    own = {name: schema.pop(name) for name in list(schema) if name not in told}
    schema["anyOf"] = [own, other]
