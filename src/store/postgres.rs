//! A PostgreSQL database, which several processes share.

use super::{
    StoreError,
    schema::{MIGRATIONS, POSTGRES_CLOCK},
    statement::{Cell, Outcome, Row, Statement},
};
use bytes::BytesMut;
use deadpool_postgres::{
    ConfigConnectImpl, Connect, GenericClient, Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod,
    Runtime,
};
use futures::future::{BoxFuture, FutureExt, pending};
use rustls::{ClientConfig, RootCertStore};
use std::{error::Error, sync::Arc, time::Duration};
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_postgres::{
    Client, Config,
    error::SqlState,
    types::{IsNull, ToSql, Type, to_sql_checked},
};
use tokio_postgres_rustls::MakeRustlsConnect;

const CONNECTIONS: usize = 8;
/// For a connection, be it new or one of the pool.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Of a transaction.
const MAX_TRIES: u32 = 5;
/// Its own, so that its names meet no other program's.
const SCHEMA: &str = "ortolan";
/// Of processes that start at once, one makes the tables. A number that no other program uses.
const MIGRATION_LOCK: i64 = 0x6f72_746f_6c61_6e00;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Postgres {
    pool: Pool,
}

impl Postgres {
    /// Makes what tables are missing.
    ///
    /// # Errors
    /// `Url`, `Unreachable`, `Postgres` or `Newer`.
    pub(super) async fn open(url: &str) -> Result<Self, StoreError> {
        let unusable = |message: String| StoreError::Url { message };
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| unusable(chain(&error)))?;
        config.connect_timeout(TIMEOUT).application_name("ortolan");
        // A connection whose other end is gone without a word is not waited for.
        config.keepalives_idle(TIMEOUT).tcp_user_timeout(3 * TIMEOUT);
        let recycling_method = RecyclingMethod::Fast;
        let connect = OnRuntime { runtime: Handle::current(), connect: Arc::new(ConfigConnectImpl { tls: tls() }) };
        let manager = Manager::from_connect(config, connect, ManagerConfig { recycling_method });
        // A client of ours is told of success only when it is durable, whatever the database does for others.
        let setting = format!("SET search_path TO {SCHEMA}; SET synchronous_commit TO on");
        let hook = Hook::async_fn(move |client, _| {
            let setting = setting.clone();
            Box::pin(async move { client.batch_execute(&setting).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(TIMEOUT))
            .create_timeout(Some(TIMEOUT))
            .recycle_timeout(Some(TIMEOUT))
            .post_create(hook)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let postgres = Self { pool };
        postgres.migrate().await?;
        Ok(postgres)
    }

    async fn client(&self) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(StoreError::Unreachable)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).await?;
        let begin = format!(
            "CREATE SCHEMA IF NOT EXISTS {SCHEMA}; CREATE TABLE IF NOT EXISTS migrations (version BIGINT NOT NULL); {POSTGRES_CLOCK}"
        );
        transaction.batch_execute(&begin).await?;
        let found: i64 = transaction.query_one("SELECT count(*) FROM migrations", &[]).await?.get(0);
        let known = i64::try_from(MIGRATIONS.len()).expect("there are few");
        let first = usize::try_from(found).expect("a count");
        let missing = MIGRATIONS.get(first..).ok_or(StoreError::Newer { found, known })?;
        for (version, migration) in (found + 1..).zip(missing) {
            transaction.batch_execute(migration).await?;
            transaction.execute("INSERT INTO migrations (version) VALUES ($1)", &[&version]).await?;
        }
        Ok(transaction.commit().await?)
    }

    pub(super) async fn write(&self, statements: Vec<Statement>) -> Result<Outcome, StoreError> {
        for _ in 1..MAX_TRIES {
            match self.try_write(&statements).await {
                // Of transactions that wait for each other the database ends one, which has done nothing then.
                Err(StoreError::Postgres(error)) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
                outcome => return outcome,
            }
        }
        self.try_write(&statements).await
    }

    async fn try_write(&self, statements: &[Statement]) -> Result<Outcome, StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let mut outcome = Vec::with_capacity(statements.len());
        for statement in statements {
            let rows = run(&transaction, statement).await?;
            if statement.is_guard && rows.is_empty() {
                transaction.rollback().await?;
                return Ok(None);
            }
            outcome.push(rows);
        }
        transaction.commit().await?;
        Ok(Some(outcome))
    }

    pub(super) async fn read(&self, query: Statement) -> Result<Vec<Row>, StoreError> {
        run(&self.client().await?, &query).await
    }
}

async fn run(client: &impl GenericClient, statement: &Statement) -> Result<Vec<Row>, StoreError> {
    let prepared = client.prepare_cached(statement.sql).await?;
    let parameters: Vec<&(dyn ToSql + Sync)> =
        statement.parameters.iter().map(|cell| cell as &(dyn ToSql + Sync)).collect();
    let rows = client.query(&prepared, &parameters).await?;
    rows.iter().map(read_row).collect()
}

fn read_row(row: &tokio_postgres::Row) -> Result<Row, StoreError> {
    let cell = |(index, column): (usize, &tokio_postgres::Column)| {
        Ok(if *column.type_() == Type::INT8 {
            row.try_get::<_, Option<i64>>(index)?.into()
        } else {
            row.try_get::<_, Option<String>>(index)?.into()
        })
    };
    let cells: Result<_, tokio_postgres::Error> = row.columns().iter().enumerate().map(cell).collect();
    Ok(Row(cells?))
}

impl ToSql for Cell {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(int) => int.to_sql_checked(ty, out),
            // The one character that its texts cannot have: so no id that has it is found, and no JSON text has it.
            Self::Text(text) if text.contains('\0') => text.replace('\0', "\u{fffd}").to_sql_checked(ty, out),
            Self::Text(text) => text.to_sql_checked(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// Where connections live: on the runtime on which the store was opened, which lasts as long as the process. A connection that
/// lived with whoever needed it first would end with the HTTP worker that it was, in the hands of others.
struct OnRuntime {
    runtime: Handle,
    connect: Arc<ConfigConnectImpl<MakeRustlsConnect>>,
}

impl Connect for OnRuntime {
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        let (connect, config) = (Arc::clone(&self.connect), config.clone());
        let connecting = self.runtime.spawn(async move { connect.connect(&config).await });
        async move {
            match connecting.await {
                Ok(connected) => connected,
                // The runtime has ended; whoever waits all the same does so for the pool's timeout.
                Err(_) => pending().await,
            }
        }
        .boxed()
    }
}

/// Used where the address asks for it (`sslmode`), with the system's certificates.
fn tls() -> MakeRustlsConnect {
    let mut roots = RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One that cannot be read is one that nothing is signed with.
        let _ = roots.add(certificate);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    MakeRustlsConnect::new(config)
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
