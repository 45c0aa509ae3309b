//! `GET /v1/responses` as a WebSocket: the same requests and events as over HTTP, one JSON text in each message, one reply
//! after the other. The connection remembers its last response, so the next request can go on from it though nothing is kept.

use super::{
    ApiError, AppState,
    auth::{Caller, caller},
    limits::{Admission, Estimate},
};
use crate::responses::{Memory, Owner, ResponseEvent, Turn, WireEvent};
use actix_web::{HttpRequest, HttpResponse, ResponseError, http::header, rt, web};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, ProtocolError, Session};
use futures::{
    FutureExt, StreamExt,
    stream::{self, LocalBoxStream},
};
use serde_json::{Value, json};
use std::{collections::VecDeque, io::ErrorKind, ops::ControlFlow, sync::Arc, time::Duration};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Interval, MissedTickBehavior, error::Elapsed, interval, timeout},
};
use url::Url;

/// Requests that may wait for their turn on one connection, if they are small.
const MAX_WAITING: usize = 16;
/// What a client gets to take one message.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Without any sign of life for so long, a client is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How often the clock and the server's state are looked at.
const TICK: Duration = Duration::from_millis(500);
const MAX_LANE_CHARS: usize = 256;

/// One client.
struct Connection {
    app: web::Data<AppState>,
    caller: Caller,
    owner: Owner,
    session: Session,
    waiting: VecDeque<Request>,
    turn: Option<RunningTurn>,
    memory: Option<Memory>,
    opened: Instant,
    last_heard: Instant,
    last_ping: Instant,
    _place: OwnedSemaphorePermit,
}

/// What a client asked for.
struct Request {
    lane: Option<String>,
    body: Value,
    num_bytes: usize,
}

struct RunningTurn {
    lane: Option<String>,
    /// What it goes on from.
    previous_id: Option<String>,
    /// Held until it ends.
    admission: Option<Admission>,
    /// What was said before the reply.
    said: (Vec<Value>, Arc<[Value]>),
    steps: LocalBoxStream<'static, Step>,
}

/// What comes of a request.
enum Step {
    Begun { history: Vec<Value>, input: Arc<[Value]> },
    Event(Box<ResponseEvent>),
    Refused(ApiError),
}

/// From now on the connection lives by itself.
pub(super) async fn upgrade(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    app.refuse_while_draining()?;
    check_origin(&app, &request)?;
    let place = app.websockets.clone().try_acquire_owned();
    let place = place.map_err(|_| ApiError::TooManyWebSockets { max: app.config.max_websockets.get() })?;
    let (response, session, messages) =
        actix_ws::handle(&request, payload).map_err(|error| ApiError::NoWebSocket { message: error.to_string() })?;
    let max_bytes = app.config.max_body_bytes.get();
    let messages = messages.max_frame_size(max_bytes).aggregate_continuations().max_continuation_size(max_bytes);
    let now = Instant::now();
    let connection = Connection {
        caller: caller(&request),
        owner: app.owner(&request),
        app,
        session,
        waiting: VecDeque::new(),
        turn: None,
        memory: None,
        opened: now,
        last_heard: now,
        last_ping: now,
        _place: place,
    };
    rt::spawn(connection.run(messages));
    Ok(response)
}

/// A browser lets any page connect to any address, and says which page it was.
fn check_origin(app: &AppState, request: &HttpRequest) -> Result<(), ApiError> {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let is_own = Url::parse(origin).is_ok_and(|url| {
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
    });
    if is_own || app.config.allowed_origins.iter().any(|allowed| allowed == origin) {
        return Ok(());
    }
    const MAX_ORIGIN_CHARS: usize = 256;
    Err(ApiError::UnknownOrigin { origin: origin.chars().take(MAX_ORIGIN_CHARS).collect() })
}

