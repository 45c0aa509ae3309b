//! Conversations: made, added to, read and deleted by clients. Responses go on from them and add to them.

use super::{
    error::{InvalidRequest, Kind, ResponsesError},
    field::{Field, Object},
    input::parse_input,
    items::{normalize, with_ids},
    labels::parse_metadata,
    list::List,
    query::Query,
    responder::{Owner, Responder},
    response::{new_id, unix_seconds},
};
use crate::store::{Append, Key, Store, StoreError, StoredConversation, StoredItem};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Of an item's id, where it comes with one.
const MAX_ID_BYTES: usize = 256;
/// Items that may be added at once.
const MAX_ITEMS: usize = 20;

impl Responder {
    /// A new conversation.
    ///
    /// # Errors
    /// Of the body, and what the store says.
    pub async fn create_conversation(&self, owner: &Owner, body: &Value) -> Result<Value, ResponsesError> {
        let body = Field::root(body).object()?;
        let metadata = body.optional("metadata", parse_metadata)?.unwrap_or_default();
        let items = match body.get("items") {
            Some(items) => self.parse_items(&items, Vec::new())?,
            None => Vec::new(),
        };
        let store = self.conversation_store()?;
        store.check_room().await?;
        let metadata = Value::Object(metadata).to_string();
        let conversation = StoredConversation { id: new_id("conv"), created_at: unix_seconds(), metadata };
        let key = Key { tenant: &owner.tenant, id: &conversation.id };
        store.create_conversation(&conversation, &Append { conversation: key, items: &with_ids(&items) }).await?;
        object(&conversation)
    }

    /// What is known of it, without its items.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn retrieve_conversation(&self, owner: &Owner, id: &str) -> Result<Value, ResponsesError> {
        let found = self.conversation_store()?.conversation(Key { tenant: &owner.tenant, id }).await?;
        object(&found.ok_or_else(|| ResponsesError::not_found(Kind::Conversation, id))?)
    }

    /// Sets its metadata.
    ///
    /// # Errors
    /// Of the body, `NotFound`, and what the store says.
    pub async fn update_conversation(&self, owner: &Owner, id: &str, body: &Value) -> Result<Value, ResponsesError> {
        let body = Field::root(body).object()?;
        let metadata: Map<String, Value> = body.optional("metadata", parse_metadata)?.unwrap_or_default();
        let key = Key { tenant: &owner.tenant, id };
        let metadata = Value::Object(metadata).to_string();
        let found = self.conversation_store()?.update_conversation(key, &metadata).await?;
        object(&found.ok_or_else(|| ResponsesError::not_found(Kind::Conversation, id))?)
    }

    /// Its items go with it; responses that belonged to it stay.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn delete_conversation(&self, owner: &Owner, id: &str) -> Result<Value, ResponsesError> {
        let is_deleted = self.conversation_store()?.delete_conversation(Key { tenant: &owner.tenant, id }).await?;
        if !is_deleted {
            return Err(ResponsesError::not_found(Kind::Conversation, id));
        }
        Ok(json!({ "id": id, "object": "conversation.deleted", "deleted": true }))
    }

    /// Adds items, and gives them back with their ids.
    ///
    /// # Errors
    /// Of the body, `NotFound`, and what the store says.
    pub async fn add_items(&self, owner: &Owner, id: &str, body: &Value) -> Result<List, ResponsesError> {
        let body = Field::root(body).object()?;
        let items = body.require("items")?;
        let store = self.conversation_store()?;
        let key = Key { tenant: &owner.tenant, id };
        let not_found = || ResponsesError::not_found(Kind::Conversation, id);
        let known = store.all_items(key).await?.ok_or_else(not_found)?;
        let known = known.iter().map(read_item).collect::<Result<Vec<_>, _>>()?;
        let items = self.parse_items(&items, known)?;
        store.check_room().await?;
        let is_there = store.append(&Append { conversation: key, items: &with_ids(&items) }).await?;
        if is_there { Ok(List::new(items, false)) } else { Err(not_found()) }
    }

    /// A page of its items.
    ///
    /// # Errors
    /// `NotFound`, also of `after`, and what the store says.
    pub async fn conversation_items(&self, owner: &Owner, id: &str, query: &Query) -> Result<List, ResponsesError> {
        self.retrieve_conversation(owner, id).await?;
        let (key, after) = (Key { tenant: &owner.tenant, id }, query.after.as_deref());
        // One more tells whether there are more.
        let found = self.conversation_store()?.items(key, query.is_ascending, after, query.limit + 1).await?;
        let mut found = found.ok_or_else(|| ResponsesError::not_found(Kind::Item, after.unwrap_or_default()))?;
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let has_more = limit < found.len();
        found.truncate(limit);
        let mut items = found.iter().map(read_item).collect::<Result<Vec<_>, _>>()?;
        if query.encrypted_reasoning {
            self.dialect.seal_reasoning(&mut items);
        }
        Ok(List::new(items, has_more))
    }

    /// One of its items.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn conversation_item(&self, owner: &Owner, id: &str, item: &str) -> Result<Value, ResponsesError> {
        self.retrieve_conversation(owner, id).await?;
        let found = self.conversation_store()?.item(Key { tenant: &owner.tenant, id }, item).await?;
        read_item(&found.ok_or_else(|| ResponsesError::not_found(Kind::Item, item))?)
    }

    /// The conversation without the item.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn delete_conversation_item(&self, owner: &Owner, id: &str, item: &str) -> Result<Value, ResponsesError> {
        let conversation = self.retrieve_conversation(owner, id).await?;
        let is_deleted = self.conversation_store()?.delete_item(Key { tenant: &owner.tenant, id }, item).await?;
        if is_deleted { Ok(conversation) } else { Err(ResponsesError::not_found(Kind::Item, item)) }
    }

    /// As for a request's input: what could not be said to a model is refused now and not when it is. Each id once. What is
    /// sealed stays so.
    fn parse_items(&self, field: &Field, mut known: Vec<Value>) -> Result<Vec<Value>, InvalidRequest> {
        let items: Vec<Value> = field.elements()?.map(|item| item.value().clone()).collect();
        if MAX_ITEMS < items.len() {
            return Err(field.invalid(format!("may hold at most {MAX_ITEMS} items, and it holds {}", items.len())));
        }
        if items.is_empty() {
            return Ok(Vec::new());
        }
        check_ids(known.iter().filter_map(|item| item["id"].as_str()), "items", field.value())?;
        let mut opened = items.clone();
        self.dialect.open(&mut opened);
        self.dialect.open(&mut known);
        let as_input = json!({ "input": opened });
        let checked: Object = Field::root(&as_input).object()?;
        parse_input(&known, &checked).map_err(|error| rename(error, "items"))?;
        Ok(items.into_iter().map(normalize).collect())
    }

    fn conversation_store(&self) -> Result<&Store, ResponsesError> {
        let why = "this server keeps nothing (`store.enabled` is false); send the whole conversation as `input`";
        self.store.as_ref().ok_or_else(|| InvalidRequest::unsupported_parameter("conversation", why).into())
    }
}

