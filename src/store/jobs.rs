//! Work in the background: whoever holds the lease of a response works on it, and what it says is kept event by event. A
//! process that dies loses its leases by and by, and another one begins its work anew.

use super::{
    Append, FinishedResponse, Key, POLL_INTERVAL, Store, StoreError,
    checksum::checksum,
    conversations, responses,
    statement::{Cell, Row, Statement},
};
use std::sync::Arc;
use tokio::{sync::broadcast, time::timeout};

/// Seconds that a lease holds. It is renewed with whatever is written, and well before it ends.
const LEASE_SECONDS: u64 = 15;
/// Events read at once.
const MAX_EVENTS: u64 = 256;

/// What this process has the right to work on until it is done, or until its lease is lost.
#[derive(Clone, Debug)]
pub struct Job {
    /// Of the response.
    pub tenant: String,
    /// Of the response.
    pub id: String,
    /// When it was asked for.
    pub created_at: u64,
    /// How often work on it has begun and was not given back, this time included.
    pub attempt: u64,
    /// What is asked, in JSON.
    pub request: String,
    /// Its own input: a JSON array of items.
    pub input: String,
    /// Of all the times that work on it has begun. Unlike the attempt it is no other's.
    run: u64,
    previous_id: Option<String>,
}

/// What a follower finds.
#[derive(Debug)]
pub struct Progress {
    /// Sequence numbers and JSON texts, in order.
    pub events: Vec<(u64, String)>,
    /// Whether no more will come.
    pub has_ended: bool,
    /// Changes when the work has begun anew, and with it the numbers.
    pub attempt: u64,
}

/// The oldest of the owner whose work the fewest are at, so that nobody's backlog holds up the others. Also where another
/// process took it over, which shows in the attempt.
const CLAIM: &str = "UPDATE responses SET owner = $1, lease_until = unixepoch() + $2, attempt = attempt + 1, run = run + 1, \
                     status = 'in_progress', event_bytes = 0 \
                     WHERE lease_until < unixepoch() AND (tenant, id) IN ( \
                       SELECT r.tenant, r.id FROM responses r LEFT JOIN ( \
                         SELECT tenant, count(*) AS active FROM responses WHERE lease_until >= unixepoch() GROUP BY tenant \
                       ) a ON a.tenant = r.tenant \
                       WHERE r.model = $3 AND r.lease_until < unixepoch() AND r.created_at <= unixepoch() - $4 \
                       ORDER BY coalesce(a.active, 0), r.created_at LIMIT 1 \
                     ) \
                     RETURNING tenant, id, created_at, attempt, request, input, run, previous_id, body, checksum, \
                     request_checksum";
const IS_WAITING: &str = "SELECT attempt FROM responses WHERE model = $1 AND lease_until < unixepoch() LIMIT 1";
const WAITING_MODELS: &str = "SELECT DISTINCT model FROM responses \
                              WHERE lease_until < unixepoch() AND created_at <= unixepoch() - $1";
const CLEAR_EVENTS: &str = "DELETE FROM events WHERE tenant = $1 AND response_id = $2 AND run < $3";
/// What was damaged while it waited cannot be worked on.
const FAIL: &str = "UPDATE responses SET status = 'failed', request = NULL, request_checksum = NULL, owner = NULL, \
                    lease_until = NULL \
                    WHERE tenant = $1 AND id = $2 AND owner = $3 AND run = $4 AND lease_until IS NOT NULL";
const RENEW: &str = "UPDATE responses SET lease_until = unixepoch() + $1, event_bytes = event_bytes + $2 \
                     WHERE tenant = $3 AND id = $4 AND owner = $5 AND run = $6 AND lease_until IS NOT NULL \
                     RETURNING id";
const INSERT_EVENT: &str = "INSERT INTO events (tenant, response_id, run, sequence_number, event) \
                            VALUES ($1, $2, $3, $4, $5)";
const FINISH: &str = "UPDATE responses SET status = $1, body = $2, checksum = $3, bytes = $4, \
                      event_bytes = event_bytes + $5, request = NULL, request_checksum = NULL, owner = NULL, \
                      lease_until = NULL \
                      WHERE tenant = $6 AND id = $7 AND owner = $8 AND run = $9 AND lease_until IS NOT NULL \
                      RETURNING id";
const RELEASE: &str = "UPDATE responses SET owner = NULL, lease_until = 0, attempt = attempt - 1 \
                       WHERE tenant = $1 AND id = $2 AND owner = $3 AND run = $4 AND lease_until IS NOT NULL";
