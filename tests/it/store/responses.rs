//! Responses and their chains.

use super::database::{Database, finished, following, items, key, on_each_database, put, to};
use futures::future::{join, join_all};
use ortolan::store::{FinishedResponse, Store, StoreError, StoredConversation};

async fn chain(store: &Store, tenant: &str, id: &str) -> Option<Vec<String>> {
    let chain = store.chain(key(tenant, id)).await.unwrap()?;
    Some(chain.into_iter().map(|response| response.id).collect())
}

#[tokio::test]
async fn a_response_is_there_until_it_is_deleted() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        let body = "\"quoted\" 'twice', \\u0000, é 🐦, $1 {}\n".repeat(20_000);
        put(&store, FinishedResponse { input: "", body: &body, status: "incomplete", ..finished("ann", "r") }).await;
        for store in [&store, &database.open().await] {
            let found = store.response(key("ann", "r")).await.unwrap().unwrap();
            assert_eq!((&*found.id, &*found.status, &*found.input), ("r", "incomplete", ""));
            assert!(found.body == body && !found.is_background);
        }
        assert!(store.response(key("ann", "s")).await.unwrap().is_none());
        assert!(store.delete_response(key("ann", "r")).await.unwrap());
        assert!(store.response(key("ann", "r")).await.unwrap().is_none());
        assert!(!store.delete_response(key("ann", "r")).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn nothing_is_stored_over_another_response() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        put(&store, finished("ann", "r")).await;
        let again = FinishedResponse { body: "another", ..finished("ann", "r") };
        assert!(store.put(Some(&again), None).await.is_err());
        assert_eq!(store.response(key("ann", "r")).await.unwrap().unwrap().body, finished("", "").body);
        assert_eq!(store.stats().errors, 1);
        store.check_room().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn owners_reach_their_own_alone() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        let item = ["item".to_owned()];
        for tenant in ["ann", "bob"] {
            put(&store, FinishedResponse { body: tenant, item_ids: &item, ..finished(tenant, "r") }).await;
            create(&store, tenant, "c", &["i"]).await;
        }
        put(&store, finished("ann", "only")).await;
        create(&store, "ann", "only", &["i"]).await;
        for tenant in ["ann", "bob"] {
            assert_eq!(store.response(key(tenant, "r")).await.unwrap().unwrap().body, tenant);
            assert_eq!(store.response_with_item(key(tenant, "item")).await.unwrap().unwrap().body, tenant);
        }
        let only = key("bob", "only");
        assert!(store.response(only).await.unwrap().is_none());
        assert!(store.chain(only).await.unwrap().is_none());
        assert!(store.progress(only, None).await.unwrap().is_none());
        assert!(!store.cancel(only).await.unwrap());
        assert!(!store.delete_response(only).await.unwrap());
        assert!(store.conversation(only).await.unwrap().is_none());
        assert!(store.update_conversation(only, "{}").await.unwrap().is_none());
        assert!(store.all_items(only).await.unwrap().is_none());
        assert!(store.item(only, "i").await.unwrap().is_none());
        assert!(store.items(only, true, Some("i"), 9).await.unwrap().is_none());
        assert!(store.items(only, true, None, 9).await.unwrap().unwrap().is_empty());
        assert!(!store.delete_item(only, "i").await.unwrap());
        assert!(!store.append(&to("bob", "only", &items(&["j"]))).await.unwrap());
        assert!(!store.delete_conversation(only).await.unwrap());
        // A chain does not lead from one to the other.
        put(&store, following("bob", "next", "only")).await;
        assert!(store.chain(key("bob", "next")).await.unwrap().is_none());

        assert!(store.delete_response(key("bob", "r")).await.unwrap());
        assert!(store.delete_conversation(key("bob", "c")).await.unwrap());
        assert!(store.response_with_item(key("ann", "item")).await.unwrap().is_some());
        assert!(store.item(key("ann", "c"), "i").await.unwrap().is_some());
        assert!(store.response(key("ann", "only")).await.unwrap().is_some());
        assert!(store.item(key("ann", "only"), "i").await.unwrap().is_some());
    })
    .await;
}

async fn create(store: &Store, tenant: &str, id: &str, ids: &[&str]) {
    let conversation = StoredConversation { id: id.to_owned(), created_at: 1, metadata: "{}".to_owned() };
    store.create_conversation(&conversation, &to(tenant, id, &items(ids))).await.unwrap();
}

