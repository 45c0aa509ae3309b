//! Responses, and the chains that they form.

use super::{
    Key, Store, StoreError,
    checksum::checksum,
    conversations,
    statement::{Row, Statement},
};

/// A response that has ended.
#[derive(Debug)]
pub struct FinishedResponse<'a> {
    /// Where it will be found.
    pub key: Key<'a>,
    /// When it was made, in seconds since 1970.
    pub created_at: u64,
    /// As the protocol has it.
    pub status: &'a str,
    /// The served model.
    pub model: &'a str,
    /// Which response it goes on from.
    pub previous_id: Option<&'a str>,
    /// Its own input: a JSON array of items.
    pub input: &'a str,
    /// The response object.
    pub body: &'a str,
    /// Ids of its output items.
    pub item_ids: &'a [String],
}

/// Work to be done later.
#[derive(Debug)]
pub struct NewJob<'a> {
    /// The response as it begins.
    pub response: FinishedResponse<'a>,
    /// What is asked, in JSON.
    pub request: &'a str,
    /// Jobs that may be unfinished at once, of all owners.
    pub max_unfinished: u64,
}

/// Items that a conversation gets when a response ends.
#[derive(Debug)]
pub struct Append<'a> {
    /// Which one.
    pub conversation: Key<'a>,
    /// Ids and JSON texts.
    pub items: &'a [(String, String)],
}

/// Whether there was room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// It is stored.
    Stored,
    /// There are as many as there may be.
    Full,
}

/// As it is found.
#[derive(Clone, Debug)]
pub struct StoredResponse {
    /// Unique among its owner's.
    pub id: String,
    /// Holds where `body` says something else.
    pub status: String,
    /// Whether it was made in the background.
    pub is_background: bool,
    /// Its own input: a JSON array of items.
    pub input: String,
    /// The response object.
    pub body: String,
}

const INSERT: &str = "INSERT INTO responses (tenant, id, created_at, used_at, model, status, previous_id, input, body, \
                      checksum, bytes, event_bytes, background, attempt, run) \
                      VALUES ($1, $2, $3, unixepoch(), $4, $5, $6, $7, $8, $9, $10, 0, 0, 0, 0)";
/// Without a lease it is anybody's to take.
const INSERT_JOB: &str = "INSERT INTO responses (tenant, id, created_at, used_at, model, status, previous_id, input, body, \
                          checksum, bytes, event_bytes, background, request, request_checksum, lease_until, attempt, run) \
                          SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS BIGINT), unixepoch(), CAST($4 AS TEXT), \
                          CAST($5 AS TEXT), CAST($6 AS TEXT), CAST($7 AS TEXT), CAST($8 AS TEXT), CAST($9 AS TEXT), \
                          CAST($10 AS BIGINT), 0, 1, CAST($11 AS TEXT), CAST($12 AS TEXT), 0, 0, 0 \
                          WHERE (SELECT count(*) FROM responses WHERE lease_until IS NOT NULL) < CAST($13 AS BIGINT) \
                          RETURNING id";
const INSERT_ITEM: &str = "INSERT INTO output_items (tenant, id, response_id) VALUES ($1, $2, $3)";
const SELECT: &str =
    "SELECT id, status, background, input, body, checksum, previous_id FROM responses WHERE tenant = $1 AND id = $2";
const SELECT_BY_ITEM: &str = "SELECT r.id, r.status, r.background, r.input, r.body, r.checksum, r.previous_id \
                              FROM output_items i \
                              JOIN responses r ON r.tenant = i.tenant AND r.id = i.response_id \
                              WHERE i.tenant = $1 AND i.id = $2";
