//! Whether a JSON Schema is small enough to hold a model to. How deep a schema goes is the client's choice, so nothing
//! here recurses.

use super::{
    error::{InvalidRequest, excerpt},
    field::Field,
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ptr, slice,
};

const MAX_BYTES: usize = 256 * 1024;
/// Schemas inside schemas.
const MAX_DEPTH: usize = 64;
/// Of one object: in every step of a reply, each that is still missing may come next.
const MAX_PROPERTIES: usize = 1000;
const MAX_ALL_PROPERTIES: usize = 5000;
const MAX_ENUM_VALUES: usize = 1000;
/// Of names of properties and definitions, and of the values of `enum` and `const`.
const MAX_CHARS: usize = 120_000;
/// References that may be followed one after another. A cycle counts once: it is how a schema says that it repeats.
const MAX_REFERENCE_CHAIN: usize = 64;

/// Keywords that give schemas to names.
const NAMED_SCHEMAS: &[&str] = &["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keywords whose values are not schemas, whatever they look like.
const DATA: &[&str] = &["enum", "const", "default", "examples"];

/// Of the schema itself only its size is judged; whether it means something is known when it is compiled.
pub(super) fn check_schema(field: &Field) -> Result<(), InvalidRequest> {
    check(field.value()).map_err(|why| field.invalid_schema(why))
}

fn check(root: &Value) -> Result<(), String> {
    if !root.is_object() {
        return Err("must be a JSON Schema, which is an object".to_owned());
    }
    check_limit("bytes", root.to_string().len(), MAX_BYTES)?;
    let (mut num_properties, mut num_enum_values, mut num_chars) = (0, 0, 0);
    let mut schemas = HashSet::new();
    for (schema, depth) in schemas_in(root) {
        schemas.insert(ptr::from_ref(schema));
        check_limit("levels of schemas inside schemas", depth, MAX_DEPTH)?;
        let properties = names(schema, "properties").count();
        check_limit("properties in one object", properties, MAX_PROPERTIES)?;
        num_properties += properties;
        check_limit("properties", num_properties, MAX_ALL_PROPERTIES)?;
        let values = schema.get("enum").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        num_enum_values += values.len();
        check_limit("values of `enum`", num_enum_values, MAX_ENUM_VALUES)?;
        num_chars += values.iter().chain(schema.get("const")).map(value_chars).sum::<usize>();
        num_chars += NAMED_SCHEMAS.iter().flat_map(|keyword| names(schema, keyword)).map(str::len).sum::<usize>();
        check_limit("characters of names and values", num_chars, MAX_CHARS)?;
    }
    check_references(root, &schemas)
}

fn check_limit(what: &str, met: usize, limit: usize) -> Result<(), String> {
    if met <= limit { Ok(()) } else { Err(format!("may have at most {limit} {what}, and it has {met} or more")) }
}

fn names<'a>(schema: &'a Map<String, Value>, keyword: &str) -> impl Iterator<Item = &'a str> {
    schema.get(keyword).and_then(Value::as_object).into_iter().flat_map(Map::keys).map(String::as_str)
}

fn value_chars(value: &Value) -> usize {
    value.as_str().map_or_else(|| value.to_string().len(), str::len)
}

/// A schema and all that are inside it, each with its depth; those that references point at are not inside.
fn schemas_in(root: &Value) -> impl Iterator<Item = (&Map<String, Value>, usize)> {
    let mut stack = vec![(root, 1)];
    std::iter::from_fn(move || {
        loop {
            let (value, depth) = stack.pop()?;
            let Some(schema) = value.as_object() else { continue };
            for (keyword, value) in schema.iter().filter(|(keyword, _)| !DATA.contains(&keyword.as_str())) {
                if let (true, Some(named)) = (NAMED_SCHEMAS.contains(&keyword.as_str()), value.as_object()) {
                    stack.extend(named.values().map(|value| (value, depth + 1)));
                } else {
                    let values = value.as_array().map_or(slice::from_ref(value), Vec::as_slice);
                    stack.extend(values.iter().map(|value| (value, depth + 1)));
                }
            }
            return Some((schema, depth));
        }
    })
}