#[tokio::test]
async fn a_chain_is_whole_and_in_order_or_none() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        put(&store, finished("ann", "z")).await;
        put(&store, following("ann", "y", "z")).await;
        put(&store, following("ann", "x", "y")).await;
        put(&store, following("ann", "fork", "y")).await;
        put(&store, finished("bob", "y")).await;
        assert_eq!(chain(&store, "ann", "z").await.unwrap(), ["z"]);
        assert_eq!(chain(&store, "ann", "x").await.unwrap(), ["z", "y", "x"]);
        assert_eq!(chain(&store, "ann", "fork").await.unwrap(), ["z", "y", "fork"]);
        assert_eq!(chain(&store, "ann", "none").await, None);
        store.delete_response(key("ann", "z")).await.unwrap();
        assert_eq!(chain(&store, "ann", "x").await, None);
        assert_eq!(chain(&store, "ann", "y").await, None);
        assert_eq!(chain(&store, "bob", "y").await.unwrap(), ["y"]);
    })
    .await;
}

#[tokio::test]
async fn a_chain_that_is_too_long_or_too_large_is_not_read() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        // Response 7 goes on from response 6, and so on. Their checksums are wrong, so they cannot be read.
        let insert = "WITH RECURSIVE n (i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < 1001) \
             INSERT INTO responses (tenant, id, created_at, used_at, model, status, previous_id, input, body, checksum, \
             bytes, event_bytes, background, attempt, run) SELECT 'ann', CAST(i AS TEXT), i, i, 'fake', 'completed', \
             CASE WHEN 1 < i THEN CAST(i - 1 AS TEXT) END, '[]', '{}', '', 4, 0, 0, 0, 0 FROM n";
        database.execute(insert).await;
        let longest = store.chain(key("ann", "1000")).await.unwrap_err();
        assert!(matches!(longest, StoreError::Corrupt { .. }), "{longest:?}");
        let too_long = store.chain(key("ann", "1001")).await.unwrap_err();
        assert!(matches!(too_long, StoreError::TooLong), "{too_long:?}");

        put(&store, finished("bob", "r")).await;
        put(&store, following("bob", "s", "r")).await;
        let half = 4 * 1024 * 1024;
        database.execute(&format!("UPDATE responses SET bytes = {half} WHERE tenant = 'bob'")).await;
        assert_eq!(chain(&store, "bob", "s").await.unwrap(), ["r", "s"]);
        database.execute(&format!("UPDATE responses SET bytes = {half} + 1 WHERE tenant = 'bob' AND id = 'r'")).await;
        assert!(matches!(store.chain(key("bob", "s")).await, Err(StoreError::TooLong)));
        assert_eq!(chain(&store, "bob", "r").await.unwrap(), ["r"]);
    })
    .await;
}

#[tokio::test]
async fn going_on_from_a_response_sets_its_whole_chain_in_use() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        for tenant in ["ann", "bob"] {
            put(&store, finished(tenant, "a")).await;
            put(&store, following(tenant, "b", "a")).await;
            put(&store, following(tenant, "fork", "a")).await;
        }
        database.execute("UPDATE responses SET used_at = 1").await;
        put(&store, following("ann", "c", "b")).await;
        assert_eq!(chain(&store, "ann", "c").await.unwrap(), ["a", "b", "c"]);
        assert_eq!(database.number("SELECT count(*) FROM responses WHERE used_at = 1 AND tenant = 'bob'").await, 3);
        assert_eq!(database.number("SELECT count(*) FROM responses WHERE used_at = 1 AND id = 'fork'").await, 2);
        assert_eq!(database.number("SELECT count(*) FROM responses WHERE used_at = 1").await, 4);
    })
    .await;
}

#[tokio::test]
async fn many_go_on_from_the_same_chain_at_once() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        put(&stores[0], finished("ann", "0")).await;
        for index in 1..30 {
            put(&stores[0], following("ann", &index.to_string(), &(index - 1).to_string())).await;
        }
        database.execute("UPDATE responses SET used_at = 1").await;
        let forks = (0..60).map(|index| {
            let store = &stores[index % 2];
            async move { put(store, following("ann", &format!("fork {index}"), &(29 - index % 7).to_string())).await }
        });
        join_all(forks).await;
        assert_eq!(database.number("SELECT count(*) FROM responses WHERE 1 < used_at").await, 90);
    })
    .await;
}