const RECLAIM: &str = "UPDATE responses SET owner = NULL, lease_until = 0 WHERE lease_until IS NOT NULL";
const CANCEL: &str = "UPDATE responses SET status = 'cancelled', request = NULL, request_checksum = NULL, owner = NULL, \
                      lease_until = NULL \
                      WHERE tenant = $1 AND id = $2 AND lease_until IS NOT NULL RETURNING id";
/// In one look, so that no events are taken for those of another run, and what has ended has all of them.
const PROGRESS: &str = "SELECT r.lease_until, r.run, e.sequence_number, e.event FROM responses r \
                        LEFT JOIN events e ON e.tenant = r.tenant AND e.response_id = r.id AND e.run = r.run \
                        AND e.sequence_number > $3 \
                        WHERE r.tenant = $1 AND r.id = $2 ORDER BY e.sequence_number LIMIT $4";
const COUNT: &str = "SELECT count(*) FROM responses WHERE lease_until IS NOT NULL";

impl Job {
    /// The number of its first event: those of another run are other numbers, so that nobody takes the one for the other.
    pub fn first_number(&self) -> u64 {
        self.run.saturating_sub(1) << 32
    }

    fn key(&self) -> Key<'_> {
        Key { tenant: &self.tenant, id: &self.id }
    }

    /// Of its response with this body.
    fn checksum(&self, body: &str) -> String {
        responses::checksum_of(self.key(), self.previous_id.as_deref(), &self.input, body)
    }
}

impl Store {
    /// Work for this model that no process is at: the oldest of the owner who has the least under way.
    ///
    /// # Errors
    /// When the database fails, or what it gives is not what was stored: that work has failed then.
    pub async fn claim(&self, model: &str) -> Result<Option<Job>, StoreError> {
        // Writers need not stand aside for nothing.
        if self.read(Statement::new(IS_WAITING, [model.into()])).await?.is_empty() {
            return Ok(None);
        }
        self.claim_older(model, 0).await
    }

