//! The store: whatever it promises, it keeps on SQLite and on PostgreSQL.

mod conversations;
mod damage;
mod database;
mod jobs;
mod opening;
mod random;
mod responses;
mod retention;
mod sqlite;
