//! The body of `POST /v1/chat/completions`: read, checked, and turned into what chats are asked.

use super::{CompletionRequest, messages::parse_messages};
use crate::{
    chat::{CallMode, Calls, ChatRequest, Message, OutputFormat, Tool},
    engine::{SamplingParams, ServiceClass},
    responses::{
        Field, InvalidRequest, Labels, MAX_TOP_LOGPROBS, Object, Reasoning, Sampling, TextFormat, ToolChoice, Tools,
        UnknownFields, new_id, parse_service_tier, parse_stop, parse_template_arguments, unix_seconds,
    },
};
use serde_json::{Map, Value};
use std::num::NonZeroU32;

/// Choices of one request; each is a reply of its own.
pub(super) const MAX_CHOICES: u32 = 8;

/// A request that this version can honour in every field.
#[derive(Debug)]
pub struct ChatCompletion {
    model: Option<String>,
    delivery: Delivery,
    num_choices: u32,
    messages: Vec<Message>,
    tools: Vec<Tool>,
    calls: Calls,
    format: OutputFormat,
    template_arguments: Map<String, Value>,
    enable_thinking: Option<bool>,
    sampling: Sampling,
    stop: Vec<String>,
    max_tokens: Option<NonZeroU32>,
    top_logprobs: Option<u32>,
    service_class: ServiceClass,
}

/// How a completion reaches the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    pub(super) is_streamed: bool,
    pub(super) includes_usage: bool,
}

/// What every object of a completion begins with.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) service_tier: &'static str,
    pub(super) is_chat: bool,
    /// Of a stream.
    pub(super) includes_usage: bool,
    /// What each text begins with, where the prompt is to be repeated.
    pub(super) echo: String,
}

