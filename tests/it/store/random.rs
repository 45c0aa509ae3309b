//! Whatever is done in whatever order, the store is what a few maps in memory would be.

use super::database::{Database, finished, items, key, to};
use ortolan::store::{FinishedResponse, Job, NewJob, Place, Store, StoreError, StoredConversation};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::collections::BTreeMap;

const TENANTS: [&str; 2] = ["ann", "bob"];
const IDS: [&str; 4] = ["a", "b", "c", "d"];
const MAX_UNFINISHED: usize = 3;

/// Whose it is, and its id.
type Name = (&'static str, &'static str);

/// A step, done through one of two stores.
#[derive(Clone, Debug)]
enum Step {
    Put {
        name: Name,
        previous_id: Option<&'static str>,
        conversation: Option<&'static str>,
    },
    Delete(Name),
    Chain(Name),
    Create(Name),
    Append(Name),
    Page(Name, bool),
    /// Of the items that were ever added.
    DeleteItem(Name, prop::sample::Index),
    DeleteConversation(Name),
    Enqueue(Name),
    Claim,
    ExpireLeases,
    /// Of the jobs that were ever claimed.
    Record(prop::sample::Index),
    Finish(prop::sample::Index),
    Release(prop::sample::Index),
    Cancel(Name),
    Follow(Name),
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let name = || (prop::sample::select(&TENANTS[..]), prop::sample::select(&IDS[..]));
    let id = || prop::option::of(prop::sample::select(&IDS[..]));
    let index = any::<prop::sample::Index>;
    let put = (name(), id(), id()).prop_map(|(name, previous_id, conversation)| Step::Put {
        name,
        previous_id,
        conversation,
    });
    let step = prop_oneof![
        4 => put,
        1 => name().prop_map(Step::Delete),
        2 => name().prop_map(Step::Chain),
        2 => name().prop_map(Step::Create),
        2 => name().prop_map(Step::Append),
        1 => (name(), any::<bool>()).prop_map(|(name, is_ascending)| Step::Page(name, is_ascending)),
        1 => (name(), index()).prop_map(|(name, item)| Step::DeleteItem(name, item)),
        1 => name().prop_map(Step::DeleteConversation),
        3 => name().prop_map(Step::Enqueue),
        3 => Just(Step::Claim),
        1 => Just(Step::ExpireLeases),
        3 => index().prop_map(Step::Record),
        1 => index().prop_map(Step::Finish),
        1 => index().prop_map(Step::Release),
        1 => name().prop_map(Step::Cancel),
        2 => name().prop_map(Step::Follow),
    ];
    vec((0..2usize, step), 1..60)
}