    /// Work that has waited for so many seconds, for a model that is none of these: no process serves it, or has the time
    /// for it.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    pub async fn claim_abandoned(&self, served: &[&str], seconds: u64) -> Result<Option<Job>, StoreError> {
        let rows = self.read(Statement::new(WAITING_MODELS, [seconds.into()])).await?;
        let waiting = rows.into_iter().map(|mut row| row.text(0));
        for model in waiting.filter(|model| !served.contains(&model.as_str())) {
            if let Some(job) = self.claim_older(&model, seconds).await? {
                return Ok(Some(job));
            }
        }
        Ok(None)
    }

    async fn claim_older(&self, model: &str, seconds: u64) -> Result<Option<Job>, StoreError> {
        let owner = self.shared.owner.as_str();
        let claim = Statement::guard(CLAIM, [owner.into(), LEASE_SECONDS.into(), model.into(), seconds.into()]);
        let Some(mut row) = self.write(vec![claim]).await?.and_then(|mut rows| rows.remove(0).pop()) else {
            return Ok(None);
        };
        let job = Job {
            tenant: row.text(0),
            id: row.text(1),
            created_at: count(row.int(2)),
            attempt: count(row.int(3)),
            request: row.text(4),
            input: row.text(5),
            run: count(row.int(6)),
            previous_id: row.optional_text(7),
        };
        let key = job.key();
        let is_whole = job.checksum(&row.text(8)) == row.text(9) && checksum(key, &[&job.request]) == row.text(10);
        if !is_whole {
            let fail = [key.tenant.into(), key.id.into(), owner.into(), job.run.into()];
            self.write_all(vec![Statement::new(FAIL, fail)]).await?;
            self.tell_changed(key.id);
            return Err(self.corrupt(key.id));
        }
        if 1 < job.run {
            let clear = [key.tenant.into(), key.id.into(), job.run.into()];
            self.write_all(vec![Statement::new(CLEAR_EVENTS, clear)]).await?;
        }
        Ok(Some(job))
    }

    /// Keeps what was said, and the lease. False where the lease is lost: the work was cancelled or deleted, or is another
    /// process's by now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record(&self, job: &Job, events: &[(u64, String)]) -> Result<bool, StoreError> {
        let Key { tenant, id } = job.key();
        let owner = self.shared.owner.as_str();
        let renew = Statement::guard(
            RENEW,
            [LEASE_SECONDS.into(), num_bytes(events).into(), tenant.into(), id.into(), owner.into(), job.run.into()],
        );
        let statements = [renew].into_iter().chain(insert_events(job, events)).collect();
        let is_ours = self.write(statements).await?.is_some();
        self.tell_changed(id);
        Ok(is_ours)
    }

    /// Keeps the end: the last events, the response object, and what a conversation gets of it. False where the lease is
    /// lost, or the conversation.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish(
        &self,
        job: &Job,
        response: &FinishedResponse<'_>,
        events: &[(u64, String)],
        append: Option<&Append<'_>>,
    ) -> Result<bool, StoreError> {
        let key = job.key();
        let finish = Statement::guard(
            FINISH,
            [
                response.status.into(),
                response.body.into(),
                job.checksum(response.body).into(),
                (job.input.len() + response.body.len()).into(),
                num_bytes(events).into(),
                key.tenant.into(),
                key.id.into(),
                self.shared.owner.as_str().into(),
                job.run.into(),
            ],
        );
        let mut statements = vec![finish];
        statements.extend(insert_events(job, events));
        statements.extend(response.index());
        statements.extend(append.into_iter().flat_map(conversations::append));
        let is_ours = self.write(statements).await?.is_some();
        self.tell_changed(key.id);
        Ok(is_ours)
    }

    /// Gives work back, as if it had not been begun.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release(&self, job: &Job) -> Result<(), StoreError> {
        let Key { tenant, id } = job.key();
        let owner = self.shared.owner.as_str();
        let release = Statement::new(RELEASE, [tenant.into(), id.into(), owner.into(), job.run.into()]);
        self.write_all(vec![release]).await.map(drop)
    }

    /// Whether there was unfinished work to be cancelled. Whoever is at it stops with what it writes next.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cancel(&self, key: Key<'_>) -> Result<bool, StoreError> {
        let cancel = Statement::guard(CANCEL, [key.tenant.into(), key.id.into()]);
        let cancelled = self.write(vec![cancel]).await?.is_some();
        self.tell_changed(key.id);
        Ok(cancelled)
    }

    /// What was said after an event; all of it where none is named. None for a response that is not there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn progress(&self, key: Key<'_>, after: Option<u64>) -> Result<Option<Progress>, StoreError> {
        let after = after.map_or(-1, |after| i64::try_from(after).unwrap_or(i64::MAX));
        let query = Statement::new(PROGRESS, [key.tenant.into(), key.id.into(), after.into(), MAX_EVENTS.into()]);
        let rows = self.read(query).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let (has_ended, attempt) = (first.0[0] == Cell::Null, count(first.int(1)));
        // Where there are no events, the response stands alone.
        let event = |mut row: Row| Some((count(row.int(2)), row.optional_text(3)?));
        let events: Vec<_> = rows.into_iter().filter_map(event).collect();
        let has_more = events.len() as u64 == MAX_EVENTS;
        Ok(Some(Progress { events, has_ended: has_ended && !has_more, attempt }))
    }

    /// Work of all owners that has not ended.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn num_unfinished(&self) -> Result<u64, StoreError> {
        let rows = self.read(Statement::new(COUNT, [])).await?;
        Ok(count(rows[0].int(0)))
    }

    /// To be told of what this process changes. Made before the state is looked at, it misses nothing.
    pub fn changes(&self) -> Changes {
        Changes { received: self.shared.changes.subscribe() }
    }

    pub(super) fn tell_changed(&self, id: &str) {
        // Nobody may be listening.
        let _ = self.shared.changes.send(Arc::from(id));
    }
}

/// What this process has changed since.
#[derive(Debug)]
pub struct Changes {
    received: broadcast::Receiver<Arc<str>>,
}

impl Changes {
    /// Until this process changes the response, or another one may have.
    pub async fn of(&mut self, id: &str) {
        let changed = async {
            // An error means that some were missed, perhaps this one.
            while let Ok(changed) = self.received.recv().await {
                if &*changed == id {
                    break;
                }
            }
        };
        let _elapsed = timeout(POLL_INTERVAL, changed).await;
    }

    /// Until this process changes any response, or another one may have.
    pub async fn any(&mut self) {
        let _ = timeout(POLL_INTERVAL, self.received.recv()).await;
        // What has come together is one change.
        while self.received.try_recv().is_ok() {}
    }
}

/// Whatever is unfinished was left by a process that is no more.
pub(super) fn reclaim() -> Statement {
    Statement::new(RECLAIM, [])
}

/// Counts are never negative.
fn count(int: i64) -> u64 {
    u64::try_from(int).unwrap_or(0)
}

fn num_bytes(events: &[(u64, String)]) -> usize {
    events.iter().map(|(_, event)| event.len()).sum()
}

fn insert_events(job: &Job, events: &[(u64, String)]) -> impl Iterator<Item = Statement> {
    let Key { tenant, id } = job.key();
    events.iter().map(move |(number, event)| {
        let event = [tenant.into(), id.into(), job.run.into(), (*number).into(), event.as_str().into()];
        Statement::new(INSERT_EVENT, event)
    })
}
