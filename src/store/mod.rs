//! What outlives a request: responses, conversations and background work, durable, each reachable by its owner alone.
//!
//! Knows nothing of what it keeps: objects and items are JSON texts of the layer above. One text of SQL for each statement
//! serves the embedded database and PostgreSQL (`statement.rs`), so what a statement means is said once.

mod checksum;
mod config;
mod conversations;
mod error;
mod jobs;
mod postgres;
mod responses;
mod retention;
mod schema;
mod sqlite;
mod statement;

pub use config::StoreConfig;
pub use conversations::{StoredConversation, StoredItem};
pub use error::StoreError;
pub use jobs::{Changes, Job, Progress};
pub use responses::{Append, FinishedResponse, NewJob, Place, StoredResponse};

use postgres::Postgres;
use sqlite::Sqlite;
use statement::{Outcome, Row, Statement};
use std::{
    ffi::OsString,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::broadcast, time::timeout};
use uuid::Uuid;

/// Changes that a follower may be behind before it has to look by itself.
const MAX_UNSEEN_CHANGES: usize = 256;
/// For one statement or transaction, the time in which it waits for others included. A database that is stuck must not hold
/// up a reply.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often followers and workers look at what other processes may have changed.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What a row is found by. Another owner's is not found.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The owner.
    pub tenant: &'a str,
    /// Unique among the owner's.
    pub id: &'a str,
}

/// The way to everything stored. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    shared: Arc<Shared>,
}

#[derive(Clone, Debug)]
enum Database {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

#[derive(Debug)]
struct Shared {
    /// Who this process is to the others.
    owner: String,
    /// `id`s of responses that this process has changed.
    changes: broadcast::Sender<Arc<str>>,
    /// Whether anything has failed since the last write that did not, so that one has to be tried before more is promised.
    has_failed: AtomicBool,
    counters: Counters,
    min_free_bytes: u64,
    max_age: u64,
    max_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    commit_nanos: AtomicU64,
    errors: AtomicU64,
    corrupt_rows: AtomicU64,
}

/// What a store has done since the process began, and the room that it has.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreStats {
    /// Transactions that are durable.
    pub commits: u64,
    /// Time that their writers waited, all together.
    pub commit_time: Duration,
    /// Reads and writes that failed.
    pub errors: u64,
    /// Rows that were not what had been written.
    pub corrupt_rows: u64,
    /// Free bytes beside the embedded database.
    pub free_bytes: Option<u64>,
}

impl Store {
    /// None where the configuration wants none. `variable` looks up an environment variable.
    ///
    /// # Errors
    /// When the database cannot be opened, reached or understood.
    pub async fn open(
        config: &StoreConfig,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, StoreError> {
        if !config.enabled {
            return Ok(None);
        }
        let database = if config.url.is_empty() {
            Database::Sqlite(Sqlite::open(config.folder(variable)?, &jobs::reclaim())?)
        } else {
            Database::Postgres(Postgres::open(&config.url).await?)
        };
        let shared = Shared {
            owner: Uuid::new_v4().simple().to_string(),
            changes: broadcast::Sender::new(MAX_UNSEEN_CHANGES),
            has_failed: AtomicBool::new(false),
            counters: Counters::default(),
            min_free_bytes: config.min_free_bytes,
            max_age: config.max_age,
            max_bytes: config.max_bytes,
        };
        Ok(Some(Self { database, shared: Arc::new(shared) }))
    }

    /// Whether something can be stored, as far as is known without trying.
    pub fn has_room(&self) -> bool {
        let is_full = self.free_bytes().is_some_and(|free| free < self.shared.min_free_bytes);
        !is_full && !self.shared.has_failed.load(Ordering::Relaxed)
    }

    /// Whether something can be stored, asked before work is done whose result is to be stored.
    ///
    /// # Errors
    /// `Unavailable`
    pub async fn check_room(&self) -> Result<(), StoreError> {
        if self.free_bytes().is_some_and(|free| free < self.shared.min_free_bytes) {
            return Err(StoreError::Unavailable);
        }
        if self.shared.has_failed.load(Ordering::Relaxed) {
            // Whether it would fail again is found out by trying.
            self.probe().await.map_err(|_| StoreError::Unavailable)?;
        }
        Ok(())
    }

    /// What it has done.
    pub fn stats(&self) -> StoreStats {
        let Counters { commits, commit_nanos, errors, corrupt_rows } = &self.shared.counters;
        StoreStats {
            commits: commits.load(Ordering::Relaxed),
            commit_time: Duration::from_nanos(commit_nanos.load(Ordering::Relaxed)),
            errors: errors.load(Ordering::Relaxed),
            corrupt_rows: corrupt_rows.load(Ordering::Relaxed),
            free_bytes: self.free_bytes(),
        }
    }

    /// The value of that name, which is `value` from now on if there was none: the same in all processes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn secret(&self, name: &str, value: &str) -> Result<String, StoreError> {
        const INSERT: &str = "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        const SELECT: &str = "SELECT value FROM secrets WHERE name = $1";
        let insert = Statement::new(INSERT, [name.into(), value.into()]);
        let mut rows = self.write_all(vec![insert, Statement::new(SELECT, [name.into()])]).await?;
        Ok(rows[1][0].text(0))
    }

