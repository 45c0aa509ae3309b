//! Arguments that a format writes without their types get those of the tool's schema.

use super::python;
use serde_json::{Number, Value};

/// Types that a schema names, of its choices too, in their order.
fn types(schema: &Value) -> Vec<&str> {
    let kinds = schema["type"].as_array().into_iter().flatten();
    let mut types: Vec<&str> = kinds.chain([&schema["type"]]).filter_map(Value::as_str).collect();
    let choices = ["anyOf", "oneOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
    // One level: a choice of choices is rare, and its depth is not ours to follow.
    types.extend(choices.filter_map(|choice| choice["type"].as_str()));
    if schema["nullable"] == true && !types.contains(&"null") {
        types.push("null");
    }
    types
}

/// A value as the property `key` of the parameters wants it; where it cannot be that, as it is.
pub(super) fn coerced(parameters: Option<&Value>, key: &str, value: Value) -> Value {
    let Some(schema) = parameters.and_then(|parameters| parameters.get("properties")?.get(key)) else { return value };
    let types = types(schema);
    let of_text = |value: Value| value.as_str().and_then(|text| typed(text, &types)).unwrap_or(value);
    let is_merged = !types.is_empty() && !types.contains(&"array");
    match value {
        Value::Array(values) if is_merged => values.into_iter().map(of_text).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            of_text(value)
        }
    }
}

/// All members of an object, as the parameters want them.
pub(super) fn coerced_all(parameters: Option<&Value>, arguments: Value) -> Value {
    let Value::Object(members) = arguments else { return arguments };
    let coerced = members.into_iter().map(|(key, value)| {
        let value = coerced(parameters, &key, value);
        (key, value)
    });
    Value::Object(coerced.collect())
}

fn typed(text: &str, types: &[&str]) -> Option<Value> {
    let word = text.trim();
    types.iter().find_map(|kind| match *kind {
        "integer" => word.parse::<i64>().ok().map(Value::from).or_else(|| {
            let whole = word.parse::<f64>().ok().filter(|number| number.fract() == 0.0)?;
            format!("{whole:.0}").parse::<i64>().ok().map(Value::from)
        }),
        "number" => match word.parse::<i64>() {
            Ok(number) => Some(Value::from(number)),
            Err(_) => word.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number),
        },
        "boolean" => match word.to_lowercase().as_str() {
            "true" | "1" => Some(Value::Bool(true)),
            "false" | "0" => Some(Value::Bool(false)),
            _ => None,
        },
        "null" => matches!(word, "null" | "None").then_some(Value::Null),
        // Templates that print a value as it is have taught models the syntax of Python.
        "object" => serde_json::from_str(text).ok().or_else(|| python::value(text)).filter(Value::is_object),
        "array" => serde_json::from_str(text).ok().or_else(|| python::value(text)).filter(Value::is_array),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_becomes_what_the_schema_says_where_it_can() {
        let coerce =
            |schema: Value, text: &str| coerced(Some(&json!({ "properties": { "a": schema } })), "a", json!(text));
        for (schema, text, expected) in [
            (json!({ "type": "integer" }), " 3.0 ", json!(3)),
            (json!({ "type": "integer" }), "3.5", json!("3.5")),
            (json!({ "type": "number" }), "2", json!(2)),
            (json!({ "type": "number" }), "inf", json!("inf")),
            (json!({ "type": "boolean" }), "True", json!(true)),
            (json!({ "type": ["string", "null"] }), "None", json!(null)),
            (json!({ "anyOf": [{ "type": "integer" }, { "type": "string" }] }), "x", json!("x")),
            (json!({ "type": "array" }), "[1]", json!([1])),
            (json!({ "type": "object" }), "[1]", json!("[1]")),
            (json!({ "type": "integer", "nullable": true }), "null", json!(null)),
            (json!({ "type": "string" }), "1", json!("1")),
            (json!({}), "1", json!("1")),
        ] {
            assert_eq!(coerce(schema.clone(), text), expected, "{schema} {text}");
        }
        assert_eq!(coerced(None, "a", json!("1")), json!("1"));
    }
}