impl CompletionRequest for ChatCompletion {
    fn parse(body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest> {
        let body = Field::root(body).object()?;
        refuse_unsupported(&body)?;
        Labels::parse(&body)?;
        let tools = body.optional("tools", Tools::parse)?.unwrap_or_default();
        let choice = body.optional("tool_choice", |field| ToolChoice::parse(field, &tools))?.unwrap_or_default();
        let parallel = body.optional("parallel_tool_calls", Field::boolean)?.unwrap_or(true);
        let calls = choice.into_calls((!parallel).then_some(NonZeroU32::MIN));
        let offered = if calls.mode == CallMode::None { &[][..] } else { tools.callables() };
        let reasoning = body.optional("reasoning_effort", Reasoning::parse_effort)?.unwrap_or_default();
        let arguments = body.optional("chat_template_kwargs", parse_template_arguments)?.unwrap_or_default();
        let (template_arguments, enable_thinking) = reasoning.merge(arguments);
        let format = body.optional("response_format", TextFormat::parse)?;
        let max_completion_tokens = body.optional("max_completion_tokens", Field::count)?;
        let request = Self {
            model: body.optional("model", Field::text)?.map(str::to_owned),
            delivery: Delivery::parse(&body)?,
            num_choices: parse_num_choices(&body)?,
            messages: parse_messages(&body.require("messages")?)?,
            tools: offered.iter().map(|callable| callable.tool.clone()).collect(),
            calls,
            format: format.map_or(OutputFormat::Text, |format| format.to_chat()),
            template_arguments,
            enable_thinking,
            sampling: Sampling::parse(&body)?,
            stop: body.optional("stop", parse_stop)?.unwrap_or_default(),
            // The older name comes second.
            max_tokens: max_completion_tokens.or(body.optional("max_tokens", Field::count)?),
            top_logprobs: parse_logprobs(&body)?,
            service_class: body.optional("service_tier", parse_service_tier)?.unwrap_or_default(),
        };
        unknown_fields.check(&body)?;
        Ok(request)
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn is_streamed(&self) -> bool {
        self.delivery.is_streamed
    }

    fn begin(self, model: &str, defaults: &SamplingParams, cache_salt: u64) -> (Envelope, Vec<ChatRequest>) {
        let envelope = Envelope::new("chatcmpl", model, self.service_class, self.delivery);
        let request = ChatRequest {
            messages: self.messages,
            text: None,
            tools: self.tools,
            calls: self.calls,
            format: self.format,
            enable_thinking: self.enable_thinking,
            template_arguments: self.template_arguments,
            sampling: self.sampling.over(defaults),
            max_output_tokens: self.max_tokens,
            top_logprobs: self.top_logprobs,
            truncate: false,
            stop: self.stop,
            service_class: self.service_class,
            cache_salt,
            max_draft_tokens: None,
        };
        (envelope, choices(&request, self.num_choices).collect())
    }
}

/// The same request with a seed of its own for each, where there is one: equal choices would be of no use.
pub(super) fn choices(request: &ChatRequest, num_choices: u32) -> impl Iterator<Item = ChatRequest> {
    (0..num_choices).map(|index| {
        let mut choice = request.clone();
        choice.sampling.seed = choice.sampling.seed.map(|seed| seed.wrapping_add(index.into()));
        choice
    })
}

impl Delivery {
    pub(super) fn parse(body: &Object) -> Result<Self, InvalidRequest> {
        let is_streamed = body.optional("stream", Field::boolean)?.unwrap_or(false);
        let mut includes_usage = false;
        if let Some(options) = body.optional("stream_options", Field::object)? {
            includes_usage = options.optional("include_usage", Field::boolean)?.unwrap_or(false);
            options.optional("include_obfuscation", Field::boolean)?;
        }
        Ok(Self { is_streamed, includes_usage })
    }
}

impl Envelope {
    pub(super) fn new(prefix: &str, model: &str, class: ServiceClass, delivery: Delivery) -> Self {
        let service_tier = match class {
            ServiceClass::Priority => "priority",
            ServiceClass::Default => "default",
            ServiceClass::Flex => "flex",
        };
        Self {
            id: new_id(prefix).replace('_', "-"),
            created: unix_seconds(),
            model: model.to_owned(),
            service_tier,
            is_chat: true,
            includes_usage: delivery.includes_usage,
            echo: String::new(),
        }
    }
}

pub(super) fn parse_num_choices(body: &Object) -> Result<u32, InvalidRequest> {
    Ok(body.optional("n", |field| field.integer(1..=MAX_CHOICES))?.unwrap_or(1))
}

fn parse_logprobs(body: &Object) -> Result<Option<u32>, InvalidRequest> {
    let are_asked_for = body.optional("logprobs", Field::boolean)?.unwrap_or(false);
    let top = body.optional("top_logprobs", |field| field.integer(0..=MAX_TOP_LOGPROBS))?;
    match top {
        Some(1..) if !are_asked_for => Err(InvalidRequest::invalid("top_logprobs", "needs `logprobs: true`")),
        _ => Ok(are_asked_for.then_some(top.unwrap_or(0))),
    }
}

/// Fields that ask for what this server does not do, and how to do without.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("audio", "the model writes text; leave it out"),
    ("function_call", "`tool_choice` has replaced it"),
    ("functions", "`tools` has replaced it"),
    ("moderation", "nothing is moderated; leave it out"),
    ("prediction", "send `max_draft_tokens` to the Responses API to guess ahead"),
    ("web_search_options", "the server has no tools of its own; leave it out"),
];

fn refuse_unsupported(body: &Object) -> Result<(), InvalidRequest> {
    for (name, why) in UNSUPPORTED {
        if body.get(name).is_some() {
            return Err(InvalidRequest::unsupported_parameter(name, why));
        }
    }
    if body.optional("store", Field::boolean)?.unwrap_or(false) {
        let why = "chat completions are not stored; send `store: false`, or use the Responses API";
        return Err(InvalidRequest::unsupported_parameter("store", why));
    }
    for modality in body.optional("modalities", Field::elements)?.into_iter().flatten() {
        if modality.text()? != "text" {
            return Err(modality.unsupported("is not `text`, which is all that the model writes"));
        }
    }
    body.optional("verbosity", |field| field.choice(&["low", "medium", "high"]))?;
    // Both only hint at how long others may keep what we keep anyway.
    body.optional("prompt_cache_retention", Field::text)?;
    body.optional("prompt_cache_options", Field::object)?;
    Ok(())
}
