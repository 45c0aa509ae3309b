//! What is no longer what was written is never taken for it.

use super::database::{Database, finished, following, items, key, on_each_database, put, raw, to};
use ortolan::store::{FinishedResponse, NewJob, Store, StoreError, StoredConversation};
use std::fs;

async fn create(store: &Store, ids: &[&str]) {
    let conversation = StoredConversation { id: "c".to_owned(), created_at: 1, metadata: "{}".to_owned() };
    store.create_conversation(&conversation, &to("ann", "c", &items(ids))).await.unwrap();
}

/// Of which row an error tells.
fn damaged<T: std::fmt::Debug>(read: Result<T, StoreError>) -> String {
    match read {
        Err(StoreError::Corrupt { id }) => id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_changed_text_is_told() {
    on_each_database(async |database: &Database| {
        for (change, back) in [
            ("body = replace(body, 'output', 'ouput')", "body = replace(body, 'ouput', 'output')"),
            ("input = replace(input, 'hi', 'ha')", "input = replace(input, 'ha', 'hi')"),
            ("input = body, body = input", "input = body, body = input"),
            ("previous_id = 'q'", "previous_id = NULL"),
        ] {
            let store = database.open().await;
            put(&store, FinishedResponse { item_ids: &["msg".to_owned()], ..finished("ann", "r") }).await;
            put(&store, following("ann", "s", "r")).await;
            database.execute(&format!("UPDATE responses SET {change} WHERE id = 'r'")).await;
            assert_eq!(damaged(store.response(key("ann", "r")).await), "r", "{change}");
            assert_eq!(damaged(store.response_with_item(key("ann", "msg")).await), "r");
            assert_eq!(damaged(store.chain(key("ann", "s")).await), "r");
            assert_eq!(store.stats().corrupt_rows, 3);
            assert!(store.response(key("ann", "s")).await.unwrap().is_some());
            database.execute(&format!("UPDATE responses SET {back} WHERE id = 'r'")).await;
            assert!(store.response(key("ann", "r")).await.unwrap().is_some());
            assert_eq!((store.stats().corrupt_rows, store.stats().errors), (3, 0));
            store.delete_response(key("ann", "r")).await.unwrap();
            store.delete_response(key("ann", "s")).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_row_in_the_place_of_another_is_told() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        put(&store, FinishedResponse { body: "Ann's", ..finished("ann", "r") }).await;
        put(&store, FinishedResponse { body: "Bob's", ..finished("bob", "r") }).await;
        database.execute("DELETE FROM responses WHERE tenant = 'ann'").await;
        database.execute("UPDATE responses SET tenant = 'ann' WHERE tenant = 'bob'").await;
        assert_eq!(damaged(store.response(key("ann", "r")).await), "r");
    })
    .await;
}

#[tokio::test]
async fn a_changed_item_is_told() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, &["i", "j"]).await;
        database.execute("UPDATE conversation_items SET item = replace(item, 'says', 'said') WHERE id = 'j'").await;
        assert_eq!(damaged(store.item(key("ann", "c"), "j").await), "j");
        assert_eq!(damaged(store.items(key("ann", "c"), true, None, 9).await), "j");
        assert_eq!(store.stats().corrupt_rows, 2);
        assert!(store.item(key("ann", "c"), "i").await.unwrap().is_some());
        assert_eq!(store.items(key("ann", "c"), true, None, 1).await.unwrap().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn work_with_a_damaged_input_or_request_is_not_begun() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        for change in ["input = '[]'", "request = '[]'"] {
            let job = NewJob { response: finished("ann", "r"), request: "{}", max_unfinished: 9 };
            store.enqueue(&job).await.unwrap();
            database.execute(&format!("UPDATE responses SET {change}")).await;
            assert_eq!(damaged(store.claim("fake").await), "r", "{change}");
            store.delete_response(key("ann", "r")).await.unwrap();
        }
    })
    .await;
}