    fn free_bytes(&self) -> Option<u64> {
        match &self.database {
            Database::Sqlite(sqlite) => sqlite.free_bytes(),
            Database::Postgres(_) => None,
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        const TOUCH: &str = "INSERT INTO secrets (name, value) VALUES ('probe', $1) \
                             ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.write(vec![Statement::new(TOUCH, [self.shared.owner.as_str().into()])]).await.map(drop)
    }

    /// One transaction; durable when this returns rows.
    async fn write(&self, statements: Vec<Statement>) -> Result<Outcome, StoreError> {
        let began = std::time::Instant::now();
        let write = async {
            match &self.database {
                Database::Sqlite(sqlite) => sqlite.write(statements).await,
                Database::Postgres(postgres) => postgres.write(statements).await,
            }
        };
        let outcome = timeout(TIMEOUT, write).await.unwrap_or(Err(StoreError::TimedOut));
        match &outcome {
            Ok(Some(_)) => self.shared.has_failed.store(false, Ordering::Relaxed),
            // Nothing was written, so nothing is known.
            Ok(None) => {}
            Err(_) => self.shared.has_failed.store(true, Ordering::Relaxed),
        }
        let Counters { commits, commit_nanos, errors, .. } = &self.shared.counters;
        match &outcome {
            Ok(_) => {
                commits.fetch_add(1, Ordering::Relaxed);
                let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                commit_nanos.fetch_add(nanos, Ordering::Relaxed);
            }
            Err(error) => {
                errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(error = error as &dyn std::error::Error, "nothing could be written to the store");
            }
        }
        outcome
    }

    /// A transaction without guards.
    async fn write_all(&self, statements: Vec<Statement>) -> Result<Vec<Vec<Row>>, StoreError> {
        Ok(self.write(statements).await?.expect("no statement is a guard"))
    }

    async fn read(&self, query: Statement) -> Result<Vec<Row>, StoreError> {
        let read = async {
            match &self.database {
                Database::Sqlite(sqlite) => sqlite.read(query).await,
                Database::Postgres(postgres) => postgres.read(query).await,
            }
        };
        let rows = timeout(TIMEOUT, read).await.unwrap_or(Err(StoreError::TimedOut));
        rows.inspect_err(|error| {
            self.shared.has_failed.store(true, Ordering::Relaxed);
            self.shared.counters.errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!(error = error as &dyn std::error::Error, "the store could not be read");
        })
    }

    fn corrupt(&self, id: &str) -> StoreError {
        self.shared.counters.corrupt_rows.fetch_add(1, Ordering::Relaxed);
        tracing::error!(id, "a stored row is damaged");
        StoreError::Corrupt { id: id.to_owned() }
    }
}
