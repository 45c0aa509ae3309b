//! The body of `POST /v1/responses`: read, checked, and taken apart into what the chat needs and what the response
//! repeats.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
    include::ReplyOptions,
    input::parse_input,
    labels::Labels,
    origin::Origin,
    reasoning::Reasoning,
    response::{ConversationReference, Response, Status, new_id, unix_seconds},
    sampling::{Sampling, parse_stop},
    template_arguments::parse_template_arguments,
    text_format::TextSettings,
    tool_choice::ToolChoice,
    tools::Tools,
};
use crate::{
    chat::{CallMode, ChatRequest, Message, Role},
    engine::{SamplingParams, ServiceClass},
};
use serde_json::{Map, Value};
use std::num::NonZeroU32;

const MAX_DRAFT_TOKENS: u32 = 32;
pub(crate) const MAX_TOP_LOGPROBS: u32 = 20;
const MIN_COMPACT_THRESHOLD: u32 = 1000;

/// A request that this version can honour in every field.
#[derive(Debug)]
pub struct CreateResponse {
    model: Option<String>,
    stream: bool,
    messages: Vec<Message>,
    instructions: Option<String>,
    tools: Tools,
    tool_choice: ToolChoice,
    parallel_tool_calls: bool,
    max_tool_calls: Option<NonZeroU32>,
    reasoning: Option<Reasoning>,
    template_arguments: Map<String, Value>,
    text: TextSettings,
    sampling: Sampling,
    stop: Vec<String>,
    max_output_tokens: Option<NonZeroU32>,
    top_logprobs: Option<u32>,
    truncation: &'static str,
    service_class: ServiceClass,
    max_draft_tokens: Option<u32>,
    reply_options: ReplyOptions,
    compact_threshold: Option<usize>,
    labels: Labels,
    store: Option<bool>,
    background: bool,
    origin: Origin,
}

/// What becomes of a field that the protocol does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownFields {
    /// One line in the log; new clients send new fields.
    Ignore,
    /// 400
    Refuse,
}

impl UnknownFields {
    /// Right only when all fields of the body that are known have been asked for.
    pub(crate) fn check(self, body: &Object) -> Result<(), InvalidRequest> {
        let unknown = body.unknown();
        match self {
            Self::Ignore => log_unknown(&unknown),
            Self::Refuse => {
                if let Some(name) = unknown.first() {
                    return Err(InvalidRequest::unknown_parameter(&excerpt(name)));
                }
            }
        }
        Ok(())
    }
}

impl CreateResponse {
    /// A request that says all there is to know.
    ///
    /// # Errors
    /// Names the first field that is wrong or that this version does not support.
    pub fn parse(body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest> {
        Self::parse_after(&[], body, unknown_fields)
    }

    /// A request that goes on from `history`, items that were said before.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn parse_after(history: &[Value], body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest> {
        let body = Field::root(body).object()?;
        refuse_unsupported(&body)?;
        let reply_options = ReplyOptions::parse(&body)?;
        let tools = body.optional("tools", Tools::parse)?.unwrap_or_default();
        let tool_choice = body.optional("tool_choice", |field| ToolChoice::parse(field, &tools))?;
        let request = Self {
            model: body.optional("model", Field::text)?.map(str::to_owned),
            stream: body.optional("stream", Field::boolean)?.unwrap_or(false),
            messages: parse_input(history, &body)?,
            instructions: body.optional("instructions", Field::text)?.map(str::to_owned),
            tools,
            tool_choice: tool_choice.unwrap_or_default(),
            parallel_tool_calls: body.optional("parallel_tool_calls", Field::boolean)?.unwrap_or(true),
            max_tool_calls: body.optional("max_tool_calls", Field::count)?,
            reasoning: body.optional("reasoning", Reasoning::parse)?,
            template_arguments: body.optional("chat_template_kwargs", parse_template_arguments)?.unwrap_or_default(),
            text: TextSettings::parse(&body)?,
            sampling: Sampling::parse(&body)?,
            stop: body.optional("stop", parse_stop)?.unwrap_or_default(),
            max_output_tokens: body.optional("max_output_tokens", Field::count)?,
            top_logprobs: parse_top_logprobs(&body, reply_options.logprobs)?,
            truncation: body.optional("truncation", |field| field.choice(&["auto", "disabled"]))?.unwrap_or("disabled"),
            service_class: body.optional("service_tier", parse_service_tier)?.unwrap_or_default(),
            max_draft_tokens: body.optional("max_draft_tokens", |field| field.integer(0..=MAX_DRAFT_TOKENS))?,
            reply_options,
            compact_threshold: body.optional("context_management", parse_context_management)?.flatten(),
            labels: Labels::parse(&body)?,
            store: body.optional("store", Field::boolean)?,
            background: body.optional("background", Field::boolean)?.unwrap_or(false),
            origin: Origin::parse(&body)?,
        };
        if request.background && request.store == Some(false) {
            return Err(InvalidRequest::invalid("background", "needs `store`: what nobody waits for has to be kept"));
        }
        unknown_fields.check(&body)?;
        Ok(request)
    }

