//! The body of `POST /v1/chat/completions`: read, checked, and turned into what chats are asked.

use super::{CompletionRequest, messages::parse_messages};
use crate::{
    chat::{CallMode, Calls, ChatRequest, Message, OutputFormat, Tool},
    engine::{SamplingParams, ServiceClass},
    responses::{
        Field, InvalidRequest, Labels, MAX_TOP_LOGPROBS, Object, Reasoning, Sampling, TextFormat, ToolChoice, Tools,
        UnknownFields, excerpt, new_id, parse_service_tier, parse_stop, parse_template_arguments, unix_seconds,
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
    pub(super) protocol: Protocol,
    /// Of a stream.
    pub(super) includes_usage: bool,
    /// What each text begins with, where the prompt is to be repeated.
    pub(super) echo: String,
}

/// In whose words a completion is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Protocol {
    /// Chat Completions.
    Chat,
    /// The older Completions.
    Text,
}

impl CompletionRequest for ChatCompletion {
    const INPUT: &str = "messages";

    fn parse(body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest> {
        let body = Field::root(body).object()?;
        refuse_unsupported(&body)?;
        Labels::parse(&body)?;
        let tools = body.optional("tools", parse_tools)?.unwrap_or_default();
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
        let envelope = Envelope::new(Protocol::Chat, model, self.service_class, self.delivery);
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

impl Protocol {
    fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Text => "cmpl",
        }
    }
}

impl Envelope {
    pub(super) fn new(protocol: Protocol, model: &str, class: ServiceClass, delivery: Delivery) -> Self {
        let service_tier = match class {
            ServiceClass::Priority => "priority",
            ServiceClass::Default => "default",
            ServiceClass::Flex => "flex",
        };
        Self {
            id: new_id(protocol.id_prefix()).replace('_', "-"),
            created: unix_seconds(),
            model: model.to_owned(),
            service_tier,
            protocol,
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

/// Functions alone: the call of another tool would be told as that of a function, which its client does not expect.
fn parse_tools(field: &Field) -> Result<Tools, InvalidRequest> {
    for element in field.elements()? {
        let kind = element.object()?.require("type")?;
        let name = kind.text()?;
        if name != "function" {
            let name = excerpt(name);
            return Err(
                kind.unsupported(format!("is `{name}`, and only functions are called here; see the Responses API"))
            );
        }
    }
    Tools::parse(field)
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use insta::{assert_compact_debug_snapshot, assert_snapshot};
    use serde_json::json;

    fn parse(body: &Value) -> Result<ChatCompletion, InvalidRequest> {
        ChatCompletion::parse(body, UnknownFields::Refuse)
    }

    pub(in crate::completions) fn begin(body: &Value) -> (Envelope, Vec<ChatRequest>) {
        parse(body).unwrap().begin("tiny", &SamplingParams { top_k: 20, ..SamplingParams::default() }, 7)
    }

    /// One line for each error.
    pub(in crate::completions) fn line(InvalidRequest { param, code, message }: InvalidRequest) -> String {
        format!("{} {code}: {message}\n", param.unwrap_or_default())
    }

    /// One line for each body, all of which are wrong.
    pub(in crate::completions) fn errors(bodies: &[Value]) -> String {
        bodies.iter().map(|body| line(parse(body).expect_err(&body.to_string()))).collect()
    }

    /// Adds fields to a good body.
    pub(in crate::completions) fn with(fields: Value) -> Value {
        let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    }

    #[test]
    fn what_is_not_said_is_left_to_the_model() {
        let (envelope, chats) = begin(&with(json!({})));
        assert!(envelope.id.starts_with("chatcmpl-") && !envelope.includes_usage, "{envelope:?}");
        assert_compact_debug_snapshot!(chats, @r#"[ChatRequest { messages: [Message { role: User, content: "hi", reasoning: None, tool_calls: [], tool_call_id: None }], text: None, tools: [], calls: Calls { mode: Auto, allowed: None, max_calls: None }, format: Text, enable_thinking: None, template_arguments: {}, sampling: SamplingParams { temperature: 1.0, top_k: 20, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, logit_bias: [], seed: None }, max_output_tokens: None, top_logprobs: None, truncate: false, stop: [], service_class: Default, cache_salt: 7, max_draft_tokens: None }]"#);
    }

    #[test]
    fn all_that_is_said_reaches_the_chat() {
        let body = with(json!({
            "model": "tiny", "stream": true, "stream_options": { "include_usage": true, "include_obfuscation": false },
            "n": 2, "seed": 7, "stop": "end", "max_completion_tokens": 5, "max_tokens": 9,
            "temperature": 0.5, "top_p": 0.25, "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": { "5": 2 },
            "logprobs": true, "top_logprobs": 3, "service_tier": "flex", "reasoning_effort": "none",
            "chat_template_kwargs": { "date": "today" },
            "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" }, "strict": true } }],
            "tool_choice": { "type": "function", "function": { "name": "f" } }, "parallel_tool_calls": false,
            "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": { "type": "array" } } },
            "user": "ada", "safety_identifier": "1", "prompt_cache_key": "2", "metadata": { "a": "b" }, "store": false,
            "modalities": ["text"], "verbosity": "low", "prompt_cache_retention": "24h",
        }));
        let parsed = parse(&body).unwrap();
        assert_eq!((parsed.model(), parsed.is_streamed()), (Some("tiny"), true));
        let (envelope, chats) = begin(&body);
        assert_eq!((envelope.service_tier, envelope.includes_usage), ("flex", true));
        let seeds: Vec<_> = chats.iter().map(|chat| chat.sampling.seed).collect();
        assert_eq!(seeds, [Some(7), Some(8)], "equal choices would be of no use");
        assert_compact_debug_snapshot!(chats[0], @r#"ChatRequest { messages: [Message { role: User, content: "hi", reasoning: None, tool_calls: [], tool_call_id: None }], text: None, tools: [Tool { name: "f", description: None, parameters: Some(Object {"type": String("object")}), strict: true, is_enforceable: true }], calls: Calls { mode: Required, allowed: Some(["f"]), max_calls: Some(1) }, format: JsonSchema(Object {"type": String("array")}), enable_thinking: Some(false), template_arguments: {"date": String("today")}, sampling: SamplingParams { temperature: 0.5, top_k: 20, top_p: 0.25, min_p: 0.0, repetition_penalty: 1.0, presence_penalty: 1.0, frequency_penalty: -1.0, logit_bias: [(TokenId(5), 2.0)], seed: Some(7) }, max_output_tokens: Some(5), top_logprobs: Some(3), truncate: false, stop: ["end"], service_class: Flex, cache_salt: 7, max_draft_tokens: None }"#);
    }

