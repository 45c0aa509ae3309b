//! The embedded database: one thread writes, and commits what has come in the meantime together; a few connections read.

use super::{
    StoreError,
    schema::{MIGRATIONS, for_sqlite},
    statement::{Cell, Outcome, Row, Statement},
};
use rusqlite::{
    Connection, OpenFlags, ToSql, TransactionBehavior,
    types::{ToSqlOutput, Value, ValueRef},
};
use rustix::fs::{FlockOperation, flock, statvfs};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

const FILE_NAME: &str = "ortolan.db";
/// Held, shared, by every process that uses the database.
const LOCK_NAME: &str = "ortolan.lock";
/// Transactions that may wait for the writer; more wait for room.
const MAX_WAITING_WRITES: usize = 256;
/// Transactions that one commit makes durable.
const MAX_GROUP: usize = 64;
const READERS: usize = 4;
/// Another process may be writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const STATEMENT_CACHE: usize = 64;
/// Pages given back to the file system at once.
const VACUUM_PAGES: u32 = 4096;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Sqlite {
    writes: mpsc::Sender<Write>,
    readers: Arc<Readers>,
    folder: Arc<Path>,
    /// Held until the process ends.
    _lock: Arc<File>,
}

#[derive(Debug)]
enum Write {
    Transaction { statements: Vec<Statement>, reply: oneshot::Sender<Result<Outcome, StoreError>> },
    Vacuum,
}

#[derive(Debug)]
struct Readers {
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Sqlite {
    /// Makes folder, file and tables where they are missing. What is stored is the user's alone. `when_alone` is done before
    /// anything else where no other process uses the database.
    ///
    /// # Errors
    /// `Folder`, `Open` or `Newer`.
    pub(super) fn open(folder: PathBuf, when_alone: &Statement) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Folder { path: folder.clone(), source };
        let (lock, is_alone) = take_lock(&folder).map_err(unusable)?;
        let path = folder.join(FILE_NAME);
        let failed = |source| StoreError::Open { path: path.clone(), source };
        // SQLite itself would make it readable for everybody.
        private().write(true).open(&path).map_err(unusable)?;
        let mut writer = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        prepare(&writer).map_err(failed)?;
        migrate(&mut writer).map_err(failed)??;
        if is_alone {
            run(&writer, when_alone)?;
            flock(&lock, FlockOperation::LockShared).map_err(|error| unusable(error.into()))?;
        }
        let reader = |_| connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed);
        let idle = (0..READERS).map(reader).collect::<Result<_, _>>()?;
        let (writes, waiting) = mpsc::channel(MAX_WAITING_WRITES);
        let spawned = thread::Builder::new().name("store".to_owned()).spawn(move || write_all(writer, waiting));
        spawned.map_err(unusable)?;
        let readers = Arc::new(Readers { permits: Arc::new(Semaphore::new(READERS)), idle: Mutex::new(idle) });
        Ok(Self { writes, readers, folder: folder.into(), _lock: Arc::new(lock) })
    }

    /// Free bytes of the file system, for users without privileges.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let file_system = statvfs(&*self.folder).ok()?;
        Some(file_system.f_bavail.saturating_mul(file_system.f_frsize))
    }

    /// Gives pages that nothing is on back to the file system.
    pub(super) async fn vacuum(&self) {
        let _stopped = self.writes.send(Write::Vacuum).await;
    }

    pub(super) async fn write(&self, statements: Vec<Statement>) -> Result<Outcome, StoreError> {
        let (reply, outcome) = oneshot::channel();
        let write = Write::Transaction { statements, reply };
        self.writes.send(write).await.map_err(|_| StoreError::Stopped)?;
        outcome.await.map_err(|_| StoreError::Stopped)?
    }

    pub(super) async fn read(&self, query: Statement) -> Result<Vec<Row>, StoreError> {
        let permit = Arc::clone(&self.readers.permits).acquire_owned().await.expect("the semaphore is never closed");
        let readers = Arc::clone(&self.readers);
        let read = move || {
            let connection = readers.lock().pop().expect("there is one for each permit");
            let rows = run(&connection, &query);
            readers.lock().push(connection);
            // Not before: a query goes on where nobody waits for it any more.
            drop(permit);
            rows
        };
        Ok(tokio::task::spawn_blocking(read).await.map_err(|_| StoreError::Stopped)??)
    }
}

impl Readers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().expect("nothing panics while it holds the lock")
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).mode(0o600);
    options
}

/// The lock: whole, where nobody else has it, else shared as soon as whoever has it whole shares it. So one process at a time
/// makes a database, and none meets one that is half made.
fn take_lock(folder: &Path) -> std::io::Result<(File, bool)> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let lock = private().write(true).open(folder.join(LOCK_NAME))?;
    let is_alone = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
    if !is_alone {
        flock(&lock, FlockOperation::LockShared)?;
    }
    Ok((lock, is_alone))
}

fn connect(path: &Path, mode: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    Ok(connection)
}

