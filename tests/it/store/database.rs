//! Databases for the tests: each test is written once, and runs on a fresh one of each kind.

use futures::FutureExt;
use ortolan::store::{Append, FinishedResponse, Key, Store, StoreConfig, StoreError};
use std::{
    env,
    panic::{AssertUnwindSafe, resume_unwind},
    path::{Path, PathBuf},
    sync::Once,
};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};
use url::Url;
use uuid::Uuid;

/// Address of a PostgreSQL server on which databases may be made.
const VARIABLE: &str = "ORTOLAN_TEST_POSTGRES";

/// One that a test has for itself.
pub(crate) enum Database {
    Sqlite(TempDir),
    Postgres { server: Url, name: String },
}

/// Runs a test on SQLite, and on PostgreSQL where there is one.
pub(crate) async fn on_each_database(test: impl AsyncFn(&Database)) {
    for database in [Some(Database::sqlite()), Database::postgres().await].into_iter().flatten() {
        let outcome = AssertUnwindSafe(test(&database)).catch_unwind().await;
        let name = if database.folder().is_some() { "SQLite" } else { "PostgreSQL" };
        database.remove().await;
        if let Err(panic) = outcome {
            eprintln!("this happened on {name}");
            resume_unwind(panic);
        }
    }
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// None, and a line that says so, where there is no server.
    pub(crate) async fn postgres() -> Option<Self> {
        static TOLD: Once = Once::new();
        let Some(server) = env::var_os(VARIABLE).filter(|server| !server.is_empty()) else {
            TOLD.call_once(|| eprintln!("the tests of the store on PostgreSQL are skipped: {VARIABLE} is not set"));
            return None;
        };
        let server = Url::parse(server.to_str().unwrap()).unwrap();
        let name = format!("ortolan_test_{}", Uuid::new_v4().simple());
        connect(&server).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        Some(Self::Postgres { server, name })
    }

    /// A store of its own: to the others it is another process.
    pub(crate) async fn open(&self) -> Store {
        self.open_with(|_| {}).await.unwrap()
    }

    pub(crate) async fn open_with(&self, change: impl FnOnce(&mut StoreConfig)) -> Result<Store, StoreError> {
        let mut config = StoreConfig {
            enabled: true,
            path: PathBuf::new(),
            url: String::new(),
            max_age: 0,
            max_bytes: 0,
            min_free_bytes: 0,
        };
        match self {
            Self::Sqlite(folder) => config.path = folder.path().join("store"),
            Self::Postgres { .. } => config.url = self.url().to_string(),
        }
        change(&mut config);
        Ok(Store::open(&config, |_| None).await?.expect("it is enabled"))
    }

    /// Of the embedded database.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Sqlite(folder) => Some(folder.path().join("store")),
            Self::Postgres { .. } => None,
        }
    }

    /// Does behind the stores' back what they would not do.
    pub(crate) async fn execute(&self, sql: &str) {
        match self.folder() {
            Some(folder) => raw(&folder).execute_batch(sql).unwrap(),
            None => self.client().await.batch_execute(sql).await.unwrap(),
        }
    }

    /// The one number that a query gives.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        match self.folder() {
            Some(folder) => raw(&folder).query_row(sql, (), |row| row.get(0)).unwrap(),
            None => self.client().await.query_one(sql, &[]).await.unwrap().get(0),
        }
    }

    /// As if as much time had passed as a lease holds.
    pub(crate) async fn expire_leases(&self) {
        self.execute("UPDATE responses SET lease_until = 1 WHERE lease_until IS NOT NULL").await;
    }

    fn url(&self) -> Url {
        let Self::Postgres { server, name } = self else { panic!("a file has no address") };
        let mut url = server.clone();
        url.set_path(name);
        url
    }

    pub(crate) async fn client(&self) -> Client {
        let client = connect(&self.url()).await;
        client.batch_execute("SET search_path TO ortolan").await.unwrap();
        client
    }

    pub(crate) async fn remove(self) {
        if let Self::Postgres { server, name } = self {
            connect(&server).await.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
        }
    }
}

/// A connection to the embedded database beside those of the stores.
pub(crate) fn raw(folder: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(folder.join("ortolan.db")).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    connection
}

async fn connect(url: &Url) -> Client {
    let (client, connection) = tokio_postgres::connect(url.as_str(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) const fn key<'a>(tenant: &'a str, id: &'a str) -> Key<'a> {
    Key { tenant, id }
}

/// A response of few words.
pub(crate) const fn finished<'a>(tenant: &'a str, id: &'a str) -> FinishedResponse<'a> {
    FinishedResponse {
        key: key(tenant, id),
        created_at: 1,
        status: "completed",
        model: "fake",
        previous_id: None,
        input: r#"["hi"]"#,
        body: r#"{"output":[]}"#,
        item_ids: &[],
    }
}

/// A response that goes on from another one.
pub(crate) const fn following<'a>(tenant: &'a str, id: &'a str, previous_id: &'a str) -> FinishedResponse<'a> {
    FinishedResponse { previous_id: Some(previous_id), ..finished(tenant, id) }
}

pub(crate) async fn put(store: &Store, response: FinishedResponse<'_>) {
    assert!(store.put(Some(&response), None).await.unwrap());
}

/// Items of these ids.
pub(crate) fn items(ids: &[&str]) -> Vec<(String, String)> {
    ids.iter().map(|id| ((*id).to_owned(), format!(r#"{{"says":"{id}"}}"#))).collect()
}

pub(crate) const fn to<'a>(tenant: &'a str, id: &'a str, items: &'a [(String, String)]) -> Append<'a> {
    Append { conversation: key(tenant, id), items }
}