fn references_in(root: &Value) -> impl Iterator<Item = &str> {
    schemas_in(root).filter_map(|(schema, _)| schema.get("$ref")?.as_str())
}

/// What a schema compiler follows is at most as long as the longest path that visits no target twice. Where there are
/// cycles that path is hard to find, so an upper bound is: layers of targets that lead to no cycle, layers that no cycle
/// leads to, and all that is between.
fn check_references(root: &Value, schemas: &HashSet<*const Map<String, Value>>) -> Result<(), String> {
    let mut indexes = HashMap::new();
    let mut targets = Vec::new();
    for reference in references_in(root) {
        if !indexes.contains_key(reference) {
            indexes.insert(reference, targets.len());
            targets.push(resolve(root, schemas, reference)?);
        }
    }
    let outgoing: Vec<BTreeSet<usize>> =
        targets.iter().map(|target| references_in(target).map(|reference| indexes[reference]).collect()).collect();
    let mut incoming = vec![BTreeSet::new(); targets.len()];
    for (from, to) in outgoing.iter().enumerate().flat_map(|(from, all)| all.iter().map(move |to| (from, *to))) {
        incoming[to].insert(from);
    }
    let mut left: BTreeSet<usize> = (0..targets.len()).collect();
    let chain = peel(&mut left, &outgoing) + peel(&mut left, &incoming) + left.len();
    check_limit("`$ref`s that follow one after another", chain, MAX_REFERENCE_CHAIN)
}

/// Only schemas that were counted can be referred to: not data, nor the table of all properties.
fn resolve<'a>(
    root: &'a Value,
    schemas: &HashSet<*const Map<String, Value>>,
    reference: &str,
) -> Result<&'a Value, String> {
    let name = excerpt(reference);
    let Some(pointer) = reference.strip_prefix('#') else {
        return Err(format!("refers to `{name}`; a `$ref` must begin with `#`, because nothing is fetched"));
    };
    let is_counted = |schema: &Map<String, Value>| schemas.contains(&ptr::from_ref(schema));
    let is_schema = |value: &&Value| value.is_boolean() || value.as_object().is_some_and(is_counted);
    root.pointer(pointer).filter(is_schema).ok_or_else(|| format!("refers to `{name}`, and has no schema there"))
}

