//! What nobody uses is deleted, and nothing else.

use super::database::{Database, finished, following, items, key, on_each_database, put, to};
use ortolan::store::{FinishedResponse, NewJob, Store, StoredConversation};

async fn create(store: &Store, tenant: &str, id: &str, ids: &[&str]) {
    let conversation = StoredConversation { id: id.to_owned(), created_at: 1, metadata: "{}".to_owned() };
    store.create_conversation(&conversation, &to(tenant, id, &items(ids))).await.unwrap();
}

async fn enqueue(store: &Store, tenant: &str, id: &str) {
    let response = FinishedResponse { status: "queued", ..finished(tenant, id) };
    store.enqueue(&NewJob { response, request: "{}", max_unfinished: 9 }).await.unwrap();
}

/// `tenant:id` of the responses and conversations that are there.
async fn kept(store: &Store, candidates: &[(&str, &str)]) -> String {
    let mut kept = Vec::new();
    for &(tenant, id) in candidates {
        let is_kept = store.response(key(tenant, id)).await.unwrap().is_some()
            || store.conversation(key(tenant, id)).await.unwrap().is_some();
        kept.extend(is_kept.then(|| format!("{tenant}:{id}")));
    }
    kept.join(" ")
}

#[tokio::test]
async fn what_was_not_used_for_long_is_deleted() {
    on_each_database(async |database: &Database| {
        let store = database.open_with(|config| config.max_age = 1000).await.unwrap();
        for id in ["old", "new"] {
            put(&store, FinishedResponse { item_ids: &[format!("of {id}")], ..finished("ann", id) }).await;
            create(&store, "ann", &format!("{id} c"), &["i"]).await;
        }
        enqueue(&store, "ann", "old work").await;
        for index in 0..100 {
            put(&store, finished("bob", &format!("old {index}"))).await;
        }
        for table in ["responses", "conversations"] {
            database.execute(&format!("UPDATE {table} SET used_at = unixepoch() - 1100 WHERE id LIKE 'old%'")).await;
            database.execute(&format!("UPDATE {table} SET used_at = unixepoch() - 900 WHERE id LIKE 'new%'")).await;
        }
        assert_eq!(store.sweep().await.unwrap(), 102);
        let all = [("ann", "old"), ("ann", "old c"), ("ann", "old work"), ("ann", "new"), ("ann", "new c")];
        assert_eq!(kept(&store, &all).await, "ann:old work ann:new ann:new c");
        assert_eq!(database.number("SELECT count(*) FROM responses").await, 2);
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, 1);
        assert_eq!(database.number("SELECT count(*) FROM output_items").await, 1);
        assert_eq!(store.sweep().await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn without_limits_all_is_kept() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        put(&store, finished("ann", "r")).await;
        create(&store, "ann", "c", &["i"]).await;
        database.execute("UPDATE responses SET used_at = 1, bytes = 1000000000000").await;
        database.execute("UPDATE conversations SET used_at = 1").await;
        assert_eq!(store.sweep().await.unwrap(), 0);
        assert_eq!(kept(&store, &[("ann", "r"), ("ann", "c")]).await, "ann:r ann:c");
    })
    .await;
}

#[tokio::test]
async fn whoever_has_the_most_loses_the_oldest_first() {
    on_each_database(async |database: &Database| {
        let store = database.open_with(|config| config.max_bytes = 10_000).await.unwrap();
        for (tenant, id, used_at, bytes) in [
            ("ann", "a", 4, 3000),
            ("ann", "b", 2, 3000),
            ("ann", "c", 3, 2000),
            ("bob", "a", 1, 3000),
            ("bob", "b", 5, 1000),
        ] {
            put(&store, finished(tenant, id)).await;
            let set = format!("UPDATE responses SET used_at = {used_at}, bytes = {bytes} - 1024");
            database.execute(&format!("{set} WHERE tenant = '{tenant}' AND id = '{id}'")).await;
        }
        create(&store, "ann", "d", &["i"]).await;
        database.execute("UPDATE conversations SET used_at = 1, bytes = 1000 - 1024 - 2").await;
        let all = [("ann", "a"), ("ann", "b"), ("ann", "c"), ("ann", "d"), ("bob", "a"), ("bob", "b")];
        // 13000 bytes, 9000 of them Ann's, with the 1024 that each row counts for and the metadata's 2.
        assert_eq!(store.sweep().await.unwrap(), 2);
        assert_eq!(kept(&store, &all).await, "ann:a ann:c bob:a bob:b");
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, 0);
        assert_eq!(store.sweep().await.unwrap(), 0);
        // Unfinished work counts and is kept.
        enqueue(&store, "bob", "work").await;
        database.execute("UPDATE responses SET used_at = 0, bytes = 9000 - 1024 WHERE id = 'work'").await;
        assert_eq!(store.sweep().await.unwrap(), 2);
        assert_eq!(kept(&store, &all).await, "ann:a ann:c");
        assert!(store.response(key("bob", "work")).await.unwrap().is_some());
    })
    .await;
}

#[tokio::test]
async fn no_tenant_pays_for_anothers_unfinished_work() {
    on_each_database(async |database: &Database| {
        let store = database.open_with(|config| config.max_bytes = 1000).await.unwrap();
        put(&store, finished("ann", "a")).await;
        enqueue(&store, "bob", "work").await;
        database.execute("UPDATE responses SET bytes = 2000 WHERE id = 'work'").await;
        assert_eq!(store.sweep().await.unwrap(), 0);
        assert_eq!(kept(&store, &[("ann", "a"), ("bob", "work")]).await, "ann:a bob:work");
    })
    .await;
}

#[tokio::test]
async fn what_a_chain_needs_is_kept_as_long_as_its_end() {
    on_each_database(async |database: &Database| {
        let store = database.open_with(|config| config.max_age = 1000).await.unwrap();
        put(&store, finished("ann", "a")).await;
        put(&store, following("ann", "b", "a")).await;
        database.execute("UPDATE responses SET used_at = 1").await;
        put(&store, following("ann", "c", "b")).await;
        assert_eq!(store.sweep().await.unwrap(), 0);
        assert_eq!(store.chain(key("ann", "c")).await.unwrap().unwrap().len(), 3);
    })
    .await;
}

#[tokio::test]
async fn what_background_work_has_said_counts() {
    on_each_database(async |database: &Database| {
        let store = database.open_with(|config| config.max_bytes = 10_000).await.unwrap();
        enqueue(&store, "ann", "r").await;
        let job = store.claim("fake").await.unwrap().unwrap();
        assert!(store.record(&job, &[(0, "x".repeat(20_000))]).await.unwrap());
        assert!(store.finish(&job, &finished("ann", "r"), &[], None).await.unwrap());
        assert_eq!(store.sweep().await.unwrap(), 1);
        assert_eq!(database.number("SELECT count(*) FROM events").await, 0);
    })
    .await;
}

#[tokio::test]
async fn room_that_was_freed_goes_back_to_the_file_system() {
    let database = Database::sqlite();
    let store = database.open_with(|config| config.max_age = 1000).await.unwrap();
    let body = "x".repeat(1 << 20);
    put(&store, FinishedResponse { body: &body, ..finished("ann", "r") }).await;
    let pages = database.number("PRAGMA page_count").await;
    assert!(256 < pages);
    database.execute("UPDATE responses SET used_at = 1").await;
    assert_eq!(store.sweep().await.unwrap(), 1);
    // Comes behind the room that is given back.
    put(&store, finished("ann", "s")).await;
    assert!(database.number("PRAGMA page_count").await < pages - 250);
}