    /// None means the server's first one.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Server-sent events, or one object.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// None leaves it to the server.
    pub fn store(&self) -> Option<bool> {
        self.store
    }

    /// Whether the client does not wait for it.
    pub fn background(&self) -> bool {
        self.background
    }

    /// What the reply is to hold.
    pub fn reply_options(&self) -> ReplyOptions {
        self.reply_options
    }

    /// Tokens of input beyond which the conversation is compacted before it is answered.
    pub fn compact_threshold(&self) -> Option<usize> {
        self.compact_threshold
    }

    /// The response as it begins, and what the chat is asked. `model` is the served name, `defaults` its own settings.
    pub fn begin(self, model: &str, defaults: &SamplingParams) -> (Response, ChatRequest) {
        let sampling = self.sampling.over(defaults);
        (self.response(model, &sampling), self.into_chat(sampling))
    }

    fn response(&self, model: &str, sampling: &SamplingParams) -> Response {
        let labels = self.labels.clone();
        Response {
            id: new_id("resp"),
            object: "response",
            created_at: unix_seconds(),
            completed_at: None,
            status: Status::InProgress,
            incomplete_details: None,
            model: model.to_owned(),
            previous_response_id: self.origin.previous_id().map(str::to_owned),
            conversation: self.origin.conversation_id().map(|id| ConversationReference { id: id.to_owned() }),
            instructions: self.instructions.clone(),
            output: Vec::new(),
            error: None,
            tools: self.tools.clone(),
            tool_choice: self.tool_choice.clone(),
            truncation: self.truncation,
            parallel_tool_calls: self.parallel_tool_calls,
            text: self.text.clone(),
            top_p: sampling.top_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            top_logprobs: self.top_logprobs.unwrap_or(0),
            temperature: sampling.temperature,
            reasoning: self.reasoning,
            usage: None,
            max_output_tokens: self.max_output_tokens,
            max_tool_calls: self.max_tool_calls,
            store: self.store.unwrap_or(false),
            background: self.background,
            service_tier: match self.service_class {
                ServiceClass::Priority => "priority",
                ServiceClass::Default => "default",
                ServiceClass::Flex => "flex",
            },
            metadata: labels.metadata,
            safety_identifier: labels.safety_identifier,
            prompt_cache_key: labels.prompt_cache_key,
            user: labels.user,
        }
    }