/// What a response should be.
#[derive(Clone, Debug)]
struct Expected {
    previous_id: Option<&'static str>,
    status: &'static str,
    body: String,
    created_at: u64,
    attempt: u64,
    work: Work,
    events: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Work {
    None,
    Waiting,
    /// By which of the jobs, and whether its lease has run out.
    Held(usize, bool),
}

struct Simulation {
    stores: [Store; 2],
    now: u64,
    responses: BTreeMap<Name, Expected>,
    conversations: BTreeMap<Name, Vec<(String, String)>>,
    /// All that were ever added.
    item_ids: Vec<String>,
    /// All that were ever claimed, and through which store.
    jobs: Vec<(usize, Name, Job)>,
}

impl Simulation {
    async fn step(&mut self, database: &Database, through: usize, step: Step) {
        self.now += 1;
        let store = self.stores[through].clone();
        match step {
            Step::Put { name, previous_id, conversation } => self.put(&store, name, previous_id, conversation).await,
            Step::Delete((tenant, id)) => {
                let was_there = self.responses.remove(&(tenant, id)).is_some();
                assert_eq!(store.delete_response(key(tenant, id)).await.unwrap(), was_there);
            }
            Step::Chain(name) => self.chain(&store, name).await,
            Step::Create(name) => self.create(&store, name).await,
            Step::Append(name) => self.append(&store, name).await,
            Step::Page((tenant, id), is_ascending) => {
                let found = store.items(key(tenant, id), is_ascending, None, 99).await.unwrap().unwrap();
                let found = Vec::from_iter(found.into_iter().map(|item| (item.id, item.item)));
                let mut expected = self.conversations.get(&(tenant, id)).cloned().unwrap_or_default();
                if !is_ascending {
                    expected.reverse();
                }
                assert_eq!(found, expected);
            }
            Step::DeleteItem((tenant, id), _) if self.item_ids.is_empty() => {
                assert!(!store.delete_item(key(tenant, id), "none").await.unwrap());
            }
            Step::DeleteItem((tenant, id), item) => {
                let item_id = item.get(&self.item_ids);
                let items = self.conversations.entry((tenant, id));
                let position = |items: &Vec<(String, String)>| items.iter().position(|(id, _)| id == item_id);
                let mut was_there = false;
                items.and_modify(|items| was_there = position(items).map(|index| items.remove(index)).is_some());
                assert_eq!(store.delete_item(key(tenant, id), item_id).await.unwrap(), was_there);
            }
            Step::DeleteConversation((tenant, id)) => {
                let was_there = self.conversations.remove(&(tenant, id)).is_some();
                assert_eq!(store.delete_conversation(key(tenant, id)).await.unwrap(), was_there);
            }
            Step::Enqueue(name) => self.enqueue(&store, name).await,
            Step::Claim => self.claim(through).await,
            Step::ExpireLeases => {
                database.expire_leases().await;
                for response in self.responses.values_mut() {
                    if let Work::Held(_, has_expired) = &mut response.work {
                        *has_expired = true;
                    }
                }
            }
            Step::Record(_) | Step::Finish(_) | Step::Release(_) if self.jobs.is_empty() => {}
            Step::Record(job) => self.record(job.index(self.jobs.len())).await,
            Step::Finish(job) => self.finish(job.index(self.jobs.len())).await,
            Step::Release(job) => self.release(job.index(self.jobs.len())).await,
            Step::Cancel((tenant, id)) => {
                let unfinished = self.responses.get_mut(&(tenant, id)).filter(|found| found.work != Work::None);
                assert_eq!(store.cancel(key(tenant, id)).await.unwrap(), unfinished.is_some());
                if let Some(response) = unfinished {
                    (response.status, response.work) = ("cancelled", Work::None);
                }
            }
            Step::Follow(name) => self.follow(&store, name).await,
        }
    }

    async fn put(
        &mut self,
        store: &Store,
        (tenant, id): Name,
        previous_id: Option<&'static str>,
        conversation: Option<&'static str>,
    ) {
        let body = format!("said at {}", self.now);
        let said = items(&[&format!("{} a", self.now), &format!("{} b", self.now)]);
        let append = conversation.map(|conversation| to(tenant, conversation, &said));
        let response = FinishedResponse { previous_id, body: &body, created_at: self.now, ..finished(tenant, id) };
        let outcome = store.put(Some(&response), append.as_ref()).await;
        let mut conversation = conversation.map(|conversation| self.conversations.get_mut(&(tenant, conversation)));
        if matches!(conversation, Some(None)) {
            return assert!(!outcome.unwrap());
        } else if self.responses.contains_key(&(tenant, id)) {
            return assert!(outcome.is_err());
        }
        assert!(outcome.unwrap());
        if let Some(Some(conversation)) = &mut conversation {
            self.item_ids.extend(said.iter().map(|(id, _)| id.clone()));
            conversation.extend(said);
        }
        let (created_at, work, events) = (self.now, Work::None, Vec::new());
        let expected = Expected { previous_id, status: "completed", body, created_at, attempt: 0, work, events };
        self.responses.insert((tenant, id), expected);
    }

