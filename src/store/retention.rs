//! What nobody uses is deleted: by age, and the least recently used first where there is too much.

use super::{
    Database, Key, Store, StoreError, conversations,
    responses::{self, USE_SECONDS},
    statement::{Cell, Statement},
};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Rows looked for at once. Each is deleted in a transaction of its own, so that others are not kept waiting.
const MAX_ROWS: u64 = 64;
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// What is deleted as one.
#[derive(Clone, Copy)]
enum Kind {
    Response,
    Conversation,
}

/// Work that has not ended is not for deletion.
const OLD_RESPONSES: &str = "SELECT tenant, id, used_at FROM responses WHERE used_at < unixepoch() - $1 AND lease_until IS NULL \
                             ORDER BY used_at LIMIT $2";
const OLD_CONVERSATIONS: &str = "SELECT tenant, id, used_at FROM conversations WHERE used_at < unixepoch() - $1 \
                                 ORDER BY used_at LIMIT $2";
/// Each takes some room beside what is in it, so that many small ones are not free.
const LARGEST_TENANT: &str = "SELECT tenant, CAST(sum(bytes) AS BIGINT) FROM ( \
                                SELECT tenant, bytes + event_bytes + 1024 AS bytes FROM responses \
                                UNION ALL SELECT tenant, bytes + octet_length(metadata) + 1024 FROM conversations \
                              ) AS kept GROUP BY tenant ORDER BY 2 DESC";
const OLDEST_OF_TENANT: &str = "SELECT kind, id, CAST(bytes AS BIGINT), used_at FROM ( \
                                  SELECT CAST(0 AS BIGINT) AS kind, id, bytes + event_bytes + 1024 AS bytes, used_at \
                                  FROM responses WHERE tenant = $1 AND lease_until IS NULL \
                                  UNION ALL \
                                  SELECT CAST(1 AS BIGINT) AS kind, id, bytes + octet_length(metadata) + 1024, used_at \
                                  FROM conversations WHERE tenant = $1 \
                                ) AS kept ORDER BY used_at LIMIT $2";

impl Store {
    /// Sweeps now and then. Never ends.
    pub async fn sweep_forever(&self) {
        let mut ticks = interval(SWEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.sweep().await {
                Ok(0) => {}
                Ok(deleted) => tracing::info!(deleted, "deleted what nobody uses from the store"),
                // The failure itself is in the log.
                Err(_) => {}
            }
        }
    }

    /// Deletes what is too old or too much; how many responses and conversations that were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sweep(&self) -> Result<usize, StoreError> {
        let mut deleted = 0;
        if self.shared.max_age != 0 {
            for (sql, kind) in [(OLD_RESPONSES, Kind::Response), (OLD_CONVERSATIONS, Kind::Conversation)] {
                deleted += self.delete_old(sql, kind).await?;
            }
        }
        if self.shared.max_bytes != 0 {
            deleted += self.delete_excess().await?;
        }
        if let Database::Sqlite(sqlite) = &self.database {
            sqlite.vacuum().await;
        }
        Ok(deleted)
    }

    async fn delete_old(&self, sql: &'static str, kind: Kind) -> Result<usize, StoreError> {
        let mut deleted = 0;
        // The last use may not have been written down.
        let age = self.shared.max_age.saturating_add(USE_SECONDS);
        loop {
            let query = Statement::new(sql, [age.into(), MAX_ROWS.into()]);
            let rows = self.read(query).await?;
            let num_rows = rows.len();
            for mut row in rows {
                let (tenant, id) = (row.text(0), row.text(1));
                self.write(delete(kind, Key { tenant: &tenant, id: &id }, row.int(2))).await?;
            }
            deleted += num_rows;
            if (num_rows as u64) < MAX_ROWS {
                return Ok(deleted);
            }
        }
    }

    /// Whoever has the most loses its oldest first, so that nobody can crowd out the others.
    async fn delete_excess(&self) -> Result<usize, StoreError> {
        let mut deleted = 0;
        loop {
            let tenants = self.read(Statement::new(LARGEST_TENANT, [])).await?;
            let total: i64 = tenants.iter().map(|row| row.int(1)).sum();
            let excess = total - i64::try_from(self.shared.max_bytes).unwrap_or(i64::MAX);
            let Some(mut largest) = tenants.into_iter().next().filter(|_| 0 < excess) else { return Ok(deleted) };
            let tenant = largest.text(0);
            let query = Statement::new(OLDEST_OF_TENANT, [tenant.as_str().into(), MAX_ROWS.into()]);
            let oldest = self.read(query).await?;
            let before = deleted;
            let mut freed = 0;
            for mut row in oldest {
                if excess <= freed {
                    break;
                }
                freed += row.int(2);
                let kind = if row.0[0] == Cell::Int(0) { Kind::Response } else { Kind::Conversation };
                self.write(delete(kind, Key { tenant: &tenant, id: &row.text(1) }, row.int(3))).await?;
                deleted += 1;
            }
            if deleted == before {
                // All of it is work that has not ended.
                return Ok(deleted);
            }
        }
    }
}

/// Unless it has been used since.
const STILL_UNUSED_RESPONSE: &str = "SELECT id FROM responses \
                                     WHERE tenant = $1 AND id = $2 AND used_at <= $3 AND lease_until IS NULL";
const STILL_UNUSED_CONVERSATION: &str = "SELECT id FROM conversations WHERE tenant = $1 AND id = $2 AND used_at <= $3";

fn delete(kind: Kind, key: Key<'_>, used_at: i64) -> Vec<Statement> {
    let (condition, delete) = match kind {
        Kind::Response => (STILL_UNUSED_RESPONSE, responses::delete(key)),
        Kind::Conversation => (STILL_UNUSED_CONVERSATION, conversations::delete(key)),
    };
    let condition = Statement::guard(condition, [key.tenant.into(), key.id.into(), used_at.into()]);
    [condition].into_iter().chain(delete).collect()
}