    fn into_chat(self, sampling: SamplingParams) -> ChatRequest {
        let max_calls = if self.parallel_tool_calls { self.max_tool_calls } else { Some(NonZeroU32::MIN) };
        let calls = self.tool_choice.into_calls(max_calls);
        let offered = if calls.mode == CallMode::None { &[] } else { self.tools.callables() };
        let (template_arguments, enable_thinking) = self.reasoning.unwrap_or_default().merge(self.template_arguments);
        ChatRequest {
            messages: with_instructions(self.instructions, self.messages),
            text: None,
            tools: offered.iter().map(|callable| callable.tool.clone()).collect(),
            calls,
            format: self.text.format.to_chat(),
            enable_thinking,
            template_arguments,
            sampling,
            max_output_tokens: self.max_output_tokens,
            top_logprobs: self.top_logprobs,
            truncate: self.truncation == "auto",
            stop: self.stop,
            service_class: self.service_class,
            cache_salt: 0,
            max_draft_tokens: self.max_draft_tokens,
        }
    }
}

/// They come before what the input says, and replace nothing of it.
fn with_instructions(instructions: Option<String>, mut messages: Vec<Message>) -> Vec<Message> {
    if let Some(instructions) = instructions.filter(|instructions| !instructions.is_empty()) {
        messages.insert(0, Message::text(Role::System, instructions));
    }
    messages
}

/// None reports no probabilities at all; 0 reports only those of the tokens that were said.
fn parse_top_logprobs(body: &Object, are_included: bool) -> Result<Option<u32>, InvalidRequest> {
    let asked = body.optional("top_logprobs", |field| field.integer(0..=MAX_TOP_LOGPROBS))?.unwrap_or(0);
    Ok((0 < asked || are_included).then_some(asked))
}

/// There is one way to manage a context.
fn parse_context_management(field: &Field) -> Result<Option<usize>, InvalidRequest> {
    let mut threshold = None;
    for entry in field.elements()? {
        let entry = entry.object()?;
        entry.require("type")?.choice(&["compaction"])?;
        let asked = entry.optional("compact_threshold", |field| field.integer(MIN_COMPACT_THRESHOLD..=u32::MAX))?;
        threshold = asked.map(|tokens| tokens as usize);
    }
    Ok(threshold)
}

/// `auto` leaves the choice to the server, for which all are alike; so do tiers that this server does not have.
pub(crate) fn parse_service_tier(field: &Field) -> Result<ServiceClass, InvalidRequest> {
    Ok(match field.text()? {
        "priority" => ServiceClass::Priority,
        "flex" => ServiceClass::Flex,
        _ => ServiceClass::Default,
    })
}

/// Fields that ask for what this server does not do, and those that it need not look at.
fn refuse_unsupported(body: &Object) -> Result<(), InvalidRequest> {
    if body.get("moderation").is_some() {
        return Err(InvalidRequest::unsupported_parameter("moderation", "nothing is moderated; leave it out"));
    }
    // Both only hint at how long others may keep what we keep anyway.
    body.optional("prompt_cache_retention", Field::text)?;
    body.optional("prompt_cache_options", Field::object)?;
    Ok(())
}