    async fn chain(&self, store: &Store, (tenant, id): Name) {
        let found = store.chain(key(tenant, id)).await;
        let (mut expected, mut next) = (Vec::new(), Some(id));
        while let Some(id) = next {
            let Some(response) = self.responses.get(&(tenant, id)) else { return assert!(found.unwrap().is_none()) };
            if expected.contains(&id) {
                // They go on from each other.
                return assert!(matches!(found, Err(StoreError::TooLong)), "{found:?}");
            }
            expected.insert(0, id);
            next = response.previous_id;
        }
        assert_eq!(Vec::from_iter(found.unwrap().unwrap().into_iter().map(|response| response.id)), expected);
    }

    async fn create(&mut self, store: &Store, (tenant, id): Name) {
        let conversation = StoredConversation { id: id.to_owned(), created_at: self.now, metadata: "{}".to_owned() };
        let said = items(&[&self.now.to_string()]);
        let outcome = store.create_conversation(&conversation, &to(tenant, id, &said)).await;
        assert_eq!(outcome.is_err(), self.conversations.contains_key(&(tenant, id)));
        if outcome.is_ok() {
            self.item_ids.push(said[0].0.clone());
            self.conversations.insert((tenant, id), said);
        }
    }

    async fn append(&mut self, store: &Store, (tenant, id): Name) {
        let said = items(&[&self.now.to_string()]);
        let conversation = self.conversations.get_mut(&(tenant, id));
        assert_eq!(store.append(&to(tenant, id, &said)).await.unwrap(), conversation.is_some());
        if let Some(conversation) = conversation {
            self.item_ids.push(said[0].0.clone());
            conversation.extend(said);
        }
        let all = store.all_items(key(tenant, id)).await.unwrap();
        let all = all.map(|items| items.into_iter().map(|item| (item.id, item.item)).collect::<Vec<_>>());
        assert_eq!(all.as_ref(), self.conversations.get(&(tenant, id)));
    }

    async fn enqueue(&mut self, store: &Store, (tenant, id): Name) {
        if self.jobs.iter().any(|(_, name, _)| *name == (tenant, id)) {
            // Ids are random numbers, so that none comes twice.
            return;
        }
        let response =
            FinishedResponse { status: "queued", body: "queued", created_at: self.now, ..finished(tenant, id) };
        let job = NewJob { response, request: "{}", max_unfinished: MAX_UNFINISHED as u64 };
        let outcome = store.enqueue(&job).await;
        let num_unfinished = self.responses.values().filter(|response| response.work != Work::None).count();
        if MAX_UNFINISHED <= num_unfinished {
            return assert_eq!(outcome.unwrap(), Place::Full);
        } else if self.responses.contains_key(&(tenant, id)) {
            return assert!(outcome.is_err());
        }
        assert_eq!(outcome.unwrap(), Place::Stored);
        let expected = Expected {
            previous_id: None,
            status: "queued",
            body: "queued".to_owned(),
            created_at: self.now,
            attempt: 0,
            work: Work::Waiting,
            events: Vec::new(),
        };
        self.responses.insert((tenant, id), expected);
    }

    async fn claim(&mut self, through: usize) {
        let is_free = |response: &Expected| matches!(response.work, Work::Waiting | Work::Held(_, true));
        let is_active = |response: &Expected| matches!(response.work, Work::Held(_, false));
        let mut active = BTreeMap::<&str, usize>::new();
        for ((tenant, _), _) in self.responses.iter().filter(|(_, response)| is_active(response)) {
            *active.entry(tenant).or_default() += 1;
        }
        // Whoever has the least under way comes first.
        let turn = |tenant: &str, response: &Expected| (active.get(tenant).copied().unwrap_or(0), response.created_at);
        let free = self.responses.iter_mut().filter(|(_, response)| is_free(response));
        let oldest = free.min_by_key(|((tenant, _), response)| turn(tenant, response));
        let claimed = self.stores[through].claim("fake").await.unwrap();
        assert_eq!(claimed.is_some(), oldest.is_some());
        if let (Some(job), Some((name, response))) = (claimed, oldest) {
            response.attempt += 1;
            response.status = "in_progress";
            response.work = Work::Held(self.jobs.len(), false);
            response.events.clear();
            let found = (&*job.tenant, &*job.id, job.created_at, job.attempt);
            assert_eq!(found, (name.0, name.1, response.created_at, response.attempt));
            self.jobs.push((through, *name, job));
        }
    }

