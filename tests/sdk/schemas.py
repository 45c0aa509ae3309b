"""Every event and response against the schemas of OpenAI and of Open Responses.

What is optional may be left out and is not null. Where the two contradict each other, two tables say which one is kept.
"""

import json
import re
from functools import cache
from pathlib import Path

import jsonschema

from stream_validator import Violation

FOLDER = Path(__file__).parents[1] / "schemas"
FILES = {"OpenAI": "openai.json", "Open Responses": "openresponses.json"}

# Events that only one of the two knows.
UNKNOWN_EVENTS = {
    "OpenAI": {
        "response.reasoning.delta": "Open Responses' name of raw reasoning",
        "response.reasoning.done": "Open Responses' name of raw reasoning",
    },
    "Open Responses": {
        "response.reasoning_text.delta": "OpenAI's name of raw reasoning, which all clients read",
        "response.reasoning_text.done": "OpenAI's name of raw reasoning, which all clients read",
        "response.custom_tool_call_input.delta": "Open Responses has function tools only",
        "response.custom_tool_call_input.done": "Open Responses has function tools only",
    },
}
# Values that one of the two does not take: which of them, where, what (a value or its type) and why it is sent.
EXCEPTIONS = [
    ("OpenAI", r"(response\.)?safety_identifier", str, "it wants 64 characters; its SDK says 128"),
    ("OpenAI", r"(response\.)?usage", type(None), "it wants no key before the end; Open Responses wants null"),
    ("OpenAI", r"(response\.)?text\.format\.description", type(None), "it wants no key; Open Responses wants null"),
    ("Open Responses", r"(response\.)?text\.format\.schema", dict, "it wants null; OpenAI echoes the schema"),
    ("Open Responses", r"(response\.)?tools\.\d+\.type", "custom", "it has function tools only"),
    ("Open Responses", r"(response\.)?tools\.\d+\.type", "namespace", "it has function tools only"),
    ("Open Responses", r"(response\.)?tool_choice\.type", "custom", "it has function tools only"),
    ("OpenAI", r"(response\.)?text\.format\.type", "regex", "an extension: only requests that use it get it back"),
    ("OpenAI", r"(response\.)?text\.format\.type", "grammar", "an extension: only requests that use it get it back"),
    ("Open Responses", r"(response\.)?text\.format\.type", "regex", "an extension: only requests that use it get it back"),
    ("Open Responses", r"(response\.)?text\.format\.type", "grammar", "an extension: only requests that use it get it back"),
    ("Open Responses", r"((response\.)?output\.\d+|item)\.type", "custom_tool_call", "it has function tools only"),
]


@cache
def schema(spec):
    return json.loads((FOLDER / FILES[spec]).read_text(encoding="utf-8"))


@cache
def validator(spec, definition):
    return jsonschema.Draft202012Validator({"$ref": definition, "$defs": schema(spec)["$defs"]})


def check_event(event):
    name = event["type"]
    if name.startswith("ortolan:"):
        return
    for spec in FILES:
        if name in schema(spec)["events"]:
            check(spec, schema(spec)["events"][name], event)
        elif name not in UNKNOWN_EVENTS[spec]:
            raise Violation(f"{spec} knows no event {name}")


def check_response(response):
    for spec in FILES:
        check(spec, schema(spec)["response"], response)


def check_error(body):
    check("OpenAI", {"$ref": "#/$defs/ErrorResponse"}, body)


def check(spec, reference, value):
    for error in validator(spec, reference["$ref"]).iter_errors(value):
        for cause in causes(error, ()):
            path = ".".join(str(key) for key in cause[0])
            if not any(is_allowed(exception, spec, path, cause[1].instance) for exception in EXCEPTIONS):
                raise Violation(f"{spec}: {path or 'the value'}: {cause[1].message[:500]}")


def causes(error, parent):
    """Each error with its path. Of a union, those of the one arm whose `type` fits."""
    path = (*parent, *error.relative_path)
    if not error.context:
        return [(path, error)]
    arms = {}
    for inner in error.context:
        arms.setdefault(inner.schema_path[0], []).append(inner)
    fitting = [arm for arm in arms.values() if not any(is_other_type(inner) for inner in arm)]
    if len(fitting) == 1:
        return [cause for inner in fitting[0] for cause in causes(inner, path)]
    if not fitting and isinstance(error.instance, dict) and "type" in error.instance:
        # No arm knows this type: the type itself is what is wrong.
        unknown = [inner for inner in error.context if list(inner.relative_path) == ["type"]]
        return [((*path, "type"), inner) for inner in unknown[:1]] or [(path, error)]
    return [(path, error)]


def is_other_type(error):
    """Not the arm of this value: it is of another JSON type, or called another `type`."""
    at = list(error.relative_path)
    if error.context:
        return at == [] and all(is_other_type(inner) for inner in error.context)
    return (at == [] and error.validator == "type") or (at == ["type"] and error.validator == "enum")


def is_allowed(exception, spec, path, value):
    broken, pattern, allowed, _reason = exception
    fits = isinstance(value, allowed) if isinstance(allowed, type) else value == allowed
    return broken == spec and fits and re.fullmatch(pattern, path) is not None
