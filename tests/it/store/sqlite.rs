//! The embedded database by itself: its settings, its files, how it writes, and what it does on a full disk.

use super::database::{Database, finished, key, put, raw};
use futures::future::join_all;
use ortolan::store::{FinishedResponse, StoreError};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

#[tokio::test]
async fn settings_that_the_file_keeps_are_set() {
    let database = Database::sqlite();
    let _store = database.open().await;
    let connection = raw(&database.folder().unwrap());
    let setting = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
    assert_eq!(setting("journal_mode").unwrap(), "wal".to_owned().into());
    // 2 is "incremental".
    assert_eq!(setting("auto_vacuum").unwrap(), 2.into());
    assert_eq!(setting("user_version").unwrap(), 1.into());
    let strict =
        "SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite%' AND NOT strict";
    assert_eq!(connection.query_row(strict, (), |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test]
async fn files_are_the_users_alone() {
    let database = Database::sqlite();
    let store = database.open().await;
    put(&store, finished("ann", "r")).await;
    let folder = database.folder().unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ortolan.db", "ortolan.db-shm", "ortolan.db-wal", "ortolan.lock"]);
    for name in names {
        assert_eq!(mode(&folder.join(&name)), 0o600, "{}", name.display());
    }
}

/// Commits since the log of a database was begun: the log's frames that end one, from its own format (big endian; 32 bytes
/// before the first frame, 24 before the page of each).
fn num_commits(folder: &Path) -> usize {
    let log = fs::read(folder.join("ortolan.db-wal")).unwrap();
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let page_size = word(8) as usize;
    let frames = (32..log.len()).step_by(24 + page_size);
    // Frames of an earlier log have another salt.
    frames.filter(|&at| log[at + 8..at + 16] == log[16..24] && word(at + 4) != 0).count()
}

/// Ends with all transactions of `writes` in the queue and the writer waiting for another process to end its own.
async fn at_once<T>(folder: &Path, writes: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let other = raw(folder);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut all = Box::pin(join_all(writes));
    assert!(futures::poll!(&mut all).is_pending());
    other.execute_batch("COMMIT").unwrap();
    all.await
}

#[tokio::test]
async fn what_is_written_at_once_is_committed_together() {
    let database = Database::sqlite();
    let store = database.open().await;
    let folder = database.folder().unwrap();
    let before = num_commits(&folder);
    let ids = Vec::from_iter((0..100).map(|index| index.to_string()));
    at_once(&folder, ids.iter().map(|id| put(&store, finished("ann", id)))).await;
    assert_eq!(database.number("SELECT count(*) FROM responses").await, 100);
    // The first group is what had come when the writer looked, and 64 are the most.
    let commits = num_commits(&folder) - before;
    assert!((2..=3).contains(&commits), "{commits}");
    // One after the other, each has its own.
    for index in 100..110 {
        put(&store, finished("ann", &index.to_string())).await;
    }
    assert_eq!(num_commits(&folder) - before - commits, 10);
}

#[tokio::test]
async fn a_transaction_that_fails_fails_alone() {
    let database = Database::sqlite();
    let store = database.open().await;
    put(&store, finished("ann", "7")).await;
    let ids = Vec::from_iter((0..40).map(|index| index.to_string()));
    let writes = ids.iter().map(|id| {
        let store = &store;
        async move { store.put(Some(&finished("ann", id)), None).await }
    });
    let outcomes = at_once(&database.folder().unwrap(), writes).await;
    for (id, outcome) in ids.iter().zip(outcomes) {
        assert_eq!(outcome.is_ok(), id != "7", "{outcome:?}");
        assert!(store.response(key("ann", id)).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn another_process_that_writes_is_waited_for() {
    let database = Database::sqlite();
    let stores = [database.open().await, database.open().await];
    let ids = Vec::from_iter((0..100).map(|index| index.to_string()));
    join_all(ids.iter().enumerate().map(|(index, id)| put(&stores[index % 2], finished("ann", id)))).await;
    assert_eq!(database.number("SELECT count(*) FROM responses").await, 100);
}

/// A file system of its own, as long as it lives.
struct SmallDisk<'f>(&'f Path);

impl<'f> SmallDisk<'f> {
    fn mount(folder: &'f Path, size: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o"]).arg(format!("size={size},mode=700")).arg("ortolan-test").arg(folder);
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _left_behind = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    const RESERVE: u64 = 1 << 20;
    let database = Database::sqlite();
    let folder = database.folder().unwrap();
    fs::create_dir(&folder).unwrap();
    let Some(_disk) = SmallDisk::mount(&folder, "16m") else {
        eprintln!("the test of a full disk is skipped: this user may not mount a file system");
        return;
    };
    let store = database.open_with(|config| config.min_free_bytes = RESERVE).await.unwrap();
    let body = "x".repeat(64 << 10);
    let write =
        async |id: String| store.put(Some(&FinishedResponse { body: &body, ..finished("ann", &id) }), None).await;
    for round in 0..3 {
        store.check_room().await.unwrap();
        write(format!("before {round}")).await.unwrap();
        let ballast = folder.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        assert!(store.stats().free_bytes.unwrap() < RESERVE);
        assert!(matches!(store.check_room().await, Err(StoreError::Unavailable)));
        // There may be room in the log that is already there.
        let mut stored = Vec::new();
        let failure = loop {
            assert!(stored.len() < 500, "the disk is not full");
            let id = format!("during {round} {}", stored.len());
            match write(id.clone()).await {
                Ok(_) => stored.push(id),
                Err(failure) => break failure,
            }
        };
        assert!(matches!(failure, StoreError::Sqlite(_)), "{failure:?}");
        assert!(matches!(store.check_room().await, Err(StoreError::Unavailable)));
        // What is there can be read all the while.
        assert_eq!(store.response(key("ann", &format!("before {round}"))).await.unwrap().unwrap().body, body);

        fs::remove_file(&ballast).unwrap();
        drop(file);
        store.check_room().await.unwrap();
        write(format!("after {round}")).await.unwrap();
        for id in [format!("before {round}"), format!("after {round}")].iter().chain(&stored) {
            assert_eq!(store.response(key("ann", id)).await.unwrap().unwrap().body, body);
            store.delete_response(key("ann", id)).await.unwrap();
        }
        let failed = format!("during {round} {}", stored.len());
        assert!(store.response(key("ann", &failed)).await.unwrap().is_none());
    }
    assert_eq!(store.stats().errors, 3);
}

#[tokio::test]
async fn after_a_failure_room_is_promised_only_when_a_write_succeeds() {
    let database = Database::sqlite();
    let store = database.open().await;
    put(&store, finished("ann", "r")).await;
    store.check_room().await.unwrap();
    // Every write fails from here on, as on a disk that can no longer be written.
    for table in ["responses", "secrets"] {
        for event in ["INSERT", "UPDATE"] {
            let refuse = format!("CREATE TRIGGER {table}_{event} BEFORE {event} ON {table}");
            database.execute(&format!("{refuse} BEGIN SELECT raise(ABORT, 'broken'); END")).await;
        }
    }
    store.check_room().await.unwrap();
    assert!(store.put(Some(&finished("ann", "s")), None).await.is_err());
    assert!(matches!(store.check_room().await, Err(StoreError::Unavailable)));
    for name in ["responses_INSERT", "responses_UPDATE", "secrets_INSERT", "secrets_UPDATE"] {
        database.execute(&format!("DROP TRIGGER {name}")).await;
    }
    store.check_room().await.unwrap();
    put(&store, finished("ann", "s")).await;
}