/// A query over a response, `$1` of the owner `$2`, and all that it goes on from, at most `$3` of them. A parent whose row is
/// gone ends the walk, and what is missing shows in `previous_id` of the row above.
macro_rules! over_chain {
    ($query:literal) => {
        concat!(
            "WITH RECURSIVE chain (id, depth) AS ( \
               SELECT CAST($1 AS TEXT), CAST(0 AS BIGINT) \
               UNION ALL \
               SELECT r.previous_id, c.depth + 1 FROM chain c JOIN responses r ON r.tenant = $2 AND r.id = c.id \
               WHERE r.previous_id IS NOT NULL AND c.depth < $3 \
             ) ",
            $query
        )
    };
}
const SELECT_CHAIN: &str = over_chain!(
    "SELECT r.id, r.status, r.background, r.input, r.body, r.checksum, r.previous_id \
     FROM chain c JOIN responses r ON r.tenant = $2 AND r.id = c.id ORDER BY c.depth"
);
/// Looked at before rows are read that might not fit in memory.
const SELECT_CHAIN_BYTES: &str = over_chain!(
    "SELECT CAST(coalesce(sum(r.bytes), 0) AS BIGINT), count(*) \
     FROM chain c JOIN responses r ON r.tenant = $2 AND r.id = c.id"
);
/// What is gone on from is in use, and so is all that it goes on from: so no chain loses its beginning before its end.
const TOUCH_CHAIN: &str = over_chain!(
    "UPDATE responses SET used_at = unixepoch() \
     WHERE tenant = $2 AND id IN (SELECT id FROM chain) AND used_at < unixepoch() - $4"
);
const DELETE: &str = "DELETE FROM responses WHERE tenant = $1 AND id = $2 RETURNING id";
const DELETE_ITEMS: &str = "DELETE FROM output_items WHERE tenant = $1 AND response_id = $2";
const DELETE_EVENTS: &str = "DELETE FROM events WHERE tenant = $1 AND response_id = $2";

/// Responses that one may go on from, one after the other.
const MAX_CHAIN: u64 = 1000;
/// Uses that come so soon after each other are one, so that not each turn writes to all that went before it.
pub(super) const USE_SECONDS: u64 = 60;
/// Bytes of what a request may go on from: more than fits a model's context, as a body may have.
pub(super) const MAX_HISTORY_BYTES: u64 = 8 * 1024 * 1024;

impl FinishedResponse<'_> {
    fn checksum(&self) -> String {
        checksum_of(self.key, self.previous_id, self.input, self.body)
    }

    pub(super) fn bytes(&self) -> usize {
        self.input.len() + self.body.len()
    }

    /// Where its output items are.
    pub(super) fn index(&self) -> impl Iterator<Item = Statement> {
        let Key { tenant, id } = self.key;
        self.item_ids
            .iter()
            .map(move |item_id| Statement::new(INSERT_ITEM, [tenant.into(), item_id.as_str().into(), id.into()]))
    }

    /// Sets what it goes on from in use.
    pub(super) fn touch(&self) -> Option<Statement> {
        touch(self.key.tenant, self.previous_id?).into()
    }
}

pub(super) fn checksum_of(key: Key<'_>, previous_id: Option<&str>, input: &str, body: &str) -> String {
    checksum(key, &[previous_id.unwrap_or_default(), input, body])
}

fn touch(tenant: &str, id: &str) -> Statement {
    Statement::new(TOUCH_CHAIN, [id.into(), tenant.into(), MAX_CHAIN.into(), USE_SECONDS.into()])
}

