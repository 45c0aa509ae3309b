//! Stores that are opened: by the first process and by others, by a version that is too old, and where something else lies.

use super::database::{Database, finished, key, on_each_database, put};
use futures::future::join_all;
use ortolan::store::{NewJob, Store, StoreConfig, StoreError};
use std::{error::Error, fs, path::PathBuf};

#[tokio::test]
async fn several_may_be_opened_at_once() {
    for _ in 0..5 {
        on_each_database(async |database: &Database| {
            let opened = join_all((0..4).map(|_| database.open())).await;
            put(&opened[0], finished("ann", "r")).await;
            for store in &opened {
                assert!(store.response(key("ann", "r")).await.unwrap().is_some());
            }
        })
        .await;
    }
}

/// Each on a thread of its own, as processes would.
#[test]
fn several_may_make_the_tables_at_once() {
    for _ in 0..50 {
        let database = Database::sqlite();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| futures::executor::block_on(database.open()));
            }
        });
    }
}

#[tokio::test]
async fn a_store_that_is_switched_off_is_none() {
    let database = Database::sqlite();
    let config = StoreConfig {
        enabled: false,
        path: database.folder().unwrap(),
        url: String::new(),
        max_age: 0,
        max_bytes: 0,
        min_free_bytes: 0,
    };
    assert!(Store::open(&config, |_| None).await.unwrap().is_none());
    assert!(!database.folder().unwrap().exists());
}

#[tokio::test]
async fn processes_agree_on_secrets() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        let values = join_all((0..8).map(|index| {
            let store = &stores[index % 2];
            async move { store.secret("key", &index.to_string()).await.unwrap() }
        }))
        .await;
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        assert_eq!(stores[1].secret("other", "another").await.unwrap(), "another");
        drop(stores);
        assert_eq!(database.open().await.secret("key", "new").await.unwrap(), values[0]);
    })
    .await;
}

#[tokio::test]
async fn a_store_of_a_later_version_is_left_alone() {
    on_each_database(async |database: &Database| {
        put(&database.open().await, finished("ann", "r")).await;
        let sql = match database {
            Database::Sqlite(_) => "PRAGMA user_version = 2",
            Database::Postgres { .. } => "INSERT INTO migrations (version) VALUES (2)",
        };
        database.execute(sql).await;
        let refused = database.open_with(|_| {}).await.unwrap_err();
        assert!(matches!(refused, StoreError::Newer { found: 2, known: 1 }), "{refused:?}");
        assert_eq!(database.number("SELECT count(*) FROM responses").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let database = Database::sqlite();
    let folder = database.folder().unwrap();
    let path = folder.join("ortolan.db");
    fs::create_dir(&folder).unwrap();
    let garbage = "no database at all\n".repeat(1000);
    fs::write(&path, &garbage).unwrap();
    let refused = database.open_with(|_| {}).await.unwrap_err();
    let expected = format!("the store `{}` cannot be opened; restore it from a backup or move it away", path.display());
    assert_eq!(refused.to_string(), expected);
    assert_eq!(refused.source().unwrap().to_string(), "file is not a database");
    assert_eq!(fs::read_to_string(&path).unwrap(), garbage);
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_refused() {
    let database = Database::sqlite();
    let folder = database.folder().unwrap();
    fs::write(&folder, "a file").unwrap();
    let refused = database.open_with(|_| {}).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Folder { path, .. } if *path == folder), "{refused:?}");
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_without_its_password() {
    let database = Database::sqlite();
    let open = async |url: &str| database.open_with(|config| config.url = url.to_owned()).await.unwrap_err();
    let refused = open("postgresql://ann:sesame@localhost:notaport/db").await;
    assert!(matches!(refused, StoreError::Url { .. }), "{refused:?}");
    assert!(!refused.to_string().contains("sesame"), "{refused}");
    let nobody = tempfile::tempdir().unwrap();
    let url = format!("postgresql:///db?host={}&user=ann&password=sesame", nobody.path().display());
    let refused = open(&url).await;
    assert!(matches!(refused, StoreError::Unreachable(_)), "{refused:?}");
    let source = refused.source().unwrap();
    assert!(!format!("{source} {source:?}").contains("sesame"), "{source:?}");
}

#[tokio::test]
async fn work_that_a_dead_process_has_left_is_taken_up_at_once() {
    let database = Database::sqlite();
    let enqueue = async |store: &Store| {
        store.enqueue(&NewJob { response: finished("ann", "r"), request: "{}", max_unfinished: 9 }).await.unwrap();
    };
    let first = database.open().await;
    enqueue(&first).await;
    let left = first.claim("fake").await.unwrap().unwrap();
    // Where another process lives, the work may be its.
    let second = database.open().await;
    assert!(second.claim("fake").await.unwrap().is_none());
    drop(first);
    assert!(second.claim("fake").await.unwrap().is_none());
    drop(second);
    let third = database.open().await;
    let taken = third.claim("fake").await.unwrap().unwrap();
    assert_eq!((&*taken.id, taken.attempt), (&*left.id, 2));
}

#[tokio::test]
async fn the_folder_is_found_as_the_environment_says() {
    let parent = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        enabled: true,
        path: PathBuf::new(),
        url: String::new(),
        max_age: 0,
        max_bytes: 0,
        min_free_bytes: 0,
    };
    let state = parent.path().join("a/b");
    let variable = |name: &str| (name == "XDG_STATE_HOME").then(|| state.clone().into_os_string());
    Store::open(&config, variable).await.unwrap().unwrap();
    assert!(state.join("ortolan/ortolan.db").exists());
    let nowhere = Store::open(&config, |_| None).await.unwrap_err();
    assert!(matches!(nowhere, StoreError::NoPath), "{nowhere:?}");
}