/// Names are the client's, so few of them and escaped.
fn log_unknown(names: &[&str]) {
    const MAX_LOGGED: usize = 16;
    if !names.is_empty() {
        let logged: Vec<String> = names.iter().take(MAX_LOGGED).map(|name| excerpt(name)).collect();
        tracing::warn!(count = names.len(), names = logged.join(", "), "unknown request fields are ignored");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use insta::{assert_debug_snapshot, assert_snapshot};
    use proptest::{
        collection::{hash_map, vec},
        prelude::*,
    };
    use serde_json::json;

    fn parse(body: &Value) -> Result<CreateResponse, InvalidRequest> {
        CreateResponse::parse(body, UnknownFields::Refuse)
    }

    pub(in crate::responses) fn begin(body: &Value) -> (Response, ChatRequest) {
        parse(body).unwrap().begin("tiny", &SamplingParams { top_k: 20, top_p: 0.8, ..SamplingParams::default() })
    }

    /// One line for each body, all of which are wrong.
    pub(in crate::responses) fn errors(bodies: &[Value]) -> String {
        let line = |body: &Value| {
            let InvalidRequest { param, code, message } = parse(body).expect_err(&body.to_string());
            format!("{} {code}: {message}\n", param.unwrap_or_default())
        };
        bodies.iter().map(line).collect()
    }

    /// Adds fields to a good body.
    pub(in crate::responses) fn with(fields: Value) -> Value {
        let mut body = json!({ "input": "hi" });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    }

    #[test]
    fn a_body_without_input_is_refused() {
        let bodies = [
            json!([]),
            json!({}),
            json!({ "input": null }),
            json!({ "input": "" }),
            json!({ "input": [] }),
            json!({ "input": 3 }),
        ];
        assert_snapshot!(errors(&bodies), @r#"
         invalid_type: the body must be an object, and it is an array
        input missing_required_parameter: `input` is required
        input missing_required_parameter: `input` is required
        input invalid_value: `input` is empty, and it must have a character
        input invalid_value: `input` holds no message
        input invalid_type: `input` must be a string or an array, and it is 3
        "#);
    }

    #[test]
    fn numbers_and_choices_have_ranges() {
        let bodies = [
            with(json!({ "temperature": "hot" })),
            with(json!({ "temperature": 2.1 })),
            with(json!({ "top_p": 0 })),
            with(json!({ "min_p": 1.5 })),
            with(json!({ "repetition_penalty": 0.0 })),
            with(json!({ "presence_penalty": -3 })),
            with(json!({ "frequency_penalty": [] })),
            with(json!({ "top_k": -1 })),
            with(json!({ "max_output_tokens": 0 })),
            with(json!({ "max_tool_calls": 0 })),
            with(json!({ "top_logprobs": 21 })),
            with(json!({ "max_output_tokens": 16.0 })),
            with(json!({ "max_output_tokens": 1_u64 << 40 })),
            with(json!({ "seed": 0.5 })),
            with(json!({ "truncation": "middle" })),
            with(json!({ "service_tier": 1 })),
            with(json!({ "reasoning": { "effort": "huge" } })),
            with(json!({ "reasoning": { "summary": "long" } })),
            with(json!({ "reasoning": { "generate_summary": "long" } })),
            with(json!({ "logit_bias": { "15": 101 } })),
            with(json!({ "logit_bias": { "hello": 1 } })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
        temperature invalid_type: `temperature` must be a number from 0 to 2, and it is the string "hot"
        temperature invalid_value: `temperature` must be a number from 0 to 2, and it is 2.1
        top_p invalid_value: `top_p` must be a number above 0 and at most 1, and it is 0
        min_p invalid_value: `min_p` must be a number from 0 to 1, and it is 1.5
        repetition_penalty invalid_value: `repetition_penalty` must be a number above 0 and at most 10, and it is 0.0
        presence_penalty invalid_value: `presence_penalty` must be a number from -2 to 2, and it is -3
        frequency_penalty invalid_type: `frequency_penalty` must be a number from -2 to 2, and it is an array
        top_k invalid_value: `top_k` must be an integer from 0 to 4294967295, and it is -1
        max_output_tokens invalid_value: `max_output_tokens` must be an integer from 1 to 4294967295, and it is 0
        max_tool_calls invalid_value: `max_tool_calls` must be an integer from 1 to 4294967295, and it is 0
        top_logprobs invalid_value: `top_logprobs` must be an integer from 0 to 20, and it is 21
        max_output_tokens invalid_type: `max_output_tokens` must be an integer from 1 to 4294967295, and it is 16.0
        max_output_tokens invalid_value: `max_output_tokens` must be an integer from 1 to 4294967295, and it is 1099511627776
        seed invalid_type: `seed` must be an integer of at most 64 bits, and it is 0.5
        truncation invalid_value: `truncation` is `middle`, and it must be one of `auto`, `disabled`
        service_tier invalid_type: `service_tier` must be a string, and it is 1
        reasoning.effort invalid_value: `reasoning.effort` is `huge`, and it must be one of `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`
        reasoning.summary invalid_value: `reasoning.summary` is `long`, and it must be one of `auto`, `concise`, `detailed`
        reasoning.generate_summary invalid_value: `reasoning.generate_summary` is `long`, and it must be one of `auto`, `concise`, `detailed`
        logit_bias invalid_value: `logit_bias` must give `15` a number from -100 to 100
        logit_bias invalid_value: `logit_bias` names `hello`, which is not a token id
        "#);
    }

    #[test]
    fn lists_and_texts_have_limits() {
        let long = |chars| "x".repeat(chars);
        let pairs: Map<String, Value> = (0..17).map(|key| (key.to_string(), json!(""))).collect();
        let bodies = [
            with(json!({ "stop": "" })),
            with(json!({ "stop": ["a", 1] })),
            with(json!({ "stop": vec!["a"; 17] })),
            with(json!({ "metadata": pairs })),
            with(json!({ "metadata": { long(65): "" } })),
            with(json!({ "metadata": { "a": long(513) } })),
            with(json!({ "metadata": { "a": 1 } })),
            with(json!({ "user": long(513) })),
            with(json!({ "prompt_cache_key": long(129) })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
        stop invalid_value: `stop` is empty, and it must have a character
        stop[1] invalid_type: `stop[1]` must be a string, and it is 1
        stop invalid_value: `stop` may hold at most 16 texts, and it holds 17
        metadata invalid_value: `metadata` may hold at most 16 pairs, and it holds 17
        metadata invalid_value: `metadata` may have keys of at most 64 characters, and `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…` has 65
        metadata invalid_value: `metadata` may have values of at most 512 characters, and that of `a` has 513
        metadata invalid_value: `metadata` must give `a` a string
        user invalid_value: `user` may have at most 512 characters, and it has 513
        prompt_cache_key invalid_value: `prompt_cache_key` may have at most 128 characters, and it has 129
        "#);
    }

    #[test]
    fn what_this_version_does_not_do_is_refused() {
        let bodies = [
            with(json!({ "background": "yes" })),
            with(json!({ "background": true, "store": false })),
            with(json!({ "conversation": 1 })),
            with(json!({ "conversation": {} })),
            with(json!({ "conversation": "" })),
            with(json!({ "previous_response_id": [] })),
            with(json!({ "previous_response_id": "resp_1", "conversation": { "id": "conv_1" } })),
            with(json!({ "store": 1 })),
            with(json!({ "moderation": {} })),
            with(json!({ "max_tokens": 3 })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
        background invalid_type: `background` must be true or false, and it is the string "yes"
        background invalid_value: `background` needs `store`: what nobody waits for has to be kept
        conversation invalid_type: `conversation` must be a string or an object, and it is 1
        conversation.id missing_required_parameter: `conversation.id` is required
        conversation invalid_value: `conversation` is empty, and it must be an id
        previous_response_id invalid_type: `previous_response_id` must be a string, and it is an array
        previous_response_id invalid_value: `previous_response_id` cannot be combined with `conversation`; send one of the two
        store invalid_type: `store` must be true or false, and it is 1
        moderation unsupported_parameter: `moderation` is not supported: nothing is moderated; leave it out
        max_tokens unknown_parameter: `max_tokens` is not a field of this request
        "#);
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        let fields = json!({
            "background": false, "conversation": null, "context_management": [], "include": [], "max_tool_calls": null,
            "metadata": null, "parallel_tool_calls": false, "prompt_cache_retention": "24h", "reasoning": {},
            "service_tier": "auto", "store": false, "stream_options": { "include_obfuscation": false }, "text": {},
            "tool_choice": "none", "tools": [], "top_logprobs": 0, "truncation": "disabled",
        });
        assert!(parse(&with(fields)).is_ok());
    }

    #[test]
    fn an_unknown_field_is_ignored_unless_that_is_refused() {
        let body = with(json!({ "max_tokens": 3 }));
        assert!(CreateResponse::parse(&body, UnknownFields::Ignore).is_ok());
    }

    #[test]
    fn settings_reach_the_chat_and_come_back() {
        let (response, chat) = begin(&with(json!({
            "temperature": 0.7, "seed": -1, "logit_bias": { "15": -100 }, "stop": "END", "max_output_tokens": 9,
            "reasoning": { "effort": "none" }, "metadata": { "a": "b" }, "user": "me", "instructions": "Be brief.",
            "service_tier": "flex", "max_draft_tokens": 4,
            "tools": [{ "type": "function", "function": { "name": "find", "strict": false } }],
        })));
        assert_snapshot!(serde_json::to_string(&response.tools).unwrap(), @r#"[{"type":"function","name":"find","description":null,"parameters":null,"strict":false}]"#);
        assert_snapshot!(serde_json::to_string(&response.metadata).unwrap(), @r#"{"a":"b"}"#);
        assert_eq!((response.temperature, response.top_p, response.service_tier), (0.7, 0.8, "flex"));
        let said: Vec<&str> = chat.messages.iter().map(|message| message.content.as_str()).collect();
        assert_eq!(said, ["Be brief.", "hi"]);
        let chat = ChatRequest { messages: Vec::new(), tools: Vec::new(), ..chat };
        assert_debug_snapshot!(chat, @r#"
        ChatRequest {
            messages: [],
            text: None,
            tools: [],
            calls: Calls {
                mode: Auto,
                allowed: None,
                max_calls: None,
            },
            format: Text,
            enable_thinking: Some(
                false,
            ),
            template_arguments: {},
            sampling: SamplingParams {
                temperature: 0.7,
                top_k: 20,
                top_p: 0.8,
                min_p: 0.0,
                repetition_penalty: 1.0,
                presence_penalty: 0.0,
                frequency_penalty: 0.0,
                logit_bias: [
                    (
                        TokenId(
                            15,
                        ),
                        -100.0,
                    ),
                ],
                seed: Some(
                    18446744073709551615,
                ),
            },
            max_output_tokens: Some(
                9,
            ),
            top_logprobs: None,
            truncate: false,
            stop: [
                "END",
            ],
            service_class: Flex,
            cache_salt: 0,
            max_draft_tokens: Some(
                4,
            ),
        }
        "#);
    }

    #[test]
    fn the_model_is_not_told_of_tools_it_may_not_call() {
        let tools = json!([{ "type": "function", "name": "find" }]);
        let (response, chat) = begin(&with(json!({ "tools": tools, "tool_choice": "none" })));
        assert_eq!((response.tools.callables().len(), chat.tools.len()), (1, 0));
    }

    #[test]
    fn what_the_chat_is_held_to_comes_back() {
        let echo = |fields: Value, key: &str| {
            let (response, chat) = begin(&with(fields));
            let response = serde_json::to_value(response).unwrap();
            (response[key].to_string(), chat)
        };
        let (echoed, chat) = echo(json!({ "truncation": "auto" }), "truncation");
        assert_eq!((echoed.as_str(), chat.truncate), (r#""auto""#, true));
        let (echoed, chat) = echo(json!({ "top_logprobs": 3 }), "top_logprobs");
        assert_eq!((echoed.as_str(), chat.top_logprobs), ("3", Some(3)));
        let (echoed, chat) = echo(json!({ "top_logprobs": 0 }), "top_logprobs");
        assert_eq!((echoed.as_str(), chat.top_logprobs), ("0", None));
        assert_eq!(echo(json!({ "max_tool_calls": 3 }), "max_tool_calls").0, "3");
        assert_eq!(echo(json!({ "service_tier": "ultrafast" }), "service_tier").0, r#""default""#);
        let reasoning =
            json!({ "reasoning": { "generate_summary": "concise", "context": "all_turns", "mode": "pro" } });
        assert_eq!(echo(reasoning, "reasoning").0, r#"{"effort":null,"summary":"concise"}"#);
    }

    #[test]
    fn probabilities_are_asked_for_in_two_ways() {
        let asks = |body: Value| begin(&with(body)).1.top_logprobs;
        let include = "message.output_text.logprobs";
        assert_eq!(asks(json!({})), None);
        assert_eq!(asks(json!({ "include": ["reasoning.encrypted_content"], "top_logprobs": 0 })), None);
        assert_eq!(asks(json!({ "include": [include] })), Some(0));
        assert_eq!(asks(json!({ "include": [include], "top_logprobs": 2 })), Some(2));
    }

    #[test]
    fn every_key_of_the_response_is_there() {
        let (response, _) = begin(&with(json!({})));
        let response = serde_json::to_value(response).unwrap();
        let keys: Vec<&str> = response.as_object().unwrap().keys().map(String::as_str).collect();
        assert_snapshot!(keys.join(" "), @"id object created_at completed_at status incomplete_details model previous_response_id instructions output error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs temperature reasoning usage max_output_tokens max_tool_calls store background service_tier metadata safety_identifier prompt_cache_key");
    }

    /// The protocol's own words, put together by chance: objects of a known type, with any of the known fields.
    fn objects(types: &'static str) -> impl Strategy<Value = Vec<Value>> {
        const NAMES: &str = "action allowed_tools arguments call_id code content definition description error format \
                             function id input json_schema mode name namespace operation output outputs parameters \
                             pattern queries result results role schema server_label strict summary syntax tools type";
        const VALUES: &str = "a assistant auto custom function grammar input_text lark mcp regex required text user";
        let word = |words: &'static str| proptest::sample::select(words.split(' ').collect::<Vec<_>>());
        let leaf = prop_oneof![
            4 => word(VALUES).prop_map(Value::from),
            1 => Just(json!({ "type": "object", "properties": { "a": { "$ref": "#" } } })),
            1 => any::<Option<i64>>().prop_map(|number| json!(number)),
        ];
        let value = leaf.prop_recursive(3, 12, 4, move |inner| {
            let object = hash_map(word(NAMES), inner.clone(), 0..6).prop_map(|fields| json!(fields));
            prop_oneof![vec(inner, 0..4).prop_map(Value::from), object]
        });
        let object = (word(types), hash_map(word(NAMES), value, 0..16)).prop_map(|(kind, fields)| {
            let mut object = json!(fields);
            object["type"] = json!(kind);
            object
        });
        vec(object, 1..4)
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_is_a_panic(
            items in objects(
                "message reasoning function_call function_call_output custom_tool_call custom_tool_call_output mcp_call \
                 file_search_call code_interpreter_call image_generation_call shell_call shell_call_output program later",
            ),
            tools in objects("function custom namespace mcp"),
            choices in objects("function custom namespace mcp allowed_tools"),
            formats in objects("text json_object json_schema regex grammar"),
        ) {
            let bodies: [Vec<Value>; 4] = [
                choices.iter().map(|choice| with(json!({ "tools": tools, "tool_choice": choice }))).collect(),
                formats.iter().map(|format| with(json!({ "text": { "format": format } }))).collect(),
                items.iter().map(|item| json!({ "input": [item] })).collect(),
                vec![with(json!({ "tools": tools })), json!({ "input": items })],
            ];
            for body in bodies.concat() {
                if let Ok(request) = CreateResponse::parse(&body, UnknownFields::Ignore) {
                    let (response, _) = request.begin("tiny", &SamplingParams::default());
                    prop_assert!(serde_json::to_string(&response).is_ok());
                }
            }
        }
    }
}