fn object(conversation: &StoredConversation) -> Result<Value, ResponsesError> {
    let StoredConversation { id, created_at, metadata } = conversation;
    let metadata: Value = serde_json::from_str(metadata).map_err(|_| StoreError::Corrupt { id: id.clone() })?;
    Ok(json!({ "id": id, "object": "conversation", "created_at": created_at, "metadata": metadata }))
}

fn read_item(StoredItem { id, item }: &StoredItem) -> Result<Value, ResponsesError> {
    Ok(serde_json::from_str(item).map_err(|_| StoreError::Corrupt { id: id.clone() })?)
}

/// Each item is in a conversation once, under an id of its own.
pub(super) fn check_ids<'i>(
    known: impl Iterator<Item = &'i str>,
    name: &str,
    items: &'i Value,
) -> Result<(), InvalidRequest> {
    let mut ids: HashSet<&str> = known.collect();
    for (index, item) in items.as_array().into_iter().flatten().enumerate() {
        let Some(id) = item["id"].as_str().filter(|id| !id.is_empty()) else { continue };
        let why = if MAX_ID_BYTES < id.len() || id.contains(char::is_control) {
            "has an id that cannot be one; leave it out"
        } else if !ids.insert(id) {
            "has an id that another item of the conversation has; leave it out"
        } else {
            continue;
        };
        return Err(InvalidRequest::invalid(&format!("{name}[{index}]"), why));
    }
    Ok(())
}

/// The error of a request whose items stood elsewhere.
fn rename(error: InvalidRequest, name: &str) -> InvalidRequest {
    let renamed = |text: &str| text.replacen("input", name, 1);
    InvalidRequest {
        param: error.param.as_deref().map(renamed),
        message: if error.message.starts_with('`') { renamed(&error.message) } else { error.message },
        ..error
    }
}