impl Connection {
    /// Dropping it cancels what runs.
    async fn run(mut self, mut messages: AggregatedMessageStream) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            self.begin_next();
            match self.step(&mut messages, &mut ticks).await {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(reason) => break reason,
            }
        };
        // Cancelled before the farewell, which a client that is gone would hold up.
        self.turn = None;
        let _gone = timeout(SEND_TIMEOUT, self.session.close(reason)).await;
    }

    /// Waits for whatever comes first.
    async fn step(
        &mut self,
        messages: &mut AggregatedMessageStream,
        ticks: &mut Interval,
    ) -> ControlFlow<Option<CloseReason>> {
        let running = self.turn.as_mut().map(|turn| turn.steps.next());
        let step = async {
            match running {
                Some(next) => next.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            step = step => self.on_step(step).await,
            message = messages.recv() => {
                self.last_heard = Instant::now();
                self.on_message(message).await
            }
            _ = ticks.tick() => self.on_tick().await,
        }
    }

    fn begin_next(&mut self) {
        if self.turn.is_some() {
            return;
        }
        let Some(Request { lane, body, .. }) = self.waiting.pop_front() else { return };
        let previous_id = body["previous_response_id"].as_str().map(str::to_owned);
        let (app, owner, memory) = (self.app.clone(), self.owner.clone(), self.memory.clone());
        let (admission, refusal) = match self.caller.admit(Estimate::new(&body)) {
            Ok(admission) => (Some(admission), None),
            Err(error) => (None, Some(error)),
        };
        let steps = async move {
            let started = match refusal {
                None => start(&app, &owner, body, memory.as_ref()).await,
                Some(error) => Err(error),
            };
            match started {
                Ok((begun, events)) => {
                    let events = events.map(|event| Step::Event(Box::new(event)));
                    stream::iter([begun]).chain(events).boxed_local()
                }
                Err(error) => stream::iter([Step::Refused(error)]).boxed_local(),
            }
        };
        let steps = steps.flatten_stream().boxed_local();
        self.turn = Some(RunningTurn { lane, previous_id, admission, said: Default::default(), steps });
    }

    async fn on_step(&mut self, step: Option<Step>) -> ControlFlow<Option<CloseReason>> {
        let turn = self.turn.as_mut().expect("a step is one of a turn");
        let lane = turn.lane.clone();
        match step {
            Some(Step::Begun { history, input }) => {
                turn.said = (history, input);
                ControlFlow::Continue(())
            }
            Some(Step::Event(event)) => {
                turn.admission.iter_mut().for_each(|admission| admission.follow(&event));
                if let Some(response) = event.final_response() {
                    let ((history, input), previous_id) = (std::mem::take(&mut turn.said), turn.previous_id.take());
                    tracing::info!(id = response.id(), finish = response.status().name(), "WebSocket reply");
                    if response.failure().is_none() {
                        self.memory = Memory::new(response, history, &input);
                    } else {
                        self.forget(previous_id);
                    }
                }
                self.send(WireEvent::from(*event).json, lane.as_deref()).await
            }
            Some(Step::Refused(error)) => {
                let previous_id = turn.previous_id.take();
                self.forget(previous_id);
                self.refuse(&error, lane.as_deref()).await
            }
            None => {
                self.turn = None;
                ControlFlow::Continue(())
            }
        }
    }

    /// A request that failed to go on from a response is not to be tried again with what the connection knew of it.
    fn forget(&mut self, previous_id: Option<String>) {
        self.memory.take_if(|memory| previous_id.is_some_and(|id| id == memory.id()));
    }

    async fn on_message(
        &mut self,
        message: Option<Result<AggregatedMessage, ProtocolError>>,
    ) -> ControlFlow<Option<CloseReason>> {
        let close = |code: CloseCode, why: &str| ControlFlow::Break(Some((code, why).into()));
        match message {
            Some(Ok(AggregatedMessage::Text(text))) => match self.receive(&text) {
                Ok(Some(answer)) => self.send(answer, None).await,
                Ok(None) => ControlFlow::Continue(()),
                Err((error, lane)) => self.refuse(&error, lane.as_deref()).await,
            },
            Some(Ok(AggregatedMessage::Binary(_))) => close(CloseCode::Unsupported, "send JSON in text messages"),
            Some(Ok(AggregatedMessage::Ping(bytes))) => sent(timeout(SEND_TIMEOUT, self.session.pong(&bytes)).await),
            Some(Ok(AggregatedMessage::Pong(_))) => ControlFlow::Continue(()),
            Some(Ok(AggregatedMessage::Close(reason))) => ControlFlow::Break(reason),
            Some(Err(ProtocolError::Io(error))) if error.kind() == ErrorKind::InvalidData => {
                close(CloseCode::Invalid, "the text is not UTF-8")
            }
            // The second is what it is called when the pieces of a message are too large together; where the connection is
            // broken, nobody hears this.
            Some(Err(ProtocolError::Overflow | ProtocolError::Io(_))) => {
                close(CloseCode::Size, "the message is larger than the limit")
            }
            Some(Err(_)) => close(CloseCode::Protocol, "the message is not framed as it should be"),
            None => ControlFlow::Break(None),
        }
    }

    /// All that wait may be as large as one body, and one may always wait.
    fn has_room(&self, num_bytes: usize) -> bool {
        let waiting: usize = self.waiting.iter().map(|request| request.num_bytes).sum();
        let is_small = waiting + num_bytes <= self.app.config.max_body_bytes.get();
        self.waiting.is_empty() || self.waiting.len() < MAX_WAITING && is_small
    }

    /// Queues a request, or gives the answer to what is none.
    fn receive(&mut self, text: &str) -> Result<Option<String>, (ApiError, Option<String>)> {
        let mut body: Value = serde_json::from_str(text).map_err(|error| (ApiError::MalformedJson(error), None))?;
        let lane = take_lane(&mut body).map_err(|error| (error, None))?;
        let error = match body["type"].as_str() {
            Some("response.create") => match check(&mut body) {
                Ok(()) if self.has_room(text.len()) => {
                    self.waiting.push_back(Request { lane, body, num_bytes: text.len() });
                    return Ok(None);
                }
                Ok(()) => ApiError::TooManyTurns { max: MAX_WAITING },
                Err(error) => error,
            },
            Some("response.steer") => return Ok(Some(refuse_steering(&body))),
            Some(_) | None => ApiError::UnknownClientEvent,
        };
        Err((error, lane))
    }

    async fn on_tick(&mut self) -> ControlFlow<Option<CloseReason>> {
        let is_idle = self.turn.is_none() && self.waiting.is_empty();
        if self.app.is_draining() && (is_idle || self.app.responder.is_stopping()) {
            return ControlFlow::Break(Some((CloseCode::Away, "the server is shutting down").into()));
        }
        let limit = self.app.config.websocket_timeout();
        if limit <= self.opened.elapsed() {
            let error = ApiError::WebSocketTooOld { seconds: limit.as_secs() };
            let _closed = self.send(envelope(&error), None).await;
            return ControlFlow::Break(Some((CloseCode::Policy, "the connection has reached its time limit").into()));
        }
        if SILENCE_LIMIT <= self.last_heard.elapsed() {
            return ControlFlow::Break(None);
        }
        if PING_INTERVAL <= self.last_ping.elapsed() {
            self.last_ping = Instant::now();
            return sent(timeout(SEND_TIMEOUT, self.session.ping(b"")).await);
        }
        ControlFlow::Continue(())
    }

    async fn refuse(&mut self, error: &ApiError, lane: Option<&str>) -> ControlFlow<Option<CloseReason>> {
        self.app.metrics.count_rejection(error.code());
        self.send(envelope(error), lane).await
    }

    async fn send(&mut self, mut json: String, lane: Option<&str>) -> ControlFlow<Option<CloseReason>> {
        if let Some(lane) = lane {
            // It has only letters that need no escape.
            json.pop();
            json.push_str(&format!(",\"stream_id\":\"{lane}\"}}"));
        }
        sent(timeout(SEND_TIMEOUT, self.session.text(json)).await)
    }
}

