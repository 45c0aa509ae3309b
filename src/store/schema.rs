//! The tables, as steps from one version to the next. A step never changes once it was released.

/// Each is run once, in order; a store is of the version that is the number of steps run on it.
pub(super) const MIGRATIONS: &[&str] = &[include_str!("schema/1.sql")];

/// PostgreSQL knows no `unixepoch()`; all processes that share a database go by its clock.
pub(super) const POSTGRES_CLOCK: &str = "CREATE OR REPLACE FUNCTION unixepoch() RETURNS BIGINT LANGUAGE SQL STABLE AS 'SELECT CAST(floor(extract(epoch FROM statement_timestamp())) AS BIGINT)'";

/// A step as SQLite has it: strict tables, whose integers are all of 64 bits.
pub(super) fn for_sqlite(migration: &str) -> String {
    migration.replace("BIGINT", "INTEGER").replace("\n);", "\n) STRICT;")
}
