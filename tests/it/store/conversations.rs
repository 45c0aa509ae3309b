//! Conversations: what is in them, in which order, and how it is paged through.

use super::database::{Database, items, key, on_each_database, to};
use futures::future::join_all;
use ortolan::store::{Key, Store, StoreError, StoredConversation};

const C: Key<'static> = key("ann", "c");

async fn create(store: &Store, ids: &[&str]) {
    let metadata = r#"{"topic":"birds"}"#.to_owned();
    let conversation = StoredConversation { id: "c".to_owned(), created_at: 7, metadata };
    store.create_conversation(&conversation, &to("ann", "c", &items(ids))).await.unwrap();
}

/// Ids of a page, and none where `after` is not there.
async fn page(store: &Store, is_ascending: bool, after: Option<&str>, limit: u64) -> Option<Vec<String>> {
    let page = store.items(C, is_ascending, after, limit).await.unwrap()?;
    Some(page.into_iter().map(|item| item.id).collect())
}

#[tokio::test]
async fn a_conversation_is_there_with_its_items_until_it_is_deleted() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, &["i", "j"]).await;
        let found = store.conversation(C).await.unwrap().unwrap();
        assert_eq!((&*found.id, found.created_at, &*found.metadata), ("c", 7, r#"{"topic":"birds"}"#));
        let updated = store.update_conversation(C, "{}").await.unwrap().unwrap();
        assert_eq!((&*updated.id, updated.created_at, &*updated.metadata), ("c", 7, "{}"));
        assert_eq!(store.conversation(C).await.unwrap().unwrap().metadata, "{}");
        assert_eq!(store.item(C, "j").await.unwrap().unwrap().item, r#"{"says":"j"}"#);
        assert!(store.item(C, "k").await.unwrap().is_none());

        assert!(store.delete_conversation(C).await.unwrap());
        assert!(!store.delete_conversation(C).await.unwrap());
        assert!(store.conversation(C).await.unwrap().is_none());
        assert!(store.update_conversation(C, "{}").await.unwrap().is_none());
        assert!(store.item(C, "j").await.unwrap().is_none());
        assert!(!store.append(&to("ann", "c", &items(&["k"]))).await.unwrap());
        assert_eq!(database.number("SELECT count(*) FROM conversation_items").await, 0);
    })
    .await;
}

#[tokio::test]
async fn items_are_paged_through_in_both_directions() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, &["e", "d"]).await;
        assert!(store.append(&to("ann", "c", &items(&["c", "b"]))).await.unwrap());
        assert!(store.append(&to("ann", "c", &[])).await.unwrap());
        assert!(store.append(&to("ann", "c", &items(&["a"]))).await.unwrap());
        let is = async |is_ascending, after, limit, expected: &str| {
            let found = page(&store, is_ascending, after, limit).await.unwrap();
            assert_eq!(found.concat(), expected, "{is_ascending} {after:?} {limit}");
        };
        is(true, None, 9, "edcba").await;
        is(true, None, 2, "ed").await;
        is(true, Some("d"), 2, "cb").await;
        is(true, Some("b"), 2, "a").await;
        is(true, Some("a"), 2, "").await;
        is(false, None, 9, "abcde").await;
        is(false, None, 2, "ab").await;
        is(false, Some("b"), 2, "cd").await;
        is(false, Some("d"), 2, "e").await;
        is(false, Some("e"), 2, "").await;
        is(true, None, u64::MAX, "edcba").await;
        is(true, None, 0, "").await;
        assert_eq!(page(&store, true, Some("z"), 2).await, None);
        assert_eq!(page(&store, false, Some("z"), 2).await, None);

        assert!(store.delete_item(C, "c").await.unwrap());
        assert!(!store.delete_item(C, "c").await.unwrap());
        is(true, Some("d"), 2, "ba").await;
        assert_eq!(page(&store, true, Some("c"), 2).await, None);
        // A place is not taken again, so nothing comes to stand before what was there.
        assert!(store.delete_item(C, "a").await.unwrap());
        assert!(store.append(&to("ann", "c", &items(&["f"]))).await.unwrap());
        is(true, None, 9, "edbf").await;
    })
    .await;
}

#[tokio::test]
async fn an_item_is_not_added_twice() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, &["a"]).await;
        assert!(store.append(&to("ann", "c", &items(&["b", "a"]))).await.is_err());
        assert_eq!(page(&store, true, None, 9).await.unwrap(), ["a"]);
    })
    .await;
}

#[tokio::test]
async fn what_is_added_at_once_stays_together_and_in_order() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        create(&stores[0], &[]).await;
        let appends = (0..40).map(|index| {
            let store = &stores[index % 2];
            async move {
                let ids = ["a", "b", "c"].map(|place| format!("{index} {place}"));
                let added = items(&ids.each_ref().map(String::as_str));
                assert!(store.append(&to("ann", "c", &added)).await.unwrap());
            }
        });
        join_all(appends).await;
        let all = page(&stores[1], true, None, 200).await.unwrap();
        assert_eq!(all.len(), 120);
        for three in all.chunks(3) {
            let index = three[0].split(' ').next().unwrap();
            assert_eq!(three, ["a", "b", "c"].map(|place| format!("{index} {place}")));
        }
    })
    .await;
}

#[tokio::test]
async fn a_conversation_is_read_whole_unless_that_is_too_much() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, &[]).await;
        assert_eq!(store.all_items(C).await.unwrap().unwrap().len(), 0);
        assert!(store.append(&to("ann", "c", &items(&["i", "j"]))).await.unwrap());
        let found = store.all_items(C).await.unwrap().unwrap();
        assert_eq!(found.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["i", "j"]);
        assert!(store.all_items(key("ann", "d")).await.unwrap().is_none());
        // So much is kept in few rows by several requests, and counted with what was deleted left out.
        let bytes = async || database.number("SELECT bytes FROM conversations").await;
        let before = bytes().await;
        assert!(store.append(&to("ann", "c", &[("k".to_owned(), "é".repeat(500))])).await.unwrap());
        assert_eq!(bytes().await, before + 1000);
        assert!(store.delete_item(C, "k").await.unwrap());
        assert!(!store.delete_item(C, "k").await.unwrap());
        assert_eq!(bytes().await, before);
        database.execute("UPDATE conversations SET bytes = 8 * 1024 * 1024 + 1").await;
        assert!(matches!(store.all_items(C).await, Err(StoreError::TooLong)));
    })
    .await;
}

#[tokio::test]
async fn whatever_is_done_with_a_conversation_sets_it_in_use() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        create(&store, &[]).await;
        let is_used = async || {
            let used = database.number("SELECT count(*) FROM conversations WHERE 1 < used_at").await;
            database.execute("UPDATE conversations SET used_at = 1").await;
            used == 1
        };
        assert!(is_used().await);
        store.conversation(C).await.unwrap().unwrap();
        assert!(!is_used().await);
        store.append(&to("ann", "c", &items(&["a"]))).await.unwrap();
        assert!(is_used().await);
        store.update_conversation(C, "{}").await.unwrap();
        assert!(is_used().await);
    })
    .await;
}