/// Takes away what has no edge to anything left, layer by layer, and says how many layers there were. Once they are too
/// many it stops.
fn peel(left: &mut BTreeSet<usize>, edges: &[BTreeSet<usize>]) -> usize {
    let mut num_layers = 0;
    while num_layers <= MAX_REFERENCE_CHAIN {
        let ends: BTreeSet<usize> = left.iter().copied().filter(|target| edges[*target].is_disjoint(left)).collect();
        if ends.is_empty() {
            break;
        }
        left.retain(|target| !ends.contains(target));
        num_layers += 1;
    }
    num_layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use serde_json::json;

    /// `levels` schemas, each inside the one before.
    fn nested(levels: usize) -> Value {
        (1..levels).fold(json!({}), |inner, _| json!({ "items": inner }))
    }

    fn flat(properties: usize) -> Value {
        let properties: Map<String, Value> = (0..properties).map(|name| (name.to_string(), json!(true))).collect();
        json!({ "properties": properties })
    }

    /// Definitions of which each refers to the next, and the last to `end`.
    fn chain(definitions: usize, end: Option<&str>) -> Value {
        let next = |index: usize| match end {
            Some(end) if index + 1 == definitions => json!({ "$ref": end }),
            None if index + 1 == definitions => json!({}),
            _ => json!({ "items": { "$ref": format!("#/$defs/{}", index + 1) } }),
        };
        let all: Map<String, Value> = (0..definitions).map(|index| (index.to_string(), next(index))).collect();
        json!({ "$ref": "#/$defs/0", "$defs": all })
    }

    #[test]
    fn what_is_within_the_limits_passes() {
        let many = |count: usize| (0..count).map(|value| json!(value)).collect::<Value>();
        let star: Map<String, Value> =
            (0..200).map(|name| (format!("{name}"), json!({ "items": { "$ref": "#/$defs/end" } }))).collect();
        let references: Value = star.keys().map(|name| json!({ "$ref": format!("#/$defs/{name}") })).collect();
        let mut star = json!({ "anyOf": references, "$defs": star });
        star["$defs"]["end"] = json!({ "items": { "$ref": "#/$defs/end" } });
        for schema in [
            json!({}),
            nested(MAX_DEPTH),
            flat(MAX_PROPERTIES),
            json!({ "allOf": vec![flat(MAX_PROPERTIES); 5] }),
            json!({ "enum": many(MAX_ENUM_VALUES) }),
            json!({ "const": "x".repeat(MAX_CHARS) }),
            chain(MAX_REFERENCE_CHAIN, None),
            chain(MAX_REFERENCE_CHAIN, Some("#/$defs/0")),
            chain(MAX_REFERENCE_CHAIN - 1, Some("#")),
            // Many ways to a cycle, and all of them short.
            star,
            // Data may look like anything, and a property may be named like a keyword.
            json!({ "const": { "$ref": "https://example.com" }, "default": nested(100) }),
            json!({ "properties": { "$ref": { "type": "string" }, "enum": { "enum": [1] }, "properties": true } }),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused() {
        let many = |count: usize| (0..count).map(|value| json!(value)).collect::<Value>();
        let loops: Map<String, Value> = (0..33)
            .flat_map(|index| {
                let there_and_back = json!({ "anyOf": [
                    { "$ref": format!("#/$defs/b{index}") },
                    { "$ref": format!("#/$defs/a{}", index + 1) },
                ] });
                [
                    (format!("a{index}"), there_and_back),
                    (format!("b{index}"), json!({ "$ref": format!("#/$defs/a{index}") })),
                ]
            })
            .chain([("a33".to_owned(), json!({}))])
            .collect();
        let schemas = [
            json!(true),
            json!({ "description": "x".repeat(MAX_BYTES) }),
            nested(MAX_DEPTH + 1),
            // A property that is named like a keyword for data hides nothing.
            json!({ "properties": { "default": nested(MAX_DEPTH) } }),
            flat(MAX_PROPERTIES + 1),
            json!({ "allOf": vec![flat(MAX_PROPERTIES); 6] }),
            json!({ "anyOf": [{ "enum": many(600) }, { "enum": many(600) }] }),
            json!({ "enum": ["x".repeat(MAX_CHARS), "x"] }),
            json!({ "properties": { "x".repeat(MAX_CHARS + 1): {} } }),
            json!({ "$ref": "https://example.com/schema.json" }),
            json!({ "items": { "$ref": "#/$defs/none" } }),
            // Nothing hides in data.
            json!({ "items": { "$ref": "#/const" }, "const": { "$ref": "#/none" } }),
            json!({ "items": { "$ref": "#/properties" }, "properties": { "a": {} } }),
            chain(MAX_REFERENCE_CHAIN + 1, None),
            chain(5000, None),
            chain(MAX_REFERENCE_CHAIN + 1, Some("#/$defs/0")),
            json!({ "$ref": "#/$defs/a0", "$defs": loops }),
        ];
        let lines: Vec<String> = schemas.iter().map(|schema| check(schema).unwrap_err()).collect();
        assert_snapshot!(lines.join("\n"), @"
        must be a JSON Schema, which is an object
        may have at most 262144 bytes, and it has 262162 or more
        may have at most 64 levels of schemas inside schemas, and it has 65 or more
        may have at most 64 levels of schemas inside schemas, and it has 65 or more
        may have at most 1000 properties in one object, and it has 1001 or more
        may have at most 5000 properties, and it has 6000 or more
        may have at most 1000 values of `enum`, and it has 1200 or more
        may have at most 120000 characters of names and values, and it has 120001 or more
        may have at most 120000 characters of names and values, and it has 120001 or more
        refers to `https://example.com/schema.json`; a `$ref` must begin with `#`, because nothing is fetched
        refers to `#/$defs/none`, and has no schema there
        refers to `#/const`, and has no schema there
        refers to `#/properties`, and has no schema there
        may have at most 64 `$ref`s that follow one after another, and it has 65 or more
        may have at most 64 `$ref`s that follow one after another, and it has 5000 or more
        may have at most 64 `$ref`s that follow one after another, and it has 65 or more
        may have at most 64 `$ref`s that follow one after another, and it has 67 or more
        ");
    }
}
