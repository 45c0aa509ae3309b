//! From a request's body to the events of its reply, with all that it goes on from and all that is kept of it.

use super::{
    compaction::{Compaction, compact_beyond, encode_compaction, summary_request, take_trigger},
    config::Dialect,
    conversations::check_ids,
    encoder::EncodeOptions,
    error::{InvalidRequest, Kind, ResponsesError},
    event::ResponseEvent,
    field::Field,
    history,
    items::normalize_input,
    keeping::{Keeping, Record, output_items},
    origin::Origin,
    request::{CreateResponse, UnknownFields},
    response::{Response, Status},
    stream::{encode, last_response},
};
use crate::{
    chat::{ChatRequest, Lease, Models},
    engine::SamplingParams,
    store::{Job, Key, NewJob, Place, Store, StoreError},
};
use futures::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::LocalBoxStream,
};
use serde_json::Value;
use std::{
    borrow::Cow,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Semaphore;

/// Of what a connection remembers: far more than fits a model's context, unless a request truncates.
const MAX_MEMORY_BYTES: usize = 16 * 1024 * 1024;
/// Histories that are read at once.
const MAX_HISTORIES: usize = 4;
/// Of all items that the references of one request are put in the place of.
const MAX_REFERRED_BYTES: usize = 1024 * 1024;
/// References to items that one request may hold.
const MAX_REFERENCES: usize = 256;

/// Answers requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Responder {
    pub(super) models: Models,
    pub(super) dialect: Dialect,
    pub(super) store: Option<Store>,
    pub(super) unknown_fields: UnknownFields,
    /// Unknown to clients, so that none can make a salt that is another's.
    salts: RandomState,
    is_draining: Arc<AtomicBool>,
    is_stopping: Arc<AtomicBool>,
    /// A permit for each history that may be read at once: they may be large, and come before any other limit.
    histories: Arc<Semaphore>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Owner {
    /// To whom all belongs that is kept.
    pub tenant: Arc<str>,
    /// Only requests with the same salt share what is cached.
    pub cache_salt: u64,
}

/// What a connection knows of the response before, whether or not it was kept.
#[derive(Clone, Debug)]
pub struct Memory {
    id: String,
    items: Vec<Value>,
    is_stored: bool,
}

impl Memory {
    /// Of a response that has ended, what it went on from and what it was asked. None where that is too much.
    pub fn new(response: &Response, history: Vec<Value>, input: &[Value]) -> Option<Self> {
        let mut said = history;
        said.extend_from_slice(input);
        said.extend(output_items(response));
        let items = history::from_last_compaction(said);
        let num_bytes: usize = items.iter().map(|item| item.to_string().len()).sum();
        (num_bytes <= MAX_MEMORY_BYTES).then(|| Self { id: response.id.clone(), items, is_stored: response.store })
    }

    /// Of the response.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// What a request has led to.
pub enum Turn {
    /// A reply that comes.
    Reply {
        /// The served model.
        model: String,
        /// Ends with exactly one terminal event.
        events: LocalBoxStream<'static, ResponseEvent>,
        /// Whether the client wants the events themselves.
        is_streamed: bool,
        /// What it goes on from.
        history: Vec<Value>,
        /// The request's own items.
        input: Arc<[Value]>,
    },
    /// Work that nobody waits for, which is kept.
    Background {
        /// The served model.
        model: String,
        /// The response object as it begins.
        response: Box<Response>,
        /// Whether the client wants to follow it.
        is_streamed: bool,
    },
}

/// A request that was found good.
struct Draft {
    body: CreateResponse,
    history: Vec<Value>,
    input: Arc<[Value]>,
    origin: Origin,
    is_compaction: bool,
}

/// A request whose model is there.
pub struct Prepared {
    /// On the model.
    pub lease: Lease,
    /// As it begins.
    pub response: Response,
    /// What the chat is asked.
    pub request: ChatRequest,
    draft: Prelude,
}

/// What of a request the encoder needs.
struct Prelude {
    options: EncodeOptions,
    compact_threshold: Option<usize>,
    is_compaction: bool,
}

impl Responder {
    /// Keeps nothing where there is no store.
    pub fn new(models: Models, dialect: Dialect, store: Option<Store>, unknown_fields: UnknownFields) -> Self {
        Self {
            models,
            dialect,
            store,
            unknown_fields,
            salts: RandomState::new(),
            is_draining: Arc::default(),
            is_stopping: Arc::default(),
            histories: Arc::new(Semaphore::new(MAX_HISTORIES)),
        }
    }

    /// What is kept, if anything.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// The salt of all who share what is hashed.
    pub fn cache_salt(&self, who: impl Hash) -> u64 {
        self.salts.hash_one(who)
    }

    /// From now on nothing new is begun in the background, and what has ended so far is all.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// From now on those who follow are told that the process ends.
    pub fn stop(&self) {
        self.drain();
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Begins a reply, or keeps the request where its reply is to be written in the background. `memory` is what the
    /// connection knows.
    ///
    /// # Errors
    /// Before anything is said.
    pub async fn start(&self, owner: &Owner, body: Value, memory: Option<&Memory>) -> Result<Turn, ResponsesError> {
        let request = body.get("background").is_some_and(|background| background == true).then(|| body.to_string());
        let mut draft = self.draft(owner, body, memory).await?;
        let is_stored = self.is_stored(&draft.body)?;
        let is_kept = is_stored || draft.origin.conversation_id().is_some();
        if let Some(store) = self.store.as_ref().filter(|_| is_kept) {
            store.check_room().await?;
        }
        if let Some(request) = request {
            return self.enqueue(owner, draft, &request).await;
        }
        let is_streamed = draft.body.stream();
        let is_known = |memory: &&Memory| !memory.is_stored && draft.origin.previous_id() == Some(&memory.id);
        let unstored = memory.filter(is_known).map(|memory| memory.items.as_slice());
        let keeping = self.store.as_ref().filter(|_| is_kept).map(|store| Keeping {
            store: store.clone(),
            tenant: Arc::clone(&owner.tenant),
            input: unstored.map_or_else(|| Arc::clone(&draft.input), |said| [said, &draft.input].concat().into()),
            is_stored,
            has_stored_parent: unstored.is_none(),
        });
        let (history, input) = (std::mem::take(&mut draft.history), Arc::clone(&draft.input));
        let mut prepared = self.prepare_draft(owner, draft).await?;
        prepared.response.store = is_stored;
        let model = prepared.response.model.clone();
        let events = self.encode(prepared).await?;
        let events = match keeping {
            Some(keeping) => keeping.keep(events).boxed_local(),
            None => events,
        };
        Ok(Turn::Reply { model, events, is_streamed, history, input })
    }

    /// Reads a request and waits for its model.
    ///
    /// # Errors
    /// As for a reply.
    pub async fn prepare(&self, owner: &Owner, body: Value) -> Result<Prepared, ResponsesError> {
        let draft = self.draft(owner, body, None).await?;
        self.prepare_draft(owner, draft).await
    }

    /// A window of items to go on from, in place of all that was said, and the response that it is made of.
    ///
    /// # Errors
    /// As for a reply; the response may have failed.
    pub async fn compact(&self, owner: &Owner, body: Value) -> Result<(Compaction, Response), ResponsesError> {
        let draft = self.draft(owner, body, None).await?;
        if draft.body.model().is_none() {
            // The protocol wants it here, and nowhere else.
            return Err(InvalidRequest::missing("model").into());
        }
        let said: Vec<Value> = draft.history.iter().chain(&*draft.input).cloned().collect();
        let mut prepared = self.prepare_draft(owner, draft).await?;
        prepared.draft.is_compaction = true;
        let response = last_response(self.encode(prepared).await?).await;
        Ok((Compaction::new(&said, &response), response))
    }

    /// The reply to a request that was kept, under the id that it was given. Its terminal event is not kept yet.
    pub(super) async fn start_job(
        &self,
        owner: &Owner,
        job: &Job,
    ) -> Result<LocalBoxStream<'static, ResponseEvent>, ResponsesError> {
        let body = history::read_object(&job.id, &job.request)?;
        let draft = self.draft(owner, body, None).await?;
        let mut prepared = self.prepare_draft(owner, draft).await?;
        let Response { id, created_at, store, status, .. } = &mut prepared.response;
        (*id, *created_at, *store, *status) = (job.id.clone(), job.created_at, true, Status::Queued);
        prepared.draft.options.first_number = job.first_number();
        self.encode(prepared).await
    }

    /// Whether the response is kept: so the protocol has it, unless it is told otherwise.
    fn is_stored(&self, body: &CreateResponse) -> Result<bool, InvalidRequest> {
        let asked = body.store();
        if self.store.is_none() && (asked == Some(true) || body.background()) {
            let name = if body.background() { "background" } else { "store" };
            let why = "this server keeps nothing (`store.enabled` is false); send `store: false`";
            return Err(InvalidRequest::unsupported_parameter(name, why));
        }
        Ok(asked.unwrap_or(self.store.is_some()))
    }

    async fn draft(&self, owner: &Owner, mut body: Value, memory: Option<&Memory>) -> Result<Draft, ResponsesError> {
        self.dialect.resolve(&mut body)?;
        let is_compaction = take_trigger(&mut body);
        let origin = Origin::parse(&Field::root(&body).object()?)?;
        // Who goes on from nothing waits for nobody.
        let _permit = match origin {
            Origin::Nothing => None,
            Origin::Response(_) | Origin::Conversation(_) => self.histories.acquire().await.ok(),
        };
        let mut history = self.history(owner, &origin, memory, &body).await?;
        self.dialect.open(&mut history);
        self.resolve_references(owner, &history, &mut body).await?;
        let request = CreateResponse::parse_after(&history, &body, self.unknown_fields)?;
        let input = normalize_input(body.get_mut("input").map(Value::take).unwrap_or_default());
        Ok(Draft { body: request, history, input: input.into(), origin, is_compaction })
    }

    async fn prepare_draft(&self, owner: &Owner, draft: Draft) -> Result<Prepared, ResponsesError> {
        let Draft { body, is_compaction, .. } = draft;
        let options = self.dialect.encode_options(body.reply_options());
        let compact_threshold = body.compact_threshold();
        let model = self.models.get(body.model())?;
        let lease = model.lease().await?;
        let (response, request) = body.begin(model.name(), lease.default_sampling());
        let request = ChatRequest { cache_salt: owner.cache_salt, ..request };
        Ok(Prepared { lease, response, request, draft: Prelude { options, compact_threshold, is_compaction } })
    }

    /// The events of a reply, which are told as the request wants it.
    async fn encode(&self, prepared: Prepared) -> Result<LocalBoxStream<'static, ResponseEvent>, ResponsesError> {
        let Prepared { lease, response, mut request, draft } = prepared;
        let Prelude { mut options, compact_threshold, is_compaction } = draft;
        if is_compaction {
            let chat = lease.start(summary_request(request)).await?;
            return Ok(encode_compaction(response, options, self.dialect.clone(), chat).boxed_local());
        }
        if let Some(threshold) = compact_threshold {
            let summary = compact_beyond(threshold, &lease, &mut request).await?;
            options.compaction = summary.map(|summary| self.dialect.seal_compaction(&summary));
        }
        Ok(encode(response, options, lease.start(request).await?).boxed_local())
    }

    /// Keeps a request for whoever comes to it first.
    async fn enqueue(&self, owner: &Owner, draft: Draft, request: &str) -> Result<Turn, ResponsesError> {
        let store = self.store.as_ref().expect("a background response is stored");
        let is_streamed = draft.body.stream();
        let model = self.models.get(draft.body.model())?.name().to_owned();
        let (mut response, _) = draft.body.begin(&model, &SamplingParams::default());
        (response.status, response.store) = (Status::Queued, true);
        let record = Record::new(&owner.tenant, &response, &draft.input);
        let max_unfinished = self.dialect.max_background();
        let job = NewJob { response: record.finished(), request, max_unfinished };
        match store.enqueue(&job).await? {
            Place::Full => Err(ResponsesError::BackgroundFull { max: max_unfinished }),
            Place::Stored => Ok(Turn::Background { model, response: Box::new(response), is_streamed }),
        }
    }

    async fn history(
        &self,
        owner: &Owner,
        origin: &Origin,
        memory: Option<&Memory>,
        body: &Value,
    ) -> Result<Vec<Value>, ResponsesError> {
        match origin {
            Origin::Nothing => Ok(Vec::new()),
            // What was stored may have been deleted since.
            Origin::Response(id) => match memory.filter(|memory| memory.id == *id && !memory.is_stored) {
                Some(memory) => Ok(memory.items.clone()),
                None => self.stored_chain(owner, id).await,
            },
            Origin::Conversation(id) => {
                let Some(store) = &self.store else {
                    let why =
                        "this server keeps nothing (`store.enabled` is false); send the whole conversation as `input`";
                    return Err(InvalidRequest::unsupported_parameter("conversation", why).into());
                };
                let items = store.all_items(Key { tenant: &owner.tenant, id }).await?;
                let items = items.ok_or_else(|| ResponsesError::not_found(Kind::Conversation, id))?;
                check_ids(items.iter().map(|item| item.id.as_str()), "input", &body["input"])?;
                history::of_conversation(&items)
            }
        }
    }

    async fn stored_chain(&self, owner: &Owner, id: &str) -> Result<Vec<Value>, ResponsesError> {
        let missing = || ResponsesError::previous_not_found(id);
        let store = self.store.as_ref().ok_or_else(missing)?;
        let chain = store.chain(Key { tenant: &owner.tenant, id }).await?.ok_or_else(missing)?;
        if chain.last().is_some_and(|last| last.status == "queued" || last.status == "in_progress") {
            let why = "names a response that has not ended; wait for it or cancel it";
            return Err(InvalidRequest::invalid("previous_response_id", why).into());
        }
        history::of_chain(&chain)
    }

    /// Puts items in the place of references to them: items of the history, and of stored outputs.
    async fn resolve_references(
        &self,
        owner: &Owner,
        history: &[Value],
        body: &mut Value,
    ) -> Result<(), ResponsesError> {
        let items = body.get_mut("input").and_then(Value::as_array_mut).map_or(&mut [][..], Vec::as_mut_slice);
        let (mut num_references, mut num_bytes) = (0, 0);
        for (index, item) in items.iter_mut().enumerate() {
            let Some(id) = referred(item).map(str::to_owned) else { continue };
            num_references += 1;
            if MAX_REFERENCES < num_references {
                let why = format!("holds more than {MAX_REFERENCES} references to items, which is the limit");
                return Err(InvalidRequest::invalid(&format!("input[{index}]"), why).into());
            }
            let known = history.iter().find(|known| known["id"] == id.as_str());
            let found = match (known, &self.store) {
                (Some(known), _) => Cow::Borrowed(known),
                (None, Some(store)) => {
                    let found = stored_item(store, &owner.tenant, &id).await?;
                    Cow::Owned(found.ok_or_else(|| ResponsesError::not_found(Kind::Item, &id))?)
                }
                (None, None) => continue,
            };
            num_bytes += found.to_string().len();
            if MAX_REFERRED_BYTES < num_bytes {
                let why = format!("refers to items of more than {MAX_REFERRED_BYTES} bytes, all together; send fewer");
                return Err(InvalidRequest::invalid(&format!("input[{index}]"), why).into());
            }
            *item = found.into_owned();
            self.dialect.open(std::slice::from_mut(item));
        }
        Ok(())
    }
}

/// The id that an item refers to, if it is nothing but a reference.
fn referred(item: &Value) -> Option<&str> {
    let is_untyped = item["type"].is_null() && item["role"].is_null();
    item["id"].as_str().filter(|_| is_untyped || item["type"] == "item_reference")
}

fn stored_item<'a>(
    store: &'a Store,
    tenant: &'a str,
    id: &'a str,
) -> BoxFuture<'a, Result<Option<Value>, ResponsesError>> {
    async move {
        let Some(response) = store.response_with_item(Key { tenant, id }).await? else { return Ok(None) };
        let mut body = history::read_object(&response.id, &response.body)?;
        let Value::Array(output) = body["output"].take() else {
            return Err(StoreError::Corrupt { id: response.id }.into());
        };
        Ok(output.into_iter().find(|item| item["id"] == id))
    }
    .boxed()
}
