//! Responses that are kept: read, listed, cancelled, deleted.

use super::{
    error::{Kind, ResponsesError},
    history::{read_items, read_object},
    list::List,
    query::Query,
    responder::{Owner, Responder},
};
use crate::store::{Key, Store, StoredResponse};
use serde_json::{Value, json};

impl Responder {
    /// The response object as it is now.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn retrieve(&self, owner: &Owner, id: &str, query: &Query) -> Result<Value, ResponsesError> {
        let mut object = object(&self.stored(owner, id).await?)?;
        if query.encrypted_reasoning
            && let Some(output) = object["output"].as_array_mut()
        {
            self.dialect.seal_reasoning(output);
        }
        Ok(object)
    }

    /// The items of its own input, not of what it goes on from.
    ///
    /// # Errors
    /// `NotFound`, also of `after`, and what the store says.
    pub async fn input_items(&self, owner: &Owner, id: &str, query: &Query) -> Result<List, ResponsesError> {
        let stored = self.stored(owner, id).await?;
        let mut items = read_items(id, &stored.input)?;
        if query.encrypted_reasoning {
            self.dialect.seal_reasoning(&mut items);
        }
        List::page(items, query)
    }

    /// Ends a background response; one that has ended stays as it is.
    ///
    /// # Errors
    /// `NotFound`, `NotBackground`, and what the store says.
    pub async fn cancel(&self, owner: &Owner, id: &str) -> Result<Value, ResponsesError> {
        let stored = self.stored(owner, id).await?;
        if !stored.is_background {
            return Err(ResponsesError::NotBackground { id: stored.id });
        }
        self.store_of(id)?.cancel(Key { tenant: &owner.tenant, id }).await?;
        object(&self.stored(owner, id).await?)
    }

    /// It can neither be read nor gone on from any more.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn delete(&self, owner: &Owner, id: &str) -> Result<Value, ResponsesError> {
        let is_deleted = self.store_of(id)?.delete_response(Key { tenant: &owner.tenant, id }).await?;
        if !is_deleted {
            return Err(ResponsesError::not_found(Kind::Response, id));
        }
        Ok(json!({ "id": id, "object": "response", "deleted": true }))
    }

    async fn stored(&self, owner: &Owner, id: &str) -> Result<StoredResponse, ResponsesError> {
        let found = self.store_of(id)?.response(Key { tenant: &owner.tenant, id }).await?;
        found.ok_or_else(|| ResponsesError::not_found(Kind::Response, id))
    }

    /// Where nothing is kept, nothing is found.
    fn store_of(&self, id: &str) -> Result<&Store, ResponsesError> {
        self.store.as_ref().ok_or_else(|| ResponsesError::not_found(Kind::Response, id))
    }
}

/// With the status that holds.
fn object(stored: &StoredResponse) -> Result<Value, ResponsesError> {
    let mut object = read_object(&stored.id, &stored.body)?;
    object["status"] = stored.status.as_str().into();
    if stored.status == "failed" && object["error"].is_null() {
        let message = "what was asked was damaged while it waited in the store; send the request again";
        object["error"] = json!({ "code": "server_error", "message": message });
    }
    Ok(object)
}
