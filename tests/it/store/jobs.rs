//! Background work: who has the right to it, and what followers see of it.

use super::database::{Database, finished, items, key, on_each_database, put, to};
use ortolan::store::{FinishedResponse, Job, Key, NewJob, Place, Store, StoredConversation};
use std::time::Duration;
use tokio::time::{self, Instant};

const R: Key<'static> = key("ann", "r");
/// How often a process looks at what others have changed.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Work for the model `fake` that was asked for at a time.
async fn enqueue(store: &Store, id: &str, created_at: u64, max_unfinished: u64) -> Place {
    let response = FinishedResponse { status: "queued", created_at, body: "queued", ..finished("ann", id) };
    store.enqueue(&NewJob { response, request: r#"{"ask":1}"#, max_unfinished }).await.unwrap()
}

async fn claim(store: &Store) -> Job {
    store.claim("fake").await.unwrap().expect("there is work")
}

async fn is_idle(store: &Store) -> bool {
    store.claim("fake").await.unwrap().is_none()
}

/// Events of these numbers that tell whose they are.
fn events(said: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<(u64, String)> {
    numbers.into_iter().map(|number| (number, format!("{said} {number}"))).collect()
}

async fn finish(store: &Store, job: &Job, last: &[(u64, String)]) -> bool {
    let response = FinishedResponse { body: "done", ..finished(&job.tenant, &job.id) };
    store.finish(job, &response, last, None).await.unwrap()
}

async fn said(store: &Store, after: Option<u64>) -> (String, bool) {
    let progress = store.progress(R, after).await.unwrap().unwrap();
    let texts: Vec<_> = progress.events.into_iter().map(|(_, text)| text).collect();
    (texts.join(", "), progress.has_ended)
}

#[tokio::test]
async fn work_is_done_from_beginning_to_end() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        assert_eq!(enqueue(&store, "r", 5, 1).await, Place::Stored);
        let queued = store.response(R).await.unwrap().unwrap();
        assert_eq!((&*queued.status, &*queued.body, queued.is_background), ("queued", "queued", true));
        assert_eq!(said(&store, None).await, (String::new(), false));

        let job = claim(&store).await;
        assert_eq!((&*job.tenant, &*job.id, job.created_at, job.attempt), ("ann", "r", 5, 1));
        assert_eq!((&*job.request, &*job.input), (r#"{"ask":1}"#, finished("", "").input));
        assert_eq!(store.response(R).await.unwrap().unwrap().status, "in_progress");
        assert!(store.record(&job, &events("one", 0..2)).await.unwrap());
        assert!(store.record(&job, &[]).await.unwrap());
        assert_eq!(said(&store, None).await, ("one 0, one 1".to_owned(), false));
        assert_eq!(said(&store, Some(0)).await, ("one 1".to_owned(), false));
        assert_eq!(said(&store, Some(1)).await, (String::new(), false));
        assert_eq!(said(&store, Some(u64::MAX)).await, (String::new(), false));

        assert_eq!(store.num_unfinished().await.unwrap(), 1);
        assert!(finish(&store, &job, &events("one", [2])).await);
        assert_eq!(store.num_unfinished().await.unwrap(), 0);
        assert_eq!(said(&store, None).await, ("one 0, one 1, one 2".to_owned(), true));
        assert_eq!(said(&store, Some(1)).await, ("one 2".to_owned(), true));
        let done = store.response(R).await.unwrap().unwrap();
        assert_eq!((&*done.status, &*done.body, done.is_background), ("completed", "done", true));
        let bytes = (done.input.len() + done.body.len()) as i64;
        assert_eq!(database.number("SELECT bytes FROM responses").await, bytes);
        assert_eq!(store.chain(R).await.unwrap().unwrap().len(), 1);

        assert!(!finish(&store, &job, &[]).await);
        assert!(!store.record(&job, &events("one", [3])).await.unwrap());
        assert!(!store.cancel(R).await.unwrap());
        database.expire_leases().await;
        assert!(is_idle(&store).await);
        assert!(store.delete_response(R).await.unwrap());
        assert_eq!(database.number("SELECT count(*) FROM events").await, 0);
    })
    .await;
}

#[tokio::test]
async fn no_more_is_taken_on_than_may_be_unfinished() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        // What was not done in the background does not count.
        put(&stores[0], finished("ann", "direct")).await;
        assert_eq!(enqueue(&stores[0], "a", 1, 2).await, Place::Stored);
        assert_eq!(enqueue(&stores[1], "b", 2, 2).await, Place::Stored);
        assert_eq!(enqueue(&stores[0], "c", 3, 2).await, Place::Full);
        assert!(stores[0].response(key("ann", "c")).await.unwrap().is_none());
        // Work that has begun counts.
        let job = claim(&stores[1]).await;
        assert_eq!(enqueue(&stores[0], "c", 3, 2).await, Place::Full);
        assert_eq!(stores[0].num_unfinished().await.unwrap(), 2);
        assert!(finish(&stores[1], &job, &[]).await);
        assert_eq!(enqueue(&stores[0], "c", 3, 2).await, Place::Stored);
        assert_eq!(enqueue(&stores[0], "d", 4, 2).await, Place::Full);
        assert!(stores[0].cancel(key("ann", "c")).await.unwrap());
        assert_eq!(enqueue(&stores[0], "d", 4, 2).await, Place::Stored);
        assert_eq!(enqueue(&stores[0], "e", 5, 0).await, Place::Full);
    })
    .await;
}