impl Store {
    /// Keeps a response, and gives its items to a conversation, or neither: durable when this returns. Whether the
    /// conversation is still there; where it is not, nothing is stored.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn put(
        &self,
        response: Option<&FinishedResponse<'_>>,
        append: Option<&Append<'_>>,
    ) -> Result<bool, StoreError> {
        let mut statements = Vec::new();
        statements.extend(append.into_iter().flat_map(conversations::append));
        if let Some(response) = response {
            let FinishedResponse { key, created_at, status, model, previous_id, input, body, .. } = *response;
            statements.push(Statement::new(
                INSERT,
                [
                    key.tenant.into(),
                    key.id.into(),
                    created_at.into(),
                    model.into(),
                    status.into(),
                    previous_id.into(),
                    input.into(),
                    body.into(),
                    response.checksum().into(),
                    response.bytes().into(),
                ],
            ));
            statements.extend(response.index());
            statements.extend(response.touch());
        }
        Ok(self.write(statements).await?.is_some())
    }

    /// Keeps work to be done by whichever process comes to it: durable when this returns.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn enqueue(&self, job: &NewJob<'_>) -> Result<Place, StoreError> {
        let FinishedResponse { key, created_at, status, model, previous_id, input, body, .. } = job.response;
        let insert = Statement::guard(
            INSERT_JOB,
            [
                key.tenant.into(),
                key.id.into(),
                created_at.into(),
                model.into(),
                status.into(),
                previous_id.into(),
                input.into(),
                body.into(),
                job.response.checksum().into(),
                (job.response.bytes() + job.request.len()).into(),
                job.request.into(),
                checksum(key, &[job.request]).into(),
                job.max_unfinished.into(),
            ],
        );
        let statements = [insert].into_iter().chain(job.response.touch()).collect();
        let place = if self.write(statements).await?.is_some() { Place::Stored } else { Place::Full };
        self.tell_changed(key.id);
        Ok(place)
    }

    /// None for one that is not there, or another's.
    ///
    /// # Errors
    /// When the database fails, or what it gives is not what was stored.
    pub async fn response(&self, key: Key<'_>) -> Result<Option<StoredResponse>, StoreError> {
        let found = self.read(Statement::new(SELECT, [key.tenant.into(), key.id.into()])).await?.pop();
        found.map(|row| Ok(self.stored_response(key, row)?.0)).transpose()
    }

    /// The response whose output has an item of that id.
    ///
    /// # Errors
    /// As for [`response`](Self::response).
    pub async fn response_with_item(&self, item: Key<'_>) -> Result<Option<StoredResponse>, StoreError> {
        let Key { tenant, id } = item;
        let found = self.read(Statement::new(SELECT_BY_ITEM, [tenant.into(), id.into()])).await?.pop();
        let Some(mut row) = found else { return Ok(None) };
        let id = row.text(0);
        Ok(Some(self.stored_response(Key { tenant, id: &id }, row)?.0))
    }

    /// A response and all that it goes on from, the first one first. None where any of them is not there, or another's.
    ///
    /// # Errors
    /// As for [`response`](Self::response).
    pub async fn chain(&self, key: Key<'_>) -> Result<Option<Vec<StoredResponse>>, StoreError> {
        let query = Statement::new(SELECT_CHAIN_BYTES, [key.id.into(), key.tenant.into(), MAX_CHAIN.into()]);
        let size = &self.read(query).await?[0];
        let is_too_long = MAX_CHAIN < u64::try_from(size.int(1)).unwrap_or(0);
        if is_too_long || MAX_HISTORY_BYTES < u64::try_from(size.int(0)).unwrap_or(0) {
            return Err(StoreError::TooLong);
        }
        let query = Statement::new(SELECT_CHAIN, [key.id.into(), key.tenant.into(), MAX_CHAIN.into()]);
        let mut chain = Vec::new();
        let mut next_id = Some(key.id.to_owned());
        for row in self.read(query).await? {
            // The database ends the walk where these do.
            let Some(id) = next_id else { return Err(self.corrupt(key.id)) };
            let (response, previous_id) = self.stored_response(Key { tenant: key.tenant, id: &id }, row)?;
            chain.push(response);
            next_id = previous_id;
        }
        chain.reverse();
        Ok(next_id.is_none().then_some(chain))
    }

    /// Whether there was one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_response(&self, key: Key<'_>) -> Result<bool, StoreError> {
        let deleted = self.write(delete(key)).await?.is_some();
        self.tell_changed(key.id);
        Ok(deleted)
    }

    /// What a row holds, and which response it goes on from. A damaged index may have led to the row of another response,
    /// so the checksum is that of the one which was looked for.
    fn stored_response(&self, key: Key<'_>, mut row: Row) -> Result<(StoredResponse, Option<String>), StoreError> {
        let stored = StoredResponse {
            id: key.id.to_owned(),
            status: row.text(1),
            is_background: row.int(2) != 0,
            input: row.text(3),
            body: row.text(4),
        };
        let previous_id = row.optional_text(6);
        if checksum_of(key, previous_id.as_deref(), &stored.input, &stored.body) == row.text(5) {
            Ok((stored, previous_id))
        } else {
            Err(self.corrupt(&stored.id))
        }
    }
}

pub(super) fn delete(key: Key<'_>) -> Vec<Statement> {
    let of = |sql| Statement::new(sql, [key.tenant.into(), key.id.into()]);
    vec![Statement::guard(DELETE, [key.tenant.into(), key.id.into()]), of(DELETE_ITEMS), of(DELETE_EVENTS)]
}