    #[test]
    fn tools_that_may_not_be_called_are_not_told() {
        let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
        let (_, chats) = begin(&with(json!({ "tools": tools, "tool_choice": "none" })));
        assert_eq!(chats[0].tools, []);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let function = json!([{ "type": "function", "function": { "name": "f" } }]);
        let bodies = [
            json!([]),
            json!({}),
            with(json!({ "n": 0 })),
            with(json!({ "n": 9 })),
            with(json!({ "max_completion_tokens": 0 })),
            with(json!({ "max_tokens": "many" })),
            with(json!({ "stop": ["a", 1] })),
            with(json!({ "stream": 1 })),
            with(json!({ "stream_options": { "include_usage": "yes" } })),
            with(json!({ "logprobs": 1 })),
            with(json!({ "top_logprobs": 1 })),
            with(json!({ "logprobs": true, "top_logprobs": 21 })),
            with(json!({ "temperature": 3 })),
            with(json!({ "reasoning_effort": "huge" })),
            with(json!({ "response_format": { "type": "xml" } })),
            with(json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": 1 } } })),
            with(json!({ "tools": {} })),
            with(json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] })),
            with(json!({ "tools": [{ "type": "custom", "custom": { "name": "f" } }] })),
            with(json!({ "tool_choice": "required" })),
            with(json!({ "tools": function, "tool_choice": { "type": "function", "function": { "name": "g" } } })),
            with(json!({ "verbosity": "loud" })),
            with(json!({ "surprise": 1 })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
         invalid_type: the body must be an object, and it is an array
        messages missing_required_parameter: `messages` is required
        n invalid_value: `n` must be an integer from 1 to 8, and it is 0
        n invalid_value: `n` must be an integer from 1 to 8, and it is 9
        max_completion_tokens invalid_value: `max_completion_tokens` must be an integer from 1 to 4294967295, and it is 0
        max_tokens invalid_type: `max_tokens` must be an integer from 1 to 4294967295, and it is the string "many"
        stop[1] invalid_type: `stop[1]` must be a string, and it is 1
        stream invalid_type: `stream` must be true or false, and it is 1
        stream_options.include_usage invalid_type: `stream_options.include_usage` must be true or false, and it is the string "yes"
        logprobs invalid_type: `logprobs` must be true or false, and it is 1
        top_logprobs invalid_value: `top_logprobs` needs `logprobs: true`
        top_logprobs invalid_value: `top_logprobs` must be an integer from 0 to 20, and it is 21
        temperature invalid_value: `temperature` must be a number from 0 to 2, and it is 3
        reasoning_effort invalid_value: `reasoning_effort` is `huge`, and it must be one of `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`
        response_format.type invalid_value: `response_format.type` is `xml`, and it must be one of `text`, `json_object`, `json_schema`, `regex`, `grammar`
        response_format.json_schema.schema invalid_json_schema: `response_format.json_schema.schema` must be a JSON Schema, which is an object
        tools invalid_type: `tools` must be an array, and it is an object
        tools[0].function.name invalid_value: `tools[0].function.name` is `a b`, and it must be 1 to 64 letters, digits, `_` or `-`
        tools[0].type unsupported_value: `tools[0].type` is `custom`, and only functions are called here; see the Responses API
        tool_choice invalid_value: `tool_choice` requires a call, and no tool that it allows can be called here
        tool_choice invalid_value: `tool_choice` names the function `g`, which is not in `tools`
        verbosity invalid_value: `verbosity` is `loud`, and it must be one of `low`, `medium`, `high`
        surprise unknown_parameter: `surprise` is not a field of this request
        "#);
    }