#[tokio::test]
async fn the_oldest_work_for_a_model_is_claimed_first_and_once() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        for (id, created_at) in [("third", 3), ("first", 1), ("second", 2)] {
            enqueue(&stores[0], id, created_at, 9).await;
        }
        let response = FinishedResponse { model: "other", created_at: 0, ..finished("ann", "other") };
        stores[0].enqueue(&NewJob { response, request: "{}", max_unfinished: 9 }).await.unwrap();
        assert_eq!(claim(&stores[1]).await.id, "first");
        assert_eq!(claim(&stores[0]).await.id, "second");
        assert_eq!(claim(&stores[1]).await.id, "third");
        assert!(is_idle(&stores[0]).await && is_idle(&stores[1]).await);
        assert_eq!(stores[0].claim("other").await.unwrap().unwrap().id, "other");
        assert!(stores[0].claim("third").await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn of_many_who_claim_at_once_each_gets_other_work() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        for index in 0..20 {
            enqueue(&stores[0], &index.to_string(), index, 99).await;
        }
        let mut claimed = Vec::new();
        while claimed.len() < 20 {
            let claims = (0..10).map(|index| stores[index % 2].claim("fake"));
            claimed.extend(futures::future::join_all(claims).await.into_iter().filter_map(|job| job.unwrap()));
        }
        assert!(claimed.iter().all(|job| job.attempt == 1));
        let mut ids: Vec<_> = claimed.into_iter().map(|job| job.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 20);
    })
    .await;
}

#[tokio::test]
async fn whoever_loses_the_lease_can_no_longer_write() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        enqueue(&stores[0], "r", 1, 9).await;
        let slow = claim(&stores[0]).await;
        assert!(stores[0].record(&slow, &events("slow", 0..3)).await.unwrap());
        let before = stores[0].progress(R, None).await.unwrap().unwrap().attempt;
        assert!(is_idle(&stores[1]).await);
        database.expire_leases().await;
        // Whoever is slow but not too late keeps it.
        assert!(stores[0].record(&slow, &events("slow", [3])).await.unwrap());
        assert!(is_idle(&stores[1]).await);

        database.expire_leases().await;
        let new = claim(&stores[1]).await;
        assert_eq!((&*new.id, new.attempt), ("r", 2));
        assert_eq!(said(&stores[0], None).await, (String::new(), false));
        assert_ne!(stores[0].progress(R, None).await.unwrap().unwrap().attempt, before);
        assert_eq!(database.number("SELECT count(*) FROM events").await, 0);
        assert!(!stores[0].record(&slow, &events("slow", [4])).await.unwrap());
        assert!(!finish(&stores[0], &slow, &events("slow", [4])).await);
        stores[0].release(&slow).await.unwrap();
        assert!(is_idle(&stores[0]).await);
        assert!(stores[1].record(&new, &events("new", [0])).await.unwrap());
        assert_eq!(said(&stores[0], None).await, ("new 0".to_owned(), false));
        assert!(finish(&stores[1], &new, &[]).await);
        assert!(!stores[0].record(&slow, &events("slow", [4])).await.unwrap());
        assert_eq!(said(&stores[0], None).await, ("new 0".to_owned(), true));
    })
    .await;
}

