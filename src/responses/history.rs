//! What was said before a request: the items of a chain of responses, or of a conversation.

use super::error::ResponsesError;
use crate::store::{StoreError, StoredItem, StoredResponse};
use serde_json::Value;

/// Items in their order, of which the last compaction stands for all that it summarizes.
pub(super) fn of_chain(chain: &[StoredResponse]) -> Result<Vec<Value>, ResponsesError> {
    let mut items = Vec::new();
    for response in chain {
        let StoredResponse { id, input, body, .. } = response;
        items.extend(read_items(id, input)?);
        items.extend(read_output(id, body)?);
    }
    Ok(from_last_compaction(items))
}

/// The same of a conversation.
pub(super) fn of_conversation(stored: &[StoredItem]) -> Result<Vec<Value>, ResponsesError> {
    let read = |StoredItem { id, item }: &StoredItem| serde_json::from_str(item).map_err(|_| corrupt(id));
    Ok(from_last_compaction(stored.iter().map(read).collect::<Result<_, _>>()?))
}

/// A stored array of items.
pub(super) fn read_items(id: &str, items: &str) -> Result<Vec<Value>, ResponsesError> {
    serde_json::from_str(items).map_err(|_| corrupt(id))
}

/// A stored response object.
pub(super) fn read_object(id: &str, body: &str) -> Result<Value, ResponsesError> {
    serde_json::from_str(body).map_err(|_| corrupt(id))
}

fn read_output(id: &str, body: &str) -> Result<Vec<Value>, ResponsesError> {
    let Value::Array(output) = read_object(id, body)?["output"].take() else { return Err(corrupt(id)) };
    Ok(output)
}

/// Checksums are right, so another version wrote it.
fn corrupt(id: &str) -> ResponsesError {
    StoreError::Corrupt { id: id.to_owned() }.into()
}

/// A compaction that a reply follows has summarized all but the turn that the reply answers; one that nothing of the model
/// follows has summarized that, too. What the developer said always holds.
pub(super) fn from_last_compaction(mut items: Vec<Value>) -> Vec<Value> {
    let is_compaction = |item: &Value| item["type"] == "compaction";
    let Some(compaction) = items.iter().rposition(is_compaction) else { return items };
    let after = items.split_off(compaction + 1);
    let summary = items.pop().expect("the compaction is the last one");
    let is_answered = after.first().is_some_and(|item| item["type"] != "message" || item["role"] == "assistant");
    let last_turn = if is_answered { items.iter().rposition(|item| item["role"] == "user") } else { None };
    let turn = items.split_off(last_turn.unwrap_or(items.len()));
    items.retain(|item| item["role"] == "system" || item["role"] == "developer");
    items.into_iter().chain([summary]).chain(turn).chain(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// One letter each: developer, user, assistant, call, compaction.
    fn cut(items: &str) -> String {
        let item = |letter: char| match letter {
            'd' => json!({ "type": "message", "role": "developer" }),
            'u' => json!({ "type": "message", "role": "user" }),
            'a' => json!({ "type": "message", "role": "assistant" }),
            'f' => json!({ "type": "function_call" }),
            _ => json!({ "type": "compaction" }),
        };
        let letter = |item: &Value| match (item["type"].as_str().unwrap(), item["role"].as_str()) {
            ("message", Some(role)) => role.chars().next().unwrap(),
            ("function_call", _) => 'f',
            _ => 'C',
        };
        from_last_compaction(items.chars().map(item).collect()).iter().map(letter).collect()
    }

    #[test]
    fn a_compaction_stands_for_what_it_summarizes() {
        for (items, expected) in [
            ("", ""),
            ("duaua", "duaua"),
            // On the way to an answer: the turn that is answered was kept.
            ("duauCa", "dCua"),
            ("duauCfua", "dCufua"),
            ("uauCauauCa", "Cua"),
            // Asked for: all was summarized.
            ("duauaC", "dC"),
            ("duauaCua", "dCua"),
            ("uCuaCd", "Cd"),
        ] {
            assert_eq!(cut(items), expected, "{items}");
        }
    }
}