/// A client that takes nothing is gone.
fn sent(outcome: Result<Result<(), Closed>, Elapsed>) -> ControlFlow<Option<CloseReason>> {
    match outcome {
        Ok(Ok(())) => ControlFlow::Continue(()),
        Ok(Err(Closed)) | Err(_) => ControlFlow::Break(None),
    }
}

async fn start(
    app: &AppState,
    owner: &Owner,
    body: Value,
    memory: Option<&Memory>,
) -> Result<(Step, LocalBoxStream<'static, ResponseEvent>), ApiError> {
    app.refuse_while_draining()?;
    match app.responder.start(owner, body, memory).await? {
        Turn::Reply { events, history, input, .. } => Ok((Step::Begun { history, input }, events)),
        Turn::Background { .. } => unreachable!("such a request was refused"),
    }
}

/// What HTTP decides by request is fixed here.
fn check(body: &mut Value) -> Result<(), ApiError> {
    let body = body.as_object_mut().expect("it has a type");
    for name in ["stream", "stream_options", "background"] {
        if body.contains_key(name) {
            return Err(ApiError::NotOverWebSocket { name });
        }
    }
    body.remove("type");
    Ok(())
}

fn take_lane(body: &mut Value) -> Result<Option<String>, ApiError> {
    let Some(lane) = body.as_object_mut().and_then(|body| body.remove("stream_id")) else { return Ok(None) };
    let is_good = |lane: &&str| {
        (1..=MAX_LANE_CHARS).contains(&lane.len())
            && lane.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    let lane = lane.as_str().filter(is_good);
    lane.map(|lane| Some(lane.to_owned())).ok_or(ApiError::InvalidLane { max_chars: MAX_LANE_CHARS })
}

fn refuse_steering(body: &Value) -> String {
    let error = json!({
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "a reply cannot be steered while it is written; send the input with the next `response.create`",
    });
    let steer = json!({ "previous_response_id": body["previous_response_id"], "input": body["input"] });
    json!({ "type": "response.steer.failed", "sequence_number": 0, "error": error, "steer": steer }).to_string()
}

/// An error that is the answer to a request.
fn envelope(error: &ApiError) -> String {
    let mut envelope = json!({ "type": "error", "status": error.status_code().as_u16(), "sequence_number": 0 });
    envelope["error"] = error.body();
    envelope.to_string()
}