#[tokio::test]
async fn a_process_can_lose_a_lease_to_itself() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        enqueue(&store, "r", 1, 9).await;
        let slow = claim(&store).await;
        database.expire_leases().await;
        let new = claim(&store).await;
        assert_eq!(new.attempt, 2);
        assert!(!store.record(&slow, &events("slow", [0])).await.unwrap());
        store.release(&slow).await.unwrap();
        assert!(!finish(&store, &slow, &[]).await);
        assert!(store.record(&new, &events("new", [0])).await.unwrap());
        assert!(finish(&store, &new, &[]).await);
    })
    .await;
}

#[tokio::test]
async fn work_that_is_given_back_was_not_attempted() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        enqueue(&stores[0], "r", 1, 9).await;
        let job = claim(&stores[0]).await;
        assert!(stores[0].record(&job, &events("begun", 0..5)).await.unwrap());
        let before = stores[0].progress(R, None).await.unwrap().unwrap().attempt;
        stores[0].release(&job).await.unwrap();
        assert_eq!(stores[0].num_unfinished().await.unwrap(), 1);
        assert!(!stores[0].record(&job, &events("begun", [5])).await.unwrap());

        let again = claim(&stores[1]).await;
        assert_eq!(again.attempt, 1);
        // Followers learn that it begins anew, and that what they have heard does not hold.
        let now = stores[0].progress(R, None).await.unwrap().unwrap();
        assert!(now.events.is_empty() && now.attempt != before);
        assert!(stores[1].record(&again, &events("anew", 0..2)).await.unwrap());
        assert_eq!(said(&stores[0], None).await, ("anew 0, anew 1".to_owned(), false));
    })
    .await;
}

#[tokio::test]
async fn work_is_cancelled_before_it_begins_and_while_it_is_done() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        enqueue(&stores[0], "before", 1, 9).await;
        assert!(stores[1].cancel(key("ann", "before")).await.unwrap());
        assert!(is_idle(&stores[0]).await);
        assert_eq!(stores[0].response(key("ann", "before")).await.unwrap().unwrap().status, "cancelled");

        enqueue(&stores[0], "r", 2, 9).await;
        let job = claim(&stores[0]).await;
        assert!(stores[0].record(&job, &events("said", [0])).await.unwrap());
        assert!(stores[1].cancel(R).await.unwrap());
        assert!(!stores[1].cancel(R).await.unwrap());
        assert!(!stores[0].record(&job, &events("said", [1])).await.unwrap());
        assert!(!finish(&stores[0], &job, &[]).await);
        stores[0].release(&job).await.unwrap();
        assert!(is_idle(&stores[0]).await);
        assert_eq!(stores[0].response(R).await.unwrap().unwrap().status, "cancelled");
        assert_eq!(said(&stores[0], None).await, ("said 0".to_owned(), true));

        // What is deleted is no longer worked on either.
        enqueue(&stores[0], "deleted", 3, 9).await;
        let job = claim(&stores[0]).await;
        assert!(stores[1].delete_response(key("ann", "deleted")).await.unwrap());
        assert!(!stores[0].record(&job, &events("said", [0])).await.unwrap());
        assert!(!finish(&stores[0], &job, &events("said", [0])).await);
        assert_eq!(database.number("SELECT count(*) FROM events WHERE response_id = 'deleted'").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_follower_reads_much_in_pieces() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        enqueue(&store, "r", 1, 9).await;
        let job = claim(&store).await;
        assert!(finish(&store, &job, &events("said", 0..1000)).await);
        let (mut numbers, mut after) = (Vec::new(), None);
        loop {
            let progress = store.progress(R, after).await.unwrap().unwrap();
            assert!(progress.events.len() <= 256);
            numbers.extend(progress.events.iter().map(|(number, _)| *number));
            after = numbers.last().copied();
            if progress.has_ended {
                break;
            }
        }
        assert_eq!(numbers, Vec::from_iter(0..1000));
    })
    .await;
}

