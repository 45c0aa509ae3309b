//! Lists, a page at a time.

use super::{
    error::{Kind, ResponsesError},
    query::Query,
};
use serde::Serialize;
use serde_json::Value;

/// One page, as the protocol has it.
#[derive(Debug, Serialize)]
pub struct List {
    object: &'static str,
    data: Vec<Value>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl List {
    pub(super) fn new(data: Vec<Value>, has_more: bool) -> Self {
        let id = |item: Option<&Value>| item.and_then(|item| item["id"].as_str()).map(str::to_owned);
        Self { object: "list", first_id: id(data.first()), last_id: id(data.last()), data, has_more }
    }

    /// The page of all items that a query asks for.
    pub(super) fn page(mut items: Vec<Value>, query: &Query) -> Result<Self, ResponsesError> {
        if !query.is_ascending {
            items.reverse();
        }
        if let Some(after) = &query.after {
            let place = items.iter().position(|item| item["id"] == after.as_str());
            items.drain(..=place.ok_or_else(|| ResponsesError::not_found(Kind::Item, after))?);
        }
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let has_more = limit < items.len();
        items.truncate(limit);
        Ok(Self::new(items, has_more))
    }
}
