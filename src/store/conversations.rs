//! Conversations: items in an order, to which responses and clients add.

use super::{
    Append, Key, Store, StoreError,
    checksum::checksum,
    responses::MAX_HISTORY_BYTES,
    statement::{Row, Statement},
};

/// As it is found.
#[derive(Clone, Debug)]
pub struct StoredConversation {
    /// Unique among its owner's.
    pub id: String,
    /// In seconds since 1970.
    pub created_at: u64,
    /// A JSON object.
    pub metadata: String,
}

/// One item of a conversation.
#[derive(Clone, Debug)]
pub struct StoredItem {
    /// Unique in its conversation.
    pub id: String,
    /// JSON text.
    pub item: String,
}

const INSERT: &str = "INSERT INTO conversations (tenant, id, created_at, used_at, metadata, next_position, bytes) \
                      VALUES ($1, $2, $3, unixepoch(), $4, 0, 0)";
const SELECT: &str = "SELECT id, created_at, metadata FROM conversations WHERE tenant = $1 AND id = $2";
const UPDATE: &str = "UPDATE conversations SET metadata = $1, used_at = unixepoch() WHERE tenant = $2 AND id = $3 \
                      RETURNING id, created_at, metadata";
const DELETE: &str = "DELETE FROM conversations WHERE tenant = $1 AND id = $2 RETURNING id";
const DELETE_ITEMS: &str = "DELETE FROM conversation_items WHERE tenant = $1 AND conversation_id = $2";
/// Takes the positions. Of two at once, one waits here for the other.
const MAKE_ROOM: &str = "UPDATE conversations SET next_position = next_position + $1, bytes = bytes + $2, \
                         used_at = unixepoch() WHERE tenant = $3 AND id = $4 RETURNING id";
const INSERT_ITEM: &str = "INSERT INTO conversation_items (tenant, conversation_id, position, id, item, checksum) \
                           SELECT tenant, id, next_position - CAST($1 AS BIGINT), CAST($2 AS TEXT), CAST($3 AS TEXT), \
                           CAST($4 AS TEXT) FROM conversations WHERE tenant = $5 AND id = $6";
const SELECT_ITEM: &str = "SELECT id, item, checksum FROM conversation_items \
                           WHERE tenant = $1 AND conversation_id = $2 AND id = $3";
const SHRINK: &str = "UPDATE conversations SET bytes = bytes - ( \
                        SELECT octet_length(item) FROM conversation_items i \
                        WHERE i.tenant = $1 AND i.conversation_id = $2 AND i.id = $3 \
                      ) WHERE tenant = $1 AND id = $2 AND EXISTS ( \
                        SELECT 1 FROM conversation_items i \
                        WHERE i.tenant = $1 AND i.conversation_id = $2 AND i.id = $3 \
                      ) RETURNING id";
const DELETE_ITEM: &str = "DELETE FROM conversation_items WHERE tenant = $1 AND conversation_id = $2 AND id = $3 \
                           RETURNING id";
/// `after` is a position, `$3`, or null to begin at the beginning.
const SELECT_UP: &str = "SELECT id, item, checksum FROM conversation_items \
                         WHERE tenant = $1 AND conversation_id = $2 AND position > $3 ORDER BY position LIMIT $4";
const SELECT_DOWN: &str = "SELECT id, item, checksum FROM conversation_items \
                           WHERE tenant = $1 AND conversation_id = $2 AND position < $3 ORDER BY position DESC LIMIT $4";
const SELECT_POSITION: &str = "SELECT position FROM conversation_items \
                               WHERE tenant = $1 AND conversation_id = $2 AND id = $3";
const SELECT_BYTES: &str = "SELECT bytes FROM conversations WHERE tenant = $1 AND id = $2";

/// The statements that add items in their order, the first of which finds the conversation.
pub(super) fn append(append: &Append<'_>) -> impl Iterator<Item = Statement> {
    let Append { conversation: Key { tenant, id }, items } = *append;
    let bytes: usize = items.iter().map(|(_, item)| item.len()).sum();
    let room = Statement::guard(MAKE_ROOM, [items.len().into(), bytes.into(), tenant.into(), id.into()]);
    let insert = move |(index, (item_id, item)): (usize, &(String, String))| {
        let checksum = checksum(Key { tenant: id, id: item_id }, &[tenant, item]);
        let from_end = items.len() - index;
        Statement::new(
            INSERT_ITEM,
            [from_end.into(), item_id.as_str().into(), item.as_str().into(), checksum.into(), tenant.into(), id.into()],
        )
    };
    [room].into_iter().chain(items.iter().enumerate().map(insert))
}