#[tokio::test]
async fn the_end_and_what_a_conversation_gets_are_stored_together_or_not_at_all() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        let conversation = StoredConversation { id: "c".to_owned(), created_at: 1, metadata: "{}".to_owned() };
        store.create_conversation(&conversation, &to("ann", "c", &[])).await.unwrap();
        enqueue(&store, "r", 1, 9).await;
        let job = claim(&store).await;
        let ids = ["msg".to_owned()];
        let response = FinishedResponse { item_ids: &ids, ..finished("ann", "r") };
        let (last, said) = (events("said", [0]), items(&["msg"]));
        assert!(!store.finish(&job, &response, &last, Some(&to("ann", "gone", &said))).await.unwrap());
        assert_eq!(store.response(R).await.unwrap().unwrap().status, "in_progress");
        assert_eq!(store.progress(R, None).await.unwrap().unwrap().events.len(), 0);
        assert!(store.response_with_item(key("ann", "msg")).await.unwrap().is_none());

        assert!(store.finish(&job, &response, &last, Some(&to("ann", "c", &said))).await.unwrap());
        assert_eq!(store.response_with_item(key("ann", "msg")).await.unwrap().unwrap().status, "completed");
        assert!(store.item(key("ann", "c"), "msg").await.unwrap().is_some());
    })
    .await;
}

#[tokio::test]
async fn changes_are_told_at_once_here_and_soon_elsewhere() {
    on_each_database(async |database: &Database| {
        let stores = [database.open().await, database.open().await];
        let (mut here, mut elsewhere, mut other) = (stores[0].changes(), stores[1].changes(), stores[0].changes());
        let mut any = stores[0].changes();
        enqueue(&stores[0], "r", 1, 9).await;
        time::pause();
        let began = Instant::now();
        here.of("r").await;
        any.any().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        elsewhere.of("r").await;
        assert!(began.elapsed().abs_diff(POLL_INTERVAL) < Duration::from_millis(5), "{:?}", began.elapsed());
        let began = Instant::now();
        other.of("s").await;
        any.any().await;
        assert!(began.elapsed().abs_diff(2 * POLL_INTERVAL) < Duration::from_millis(9), "{:?}", began.elapsed());
        time::resume();

        let job = claim(&stores[0]).await;
        let mut here = stores[0].changes();
        for change in ["record", "finish", "delete", "enqueue", "cancel"] {
            match change {
                "record" => drop(stores[0].record(&job, &events("said", [0])).await.unwrap()),
                "finish" => drop(finish(&stores[0], &job, &[]).await),
                "delete" => drop(stores[0].delete_response(R).await.unwrap()),
                "enqueue" => drop(enqueue(&stores[0], "r", 1, 9).await),
                _ => drop(stores[0].cancel(R).await.unwrap()),
            }
            time::pause();
            let began = Instant::now();
            here.of("r").await;
            assert_eq!(began.elapsed(), Duration::ZERO, "{change}");
            time::resume();
        }
    })
    .await;
}

#[tokio::test]
async fn work_for_models_that_nobody_serves_is_found_when_it_is_old() {
    on_each_database(async |database: &Database| {
        let store = database.open().await;
        enqueue(&store, "r", 5, 9).await;
        let unserved = async |served: &[&str], seconds: u64| {
            let found = store.claim_abandoned(served, seconds).await.unwrap();
            found.map(|job| job.id)
        };
        assert_eq!(unserved(&["fake", "other"], 60).await, None, "it is served");
        assert_eq!(unserved(&["other"], u64::MAX).await, None, "it has not waited long");
        assert_eq!(unserved(&["other"], 60).await.as_deref(), Some("r"));
        assert_eq!(unserved(&["other"], 60).await, None, "it is being worked on");
    })
    .await;
}
