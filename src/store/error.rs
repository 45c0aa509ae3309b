//! Why something cannot be stored or found.

use std::{io, path::PathBuf};

/// At start, and when something is to be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no place for it.
    #[error("there is no place for stored responses: set `store.path` to a folder, or `store.enabled` to false")]
    NoPath,
    /// The folder cannot be used.
    #[error("the folder `{}` of the store cannot be used; set `store.path` to another one", path.display())]
    Folder {
        /// Of the embedded database.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The file is no database, or a damaged one.
    #[error("the store `{}` cannot be opened; restore it from a backup or move it away", path.display())]
    Open {
        /// The database's file.
        path: PathBuf,
        /// SQLite's words.
        source: rusqlite::Error,
    },
    /// `store.url` is not the address of a database.
    #[error("`store.url` cannot be used: {message}")]
    Url {
        /// What is wrong. The address is not repeated, since it may hold a password.
        message: String,
    },
    /// A later version of ortolan has been here.
    #[error("the store was made by a later version of ortolan (its schema is {found}, this version knows {known})")]
    Newer {
        /// The store's.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The client should try again later, or do without.
    #[error("nothing can be stored at the moment; try again later, or send `store: false`")]
    Unavailable,
    /// The client should begin anew, with a summary of what was said.
    #[error("the conversation has become too long to go on from; compact it, and send what remains as `input`")]
    TooLong,
    /// A stored row is not what was written.
    #[error("what was stored as `{id}` is damaged and cannot be read")]
    Corrupt {
        /// Of the response, the conversation or the item.
        id: String,
    },
    /// SQLite refused a statement.
    #[error("the store failed; try again later, or send `store: false`")]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL refused a statement.
    #[error("the store failed; try again later, or send `store: false`")]
    Postgres(#[from] tokio_postgres::Error),
    /// No connection to PostgreSQL could be had.
    #[error("the store cannot be reached; try again later, or send `store: false`")]
    Unreachable(#[source] deadpool_postgres::PoolError),
    /// It took too long.
    #[error("the store did not answer in time; try again later, or send `store: false`")]
    TimedOut,
    /// The thread that writes has ended.
    #[error("the store has stopped")]
    Stopped,
}
