"""Cuts an OpenAPI description down to the response object, its streamed events and the error body, without prose.

usage: cut.py DESCRIPTION.json COMMENT > SCHEMA.json
"""

import json
import sys

RESPONSE, EVENT, ERROR = (("ResponseResource", "Response"), "Event", "ErrorResponse")
PROSE = {"$recursiveAnchor", "default", "deprecated", "description", "discriminator", "example", "format", "title"}
PREFIX = "#/components/schemas/"


def without_prose(schema, owner):
    """A property may well be called `description`, so names below `properties` are kept."""
    if isinstance(schema, list):
        return [without_prose(part, owner) for part in schema]
    if not isinstance(schema, dict):
        return schema
    cut = {}
    for key, value in schema.items():
        if key == "properties":
            cut[key] = {name: without_prose(property, owner) for name, property in value.items()}
        elif key == "$ref":
            cut[key] = "#/$defs/" + value.removeprefix(PREFIX)
        elif key == "$recursiveRef":  # Of an older draft: the schema around it.
            cut["$ref"] = f"#/$defs/{owner}"
        elif key not in PROSE and not key.startswith("x-"):
            cut[key] = without_prose(value, owner)
    return cut


def references(schema):
    if isinstance(schema, list):
        return {name for part in schema for name in references(part)}
    if not isinstance(schema, dict):
        return set()
    found = {name for part in schema.values() for name in references(part)}
    if isinstance(reference := schema.get("$ref"), str):
        found.add(reference.removeprefix("#/$defs/"))
    return found


def event_type(schema):
    return schema.get("properties", {}).get("type", {}).get("enum", [None])[0]


def main(path, comment):
    with open(path, encoding="utf-8") as file:
        all_schemas = json.load(file)["components"]["schemas"]
    schemas = {
        name: without_prose(schema, name)
        for name, schema in all_schemas.items()
        if not name.startswith(("Beta", "WebSocket"))
    }
    response = next(name for name in RESPONSE if name in schemas)
    types = {event_type(schemas[name]): name for name in schemas if name.endswith(EVENT)}
    events = {type: name for type, name in types.items() if type and type.split(".")[0] in ("response", "error")}

    kept, waiting = set(), {response, ERROR, *events.values()} & set(schemas)
    while waiting:
        kept.add(name := waiting.pop())
        waiting |= references(schemas[name]) - kept

    def reference(name):
        return json.dumps({"$ref": f"#/$defs/{name}"})

    lines = [f"    {json.dumps(type)}: {reference(name)}" for type, name in sorted(events.items())]
    defs = [f"    {json.dumps(name)}: {json.dumps(schemas[name])}" for name in sorted(kept)]
    print('{\n  "$schema": "https://json-schema.org/draft/2020-12/schema",')
    print(f'  "$comment": {json.dumps(comment)},')
    print(f'  "response": {reference(response)},')
    print('  "events": {\n' + ",\n".join(lines) + "\n  },")
    print('  "$defs": {\n' + ",\n".join(defs) + "\n  }\n}")


main(*sys.argv[1:])