/// A row whose columns are of other types, as those of a damaged file may be.
#[tokio::test]
async fn columns_of_the_wrong_type_are_refused() {
    let database = Database::sqlite();
    let folder = database.folder().unwrap();
    drop(database.open().await);
    raw(&folder)
        .execute_batch(
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = replace(replace(replace(sql, 'STRICT', ''), 'NOT NULL', ''), 'TEXT', '')
             WHERE type = 'table';
             UPDATE sqlite_schema SET sql = replace(sql, 'INTEGER', '') WHERE type = 'table'",
        )
        .unwrap();
    for column in ["status", "background", "input", "body", "checksum", "previous_id", "bytes", "created_at", "attempt"]
    {
        for value in ["NULL", "1.5", "7", "x'00ff'", "CAST(x'ff' AS TEXT)"] {
            let store = database.open().await;
            put(&store, finished("ann", "r")).await;
            put(&store, following("ann", "s", "r")).await;
            let job = NewJob { response: finished("ann", "job"), request: "{}", max_unfinished: 9 };
            store.enqueue(&job).await.unwrap();
            create(&store, &["i"]).await;
            database.execute(&format!("UPDATE responses SET {column} = {value} WHERE id <> 's'")).await;
            let is_text = ["input", "body", "checksum"].contains(&column)
                || (column == "previous_id" && value.starts_with("CAST"));
            let found = store.response(key("ann", "r")).await;
            assert_eq!(matches!(found, Err(StoreError::Corrupt { .. })), is_text, "{column} {value}: {found:?}");
            let found = store.chain(key("ann", "s")).await;
            assert!(found.is_ok() || is_text, "{column} {value}: {found:?}");
            let found = store.claim("fake").await;
            assert_eq!(found.is_err(), is_text, "{column} {value}: {found:?}");
            store.sweep().await.unwrap();
            database.execute(&format!("UPDATE conversation_items SET item = {value}")).await;
            assert_eq!(damaged(store.item(key("ann", "c"), "i").await), "i");
            database.execute("DELETE FROM responses; DELETE FROM conversations; DELETE FROM conversation_items").await;
        }
    }
}

/// The anomaly loop: one byte of the file after the other, far enough from each other to be done in time.
#[tokio::test]
async fn whichever_byte_of_the_file_is_damaged_what_is_read_is_right_or_refused() {
    let database = Database::sqlite();
    let store = database.open().await;
    let body = "a long text ".repeat(500);
    for id in ["r0", "r1", "r2"] {
        put(&store, FinishedResponse { body: &body, ..finished("ann", id) }).await;
    }
    put(&store, following("ann", "r3", "r2")).await;
    create(&store, &["i", "j"]).await;
    drop(store);
    let folder = database.folder().unwrap();
    raw(&folder).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let whole = fs::read(folder.join("ortolan.db")).unwrap();

    let (mut num_right, mut num_refused) = (0, 0);
    for offset in (0..whole.len()).step_by(397) {
        let mut damaged = whole.clone();
        damaged[offset] ^= 1 << (offset % 8);
        let copy = Database::sqlite();
        fs::create_dir(copy.folder().unwrap()).unwrap();
        fs::write(copy.folder().unwrap().join("ortolan.db"), damaged).unwrap();
        let Ok(store) = copy.open_with(|_| {}).await else {
            num_refused += 1;
            continue;
        };
        let mut count = |is_right: bool| if is_right { num_right += 1 } else { num_refused += 1 };
        for id in ["r0", "r1", "r2"] {
            let found = store.response(key("ann", id)).await;
            let is_whole = |found: &_| matches!(found, Ok(Some(response)) if response_is(response, id, &body));
            assert!(is_whole(&found) || !matches!(found, Ok(Some(_))), "{offset}: {found:?}");
            count(is_whole(&found));
        }
        let chain = store.chain(key("ann", "r3")).await;
        if let Ok(Some(chain)) = &chain {
            assert!(chain.len() == 2 && response_is(&chain[0], "r2", &body), "{offset}: {chain:?}");
        }
        count(matches!(chain, Ok(Some(_))));
        let found = store.items(key("ann", "c"), true, None, 9).await;
        for item in found.iter().flatten().flatten() {
            assert!(item.item == format!(r#"{{"says":"{}"}}"#, item.id), "{offset}: {item:?}");
        }
        // Whatever becomes of them, they end.
        let _ = store.claim("fake").await;
        let _ = store.sweep().await;
        let _ = store.put(Some(&finished("ann", "new")), None).await;
        let _ = store.secret("name", "value").await;
        let _ = store.response(key("ann", "r0")).await;
    }
    assert!(0 < num_refused && num_refused < num_right, "{num_refused} were refused, {num_right} were right");
}

fn response_is(response: &ortolan::store::StoredResponse, id: &str, body: &str) -> bool {
    response.id == id && response.body == body && response.input == finished("", "").input
}