    /// The response that a job has the right to.
    fn held(&mut self, index: usize) -> Option<&mut Expected> {
        let (_, name, _) = &self.jobs[index];
        self.responses.get_mut(name).filter(|response| matches!(response.work, Work::Held(by, _) if by == index))
    }

    async fn record(&mut self, index: usize) {
        let (through, _, job) = self.jobs[index].clone();
        let text = self.now.to_string();
        let is_ours = self.stores[through].record(&job, &[(self.now, text.clone())]).await.unwrap();
        let held = self.held(index);
        assert_eq!(is_ours, held.is_some());
        if let Some(response) = held {
            response.events.push(text);
            response.work = Work::Held(index, false);
        }
    }

    async fn finish(&mut self, index: usize) {
        let (through, (tenant, id), job) = self.jobs[index].clone();
        let body = self.now.to_string();
        let response = FinishedResponse { body: &body, ..finished(tenant, id) };
        let is_ours = self.stores[through].finish(&job, &response, &[], None).await.unwrap();
        let held = self.held(index);
        assert_eq!(is_ours, held.is_some());
        if let Some(response) = held {
            (response.status, response.body, response.work) = ("completed", body, Work::None);
        }
    }

    async fn release(&mut self, index: usize) {
        let (through, _, job) = self.jobs[index].clone();
        self.stores[through].release(&job).await.unwrap();
        if let Some(response) = self.held(index) {
            response.work = Work::Waiting;
            response.attempt -= 1;
        }
    }

    async fn follow(&self, store: &Store, name: Name) {
        let progress = store.progress(key(name.0, name.1), None).await.unwrap();
        let expected = self.responses.get(&name);
        assert_eq!(progress.is_some(), expected.is_some());
        if let (Some(progress), Some(expected)) = (progress, expected) {
            let texts = Vec::from_iter(progress.events.into_iter().map(|(_, text)| text));
            assert_eq!((texts, progress.has_ended), (expected.events.clone(), expected.work == Work::None));
        }
    }

    /// Everything, through both stores.
    async fn compare(&self) {
        for (store, tenant, id) in self
            .stores
            .iter()
            .flat_map(|store| TENANTS.iter().flat_map(move |tenant| IDS.iter().map(move |id| (store, *tenant, *id))))
        {
            let found = store.response(key(tenant, id)).await.unwrap();
            let found = found.map(|found| (found.status, found.body));
            let expected = self.responses.get(&(tenant, id));
            assert_eq!(found, expected.map(|expected| (expected.status.to_owned(), expected.body.clone())));
            self.follow(store, (tenant, id)).await;
            self.chain(store, (tenant, id)).await;
            let found = store.conversation(key(tenant, id)).await.unwrap();
            assert_eq!(found.is_some(), self.conversations.contains_key(&(tenant, id)));
        }
    }
}

fn run(num_cases: u32, database: impl AsyncFn() -> Option<Database>) {
    let config = Config { cases: num_cases, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(async {
            let Some(database) = database().await else { return };
            let stores = [database.open().await, database.open().await];
            let mut simulation = Simulation {
                stores,
                now: 0,
                responses: BTreeMap::new(),
                conversations: BTreeMap::new(),
                item_ids: Vec::new(),
                jobs: Vec::new(),
            };
            for (through, step) in steps {
                simulation.step(&database, through, step).await;
            }
            simulation.compare().await;
            drop(simulation);
            database.remove().await;
        });
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn on_sqlite_the_store_is_what_maps_would_be() {
    run(60, async || Some(Database::sqlite()));
}

#[test]
fn on_postgres_the_store_is_what_maps_would_be() {
    run(15, Database::postgres);
}