/// No memory map: a stray write of anything in the process could reach the file through one.
fn prepare(writer: &Connection) -> rusqlite::Result<()> {
    writer.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA mmap_size = 0;
         PRAGMA wal_autocheckpoint = 1000;
         PRAGMA journal_size_limit = 67108864;",
    )
}

/// The inner error is for a database that is whole, but newer.
fn migrate(writer: &mut Connection) -> rusqlite::Result<Result<(), StoreError>> {
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).expect("there are few");
    let missing = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..));
    let Some(missing) = missing else { return Ok(Err(StoreError::Newer { found, known })) };
    for migration in missing {
        transaction.execute_batch(&for_sqlite(migration))?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit().map(Ok)
}

/// Until nobody is left who could send. Whoever waits hears of success only after the commit.
fn write_all(mut writer: Connection, mut waiting: mpsc::Receiver<Write>) {
    let mut group = Vec::with_capacity(MAX_GROUP);
    while waiting.blocking_recv_many(&mut group, MAX_GROUP) != 0 {
        let mut transactions = Vec::with_capacity(group.len());
        for write in group.drain(..) {
            match write {
                // Nobody waits for it any more, and whoever does not hear of it may do it again.
                Write::Transaction { reply, .. } if reply.is_closed() => {}
                Write::Transaction { statements, reply } => transactions.push((statements, reply)),
                Write::Vacuum => vacuum(&writer),
            }
        }
        // One that fails takes the others of its group with it, so each of them gets a second try alone.
        match commit(&mut writer, transactions.iter().map(|(statements, _)| &**statements)) {
            Ok(outcomes) => {
                for ((_, reply), outcome) in transactions.into_iter().zip(outcomes) {
                    let _nobody_waits = reply.send(Ok(outcome));
                }
            }
            Err(_) => {
                for (statements, reply) in transactions {
                    let alone = commit(&mut writer, std::iter::once(&*statements));
                    let _nobody_waits = reply.send(alone.map(|mut outcomes| outcomes.remove(0)).map_err(Into::into));
                }
            }
        }
    }
}

fn commit<'s>(
    writer: &mut Connection,
    transactions: impl Iterator<Item = &'s [Statement]>,
) -> rusqlite::Result<Vec<Outcome>> {
    let mut group = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut outcomes = Vec::new();
    for statements in transactions {
        let savepoint = group.savepoint()?;
        let outcome = run_all(&savepoint, statements)?;
        if outcome.is_some() {
            savepoint.commit()?;
        } else {
            savepoint.finish()?;
        }
        outcomes.push(outcome);
    }
    group.commit()?;
    Ok(outcomes)
}

fn run_all(connection: &Connection, statements: &[Statement]) -> rusqlite::Result<Outcome> {
    let mut outcome = Vec::with_capacity(statements.len());
    for statement in statements {
        let rows = run(connection, statement)?;
        if statement.is_guard && rows.is_empty() {
            return Ok(None);
        }
        outcome.push(rows);
    }
    Ok(Some(outcome))
}

fn run(connection: &Connection, statement: &Statement) -> rusqlite::Result<Vec<Row>> {
    let mut prepared = connection.prepare_cached(statement.sql)?;
    for (index, cell) in statement.parameters.iter().enumerate() {
        // SQLite numbers `$1`, `$2` … by where they first stand.
        let name = format!("${}", index + 1);
        let index = prepared.parameter_index(&name)?.unwrap_or_else(|| panic!("{} has no {name}", statement.sql));
        prepared.raw_bind_parameter(index, cell)?;
    }
    let num_columns = prepared.column_count();
    let mut rows = Vec::new();
    let mut found = prepared.raw_query();
    while let Some(row) = found.next()? {
        let cells = (0..num_columns).map(|index| Ok(cell(row.get_ref(index)?)));
        rows.push(Row(cells.collect::<rusqlite::Result<_>>()?));
    }
    Ok(rows)
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        // Strict tables have neither numbers with a point nor bytes, but damaged files may.
        ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => Cell::Null,
        ValueRef::Integer(int) => Cell::Int(int),
        // What is no longer UTF-8 has the wrong checksum in any case.
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
    }
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Owned(Value::Null),
            Self::Int(int) => ToSqlOutput::Owned(Value::Integer(*int)),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }
}

/// Nothing depends on it, so a failure is only told.
fn vacuum(writer: &Connection) {
    if let Err(error) = give_back_pages(writer) {
        tracing::warn!(%error, "the store could not be made smaller");
    }
}

fn give_back_pages(writer: &Connection) -> rusqlite::Result<()> {
    let mut pragma = writer.prepare_cached(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut pages = pragma.raw_query();
    // Each step gives back one.
    while pages.next()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that the file does not keep; the others are tested from without.
    #[test]
    fn the_writer_waits_for_the_disk_and_maps_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let writer = Connection::open(folder.path().join(FILE_NAME)).unwrap();
        prepare(&writer).unwrap();
        let setting = |name: &str| writer.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        let full = 2;
        assert_eq!(setting("synchronous"), full);
        assert_eq!(setting("mmap_size"), 0);
        assert_eq!(setting("wal_autocheckpoint"), 1000);
        assert_eq!(setting("journal_size_limit"), 64 << 20);
    }
}