impl Store {
    /// Makes a conversation with its first items.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn create_conversation(
        &self,
        conversation: &StoredConversation,
        items: &Append<'_>,
    ) -> Result<(), StoreError> {
        let StoredConversation { id, created_at, metadata } = conversation;
        let tenant = items.conversation.tenant;
        let insert = [tenant.into(), id.as_str().into(), (*created_at).into(), metadata.as_str().into()];
        let statements = [Statement::new(INSERT, insert)].into_iter().chain(append(items)).collect();
        self.write(statements).await.map(drop)
    }

    /// None for one that is not there, or another's.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn conversation(&self, key: Key<'_>) -> Result<Option<StoredConversation>, StoreError> {
        let rows = self.read(Statement::new(SELECT, [key.tenant.into(), key.id.into()])).await?;
        Ok(rows.into_iter().next().map(read_conversation))
    }

    /// Sets what is known of a conversation. None for one that is not there, or another's.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn update_conversation(
        &self,
        key: Key<'_>,
        metadata: &str,
    ) -> Result<Option<StoredConversation>, StoreError> {
        let update = Statement::new(UPDATE, [metadata.into(), key.tenant.into(), key.id.into()]);
        Ok(self.write_all(vec![update]).await?.remove(0).pop().map(read_conversation))
    }

    /// Whether there was one. Its items go with it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_conversation(&self, key: Key<'_>) -> Result<bool, StoreError> {
        Ok(self.write(delete(key)).await?.is_some())
    }

    /// Adds items at the end. Whether there is such a conversation.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn append(&self, items: &Append<'_>) -> Result<bool, StoreError> {
        Ok(self.write(append(items).collect()).await?.is_some())
    }

    /// One item; none where it or its conversation is not there, or another's.
    ///
    /// # Errors
    /// When the database fails, or what it gives is not what was stored.
    pub async fn item(&self, conversation: Key<'_>, id: &str) -> Result<Option<StoredItem>, StoreError> {
        let query = Statement::new(SELECT_ITEM, [conversation.tenant.into(), conversation.id.into(), id.into()]);
        let found = self.read(query).await?.pop();
        let found = found.map(|row| self.stored_item(conversation, row)).transpose()?;
        if found.as_ref().is_some_and(|found| found.id != id) {
            // A damaged index leads to the row of another item.
            return Err(self.corrupt(id));
        }
        Ok(found)
    }

    /// Whether there was one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_item(&self, conversation: Key<'_>, id: &str) -> Result<bool, StoreError> {
        let of = |sql| Statement::guard(sql, [conversation.tenant.into(), conversation.id.into(), id.into()]);
        Ok(self.write(vec![of(SHRINK), of(DELETE_ITEM)]).await?.is_some())
    }

    /// At most `limit` items in the order in which they were added, or the other way round, behind one of them or from the
    /// beginning. None where that one is not there.
    ///
    /// # Errors
    /// As for [`item`](Self::item).
    pub async fn items(
        &self,
        conversation: Key<'_>,
        is_ascending: bool,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Option<Vec<StoredItem>>, StoreError> {
        let Key { tenant, id } = conversation;
        let position = match after {
            None if is_ascending => -1,
            None => i64::MAX,
            Some(after) => {
                let query = Statement::new(SELECT_POSITION, [tenant.into(), id.into(), after.into()]);
                let Some(row) = self.read(query).await?.pop() else { return Ok(None) };
                row.int(0)
            }
        };
        let sql = if is_ascending { SELECT_UP } else { SELECT_DOWN };
        let rows = self.read(Statement::new(sql, [tenant.into(), id.into(), position.into(), limit.into()])).await?;
        let read = |row| self.stored_item(conversation, row);
        Ok(Some(rows.into_iter().map(read).collect::<Result<_, _>>()?))
    }

    /// All items in their order. None where the conversation is not there, or another's.
    ///
    /// # Errors
    /// As for [`item`](Self::item), or that it is too long to go on from.
    pub async fn all_items(&self, key: Key<'_>) -> Result<Option<Vec<StoredItem>>, StoreError> {
        let rows = self.read(Statement::new(SELECT_BYTES, [key.tenant.into(), key.id.into()])).await?;
        let Some(bytes) = rows.first().map(|row| row.int(0)) else { return Ok(None) };
        if MAX_HISTORY_BYTES < u64::try_from(bytes).unwrap_or(0) {
            return Err(StoreError::TooLong);
        }
        self.items(key, true, None, u64::MAX).await
    }

    fn stored_item(&self, conversation: Key<'_>, mut row: Row) -> Result<StoredItem, StoreError> {
        let stored = StoredItem { id: row.text(0), item: row.text(1) };
        let key = Key { tenant: conversation.id, id: &stored.id };
        if checksum(key, &[conversation.tenant, &stored.item]) == row.text(2) {
            Ok(stored)
        } else {
            Err(self.corrupt(&stored.id))
        }
    }
}

fn read_conversation(mut row: Row) -> StoredConversation {
    let created_at = u64::try_from(row.int(1)).unwrap_or(0);
    StoredConversation { id: row.text(0), created_at, metadata: row.text(2) }
}

pub(super) fn delete(key: Key<'_>) -> Vec<Statement> {
    let of = |sql| Statement::new(sql, [key.tenant.into(), key.id.into()]);
    vec![Statement::guard(DELETE, [key.tenant.into(), key.id.into()]), of(DELETE_ITEMS)]
}