    #[test]
    fn what_this_server_does_not_do_is_refused_by_name() {
        let bodies = [
            with(json!({ "audio": { "voice": "a" } })),
            with(json!({ "function_call": "auto" })),
            with(json!({ "functions": [] })),
            with(json!({ "moderation": {} })),
            with(json!({ "prediction": { "type": "content", "content": "a" } })),
            with(json!({ "web_search_options": {} })),
            with(json!({ "store": true })),
            with(json!({ "modalities": ["text", "audio"] })),
        ];
        assert_snapshot!(errors(&bodies), @r"
        audio unsupported_parameter: `audio` is not supported: the model writes text; leave it out
        function_call unsupported_parameter: `function_call` is not supported: `tool_choice` has replaced it
        functions unsupported_parameter: `functions` is not supported: `tools` has replaced it
        moderation unsupported_parameter: `moderation` is not supported: nothing is moderated; leave it out
        prediction unsupported_parameter: `prediction` is not supported: send `max_draft_tokens` to the Responses API to guess ahead
        web_search_options unsupported_parameter: `web_search_options` is not supported: the server has no tools of its own; leave it out
        store unsupported_parameter: `store` is not supported: chat completions are not stored; send `store: false`, or use the Responses API
        modalities[1] unsupported_value: `modalities[1]` is not `text`, which is all that the model writes
        ");
    }
}