/// PostgreSQL ends one of two transactions that wait for each other.
#[tokio::test]
async fn a_transaction_that_was_ended_for_anothers_sake_is_tried_again() {
    let Some(database) = Database::postgres().await else { return };
    let store = database.open().await;
    create(&store, "ann", "c", &[]).await;
    put(&store, finished("ann", "r")).await;
    database.execute("UPDATE responses SET used_at = 1").await;
    let (response, said) = (following("ann", "s", "r"), items(&["i"]));
    let append = to("ann", "c", &said);
    let client = database.client().await;
    // It has the patience, so it is ours that is ended.
    client.batch_execute("SET deadlock_timeout TO '1min'; BEGIN; UPDATE responses SET used_at = 1").await.unwrap();
    // Adds to the conversation, then sets the chain in use.
    let write = store.put(Some(&response), Some(&append));
    let other = async {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while database.number(waiting).await == 0 {}
        client.batch_execute("UPDATE conversations SET used_at = 1; COMMIT").await.unwrap();
    };
    let (stored, ()) = join(write, other).await;
    assert!(stored.unwrap());
    assert_eq!(store.chain(key("ann", "s")).await.unwrap().unwrap().len(), 2);
    database.remove().await;
}

#[tokio::test]
async fn a_response_is_found_by_an_item_of_its_output() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        let ids = ["msg".to_owned(), "fc".to_owned()];
        put(&store, FinishedResponse { item_ids: &ids, ..finished("ann", "r") }).await;
        for id in &ids {
            assert_eq!(store.response_with_item(key("ann", id)).await.unwrap().unwrap().id, "r");
        }
        assert!(store.response_with_item(key("ann", "r")).await.unwrap().is_none());
        store.delete_response(key("ann", "r")).await.unwrap();
        assert!(store.response_with_item(key("ann", "msg")).await.unwrap().is_none());
        assert_eq!(database.number("SELECT count(*) FROM output_items").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_response_and_what_its_conversation_gets_are_stored_together_or_not_at_all() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, "ann", "c", &[]).await;
        let (response, said) = (finished("ann", "r"), items(&["i", "j"]));
        assert!(!store.put(Some(&response), Some(&to("ann", "gone", &said))).await.unwrap());
        assert!(store.response(key("ann", "r")).await.unwrap().is_none());
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, 0);

        assert!(store.put(Some(&response), Some(&to("ann", "c", &said))).await.unwrap());
        assert!(store.response(key("ann", "r")).await.unwrap().is_some());
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, 2);
        // The response is there already, so its items are not told twice.
        let others = items(&["k"]);
        assert!(store.put(Some(&response), Some(&to("ann", "c", &others))).await.is_err());
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, 2);
        assert!(store.put(None, Some(&to("ann", "c", &others))).await.unwrap());
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, 3);
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_is_given_up_leaves_its_connection() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        let body = "x".repeat(1 << 20);
        put(&store, FinishedResponse { body: &body, ..finished("ann", "r") }).await;
        for _ in 0..20 {
            let mut reads = Vec::from_iter((0..8).map(|_| Box::pin(store.response(key("ann", "r")))));
            for read in &mut reads {
                let _ = futures::poll!(read);
            }
            drop(reads);
            for read in join_all((0..8).map(|_| store.response(key("ann", "r")))).await {
                assert!(read.unwrap().is_some());
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_writer_that_is_given_up_leaves_all_or_nothing() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, "ann", "c", &[]).await;
        for patience in 0..60 {
            let (id, item) = (format!("r {patience}"), items(&[&format!("i {patience}")]));
            let (response, append) = (finished("ann", &id), to("ann", "c", &item));
            let mut write = Box::pin(store.put(Some(&response), Some(&append)));
            for _ in 0..patience {
                if futures::poll!(&mut write).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // The connections are fit for use, and whatever went on has ended before.
        let after = Vec::from_iter((0..20).map(|index| format!("after {index}")));
        join_all(after.iter().map(|id| put(&store, finished("ann", id)))).await;
        let halves = "SELECT count(*) FROM responses r LEFT JOIN conversation_items i ON i.id = 'i' || substr(r.id, 2) \
                      WHERE r.id LIKE 'r %' AND i.id IS NULL";
        assert_eq!(database.number(halves).await, 0);
        let stored = database.number("SELECT count(*) FROM responses WHERE id LIKE 'r %'").await;
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, stored);
    })
    .await;
}
