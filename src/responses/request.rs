//! The body of `POST /v1/responses`: read, checked, and taken apart into what the chat needs and what the response
//! repeats.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
    include::ReplyOptions,
    input::parse_input,
    response::{Reasoning, Response, Status, TextFormat, TextSettings, new_id, unix_seconds},
    sampling::{Sampling, parse_stop},
    tools::{FunctionTool, ToolChoice, parse_tool_choice, parse_tools},
};
use crate::{
    chat::{Calls, ChatRequest, Message, OutputFormat, Role},
    engine::{SamplingParams, ServiceClass},
};
use serde_json::{Map, Value};
use std::num::NonZeroU32;

const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;
const MAX_KEY_CHARS: usize = 128;
const MAX_USER_CHARS: usize = 512;
const MAX_DRAFT_TOKENS: u32 = 32;

/// A request that this version can honour in every field.
#[derive(Debug)]
pub struct CreateResponse {
    model: Option<String>,
    stream: bool,
    messages: Vec<Message>,
    instructions: Option<String>,
    tools: Vec<FunctionTool>,
    tool_choice: ToolChoice,
    parallel_tool_calls: bool,
    reasoning: Option<Reasoning>,
    text: TextSettings,
    sampling: Sampling,
    stop: Vec<String>,
    max_output_tokens: Option<NonZeroU32>,
    service_class: ServiceClass,
    max_draft_tokens: Option<u32>,
    reply_options: ReplyOptions,
    labels: Labels,
}

/// What the client attached for itself; the response repeats it.
#[derive(Debug)]
struct Labels {
    metadata: Map<String, Value>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
    user: Option<String>,
}

/// What becomes of a field that the protocol does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownFields {
    /// One line in the log; new clients send new fields.
    Ignore,
    /// 400
    Refuse,
}

impl CreateResponse {
    /// # Errors
    /// Names the first field that is wrong or that this version does not support.
    pub fn parse(body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest> {
        let body = Field::root(body).object()?;
        refuse_unsupported(&body)?;
        let request = Self {
            model: body.optional("model", Field::text)?.map(str::to_owned),
            stream: body.optional("stream", Field::boolean)?.unwrap_or(false),
            messages: parse_input(&body.require("input")?)?,
            instructions: body.optional("instructions", Field::text)?.map(str::to_owned),
            tools: body.optional("tools", parse_tools)?.unwrap_or_default(),
            tool_choice: body.optional("tool_choice", parse_tool_choice)?.unwrap_or(ToolChoice::Auto),
            parallel_tool_calls: body.optional("parallel_tool_calls", Field::boolean)?.unwrap_or(true),
            reasoning: body.optional("reasoning", parse_reasoning)?,
            text: parse_text(&body)?,
            sampling: Sampling::parse(&body)?,
            stop: body.optional("stop", parse_stop)?.unwrap_or_default(),
            max_output_tokens: body.optional("max_output_tokens", parse_max_output_tokens)?,
            service_class: body.optional("service_tier", parse_service_tier)?.unwrap_or_default(),
            max_draft_tokens: body.optional("max_draft_tokens", |field| field.integer(0..=MAX_DRAFT_TOKENS))?,
            reply_options: ReplyOptions::parse(&body)?,
            labels: Labels::parse(&body)?,
        };
        if !request.parallel_tool_calls && !request.tools.is_empty() {
            let why = "is false, and this version does not hold the model to one call at a time; leave it out";
            return Err(InvalidRequest::unsupported_value("parallel_tool_calls", why));
        }
        match unknown_fields {
            UnknownFields::Ignore => log_unknown(&body.unknown()),
            UnknownFields::Refuse => {
                if let Some(name) = body.unknown().first() {
                    return Err(InvalidRequest::unknown_parameter(&excerpt(name)));
                }
            }
        }
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

    /// What the reply is to hold.
    pub fn reply_options(&self) -> ReplyOptions {
        self.reply_options
    }

    /// The response as it begins, and what the chat is asked. `model` is the served name, `defaults` its own settings.
    pub fn begin(self, model: &str, defaults: &SamplingParams) -> (Response, ChatRequest) {
        let sampling = self.sampling.over(defaults);
        let response = Response {
            id: new_id("resp"),
            object: "response",
            created_at: unix_seconds(),
            completed_at: None,
            status: Status::InProgress,
            incomplete_details: None,
            model: model.to_owned(),
            previous_response_id: (),
            instructions: self.instructions.clone(),
            output: Vec::new(),
            error: None,
            tools: self.tools.clone(),
            tool_choice: self.tool_choice,
            truncation: "disabled",
            parallel_tool_calls: self.parallel_tool_calls,
            text: self.text,
            top_p: sampling.top_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            top_logprobs: 0,
            temperature: sampling.temperature,
            reasoning: self.reasoning.clone(),
            usage: None,
            max_output_tokens: self.max_output_tokens,
            max_tool_calls: (),
            store: false,
            background: false,
            service_tier: match self.service_class {
                ServiceClass::Priority => "priority",
                ServiceClass::Default => "default",
                ServiceClass::Flex => "flex",
            },
            metadata: self.labels.metadata,
            safety_identifier: self.labels.safety_identifier,
            prompt_cache_key: self.labels.prompt_cache_key,
            user: self.labels.user,
        };
        let chat = ChatRequest {
            messages: with_instructions(self.instructions, self.messages),
            tools: match self.tool_choice {
                ToolChoice::Auto => self.tools.iter().map(FunctionTool::to_chat).collect(),
                ToolChoice::None => Vec::new(),
            },
            calls: Calls::default(),
            format: OutputFormat::Text,
            template_arguments: Map::new(),
            top_logprobs: self.reply_options.logprobs.then_some(0),
            truncate: false,
            enable_thinking: self.reasoning.and_then(|reasoning| reasoning.effort).map(|effort| effort != "none"),
            sampling,
            max_output_tokens: self.max_output_tokens,
            stop: self.stop,
            service_class: self.service_class,
            cache_salt: 0,
            max_draft_tokens: self.max_draft_tokens,
        };
        (response, chat)
    }
}

/// They come before what the input says, and replace nothing of it.
fn with_instructions(instructions: Option<String>, mut messages: Vec<Message>) -> Vec<Message> {
    if let Some(instructions) = instructions.filter(|instructions| !instructions.is_empty()) {
        messages.insert(0, Message::text(Role::System, instructions));
    }
    messages
}

impl Labels {
    fn parse(body: &Object) -> Result<Self, InvalidRequest> {
        let key = |name| body.optional(name, |field| field.text_up_to(MAX_KEY_CHARS).map(str::to_owned));
        Ok(Self {
            metadata: body.optional("metadata", parse_metadata)?.unwrap_or_default(),
            safety_identifier: key("safety_identifier")?,
            prompt_cache_key: key("prompt_cache_key")?,
            user: body.optional("user", |field| field.text_up_to(MAX_USER_CHARS).map(str::to_owned))?,
        })
    }
}

fn parse_metadata(field: &Field) -> Result<Map<String, Value>, InvalidRequest> {
    let pairs = field.value().as_object().ok_or_else(|| field.wrong_type("an object of strings"))?;
    if MAX_METADATA_PAIRS < pairs.len() {
        return Err(field.invalid(format!("may hold at most {MAX_METADATA_PAIRS} pairs, and it holds {}", pairs.len())));
    }
    for (key, value) in pairs {
        let (name, key_chars) = (excerpt(key), key.chars().count());
        if MAX_METADATA_KEY_CHARS < key_chars {
            let why =
                format!("may have keys of at most {MAX_METADATA_KEY_CHARS} characters, and `{name}` has {key_chars}");
            return Err(field.invalid(why));
        }
        let text = value.as_str().ok_or_else(|| field.invalid(format!("must give `{name}` a string")))?;
        let chars = text.chars().count();
        if MAX_METADATA_VALUE_CHARS < chars {
            let why = format!(
                "may have values of at most {MAX_METADATA_VALUE_CHARS} characters, and that of `{name}` has {chars}"
            );
            return Err(field.invalid(why));
        }
    }
    Ok(pairs.clone())
}

/// A model thinks or does not; how much is its own affair.
fn parse_reasoning(field: &Field) -> Result<Reasoning, InvalidRequest> {
    const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];
    let reasoning = field.object()?;
    Ok(Reasoning {
        effort: reasoning.optional("effort", |effort| effort.choice(EFFORTS, &[]))?,
        summary: reasoning.optional("summary", |summary| summary.choice(&["auto"], &["concise", "detailed"]))?,
    })
}

fn parse_text(body: &Object) -> Result<TextSettings, InvalidRequest> {
    let mut settings = TextSettings { format: TextFormat::Text, verbosity: None };
    if let Some(field) = body.get("text") {
        let text = field.object()?;
        if let Some(format) = text.get("format") {
            format.object()?.require("type")?.choice(&["text"], &["json_object", "json_schema"])?;
        }
        settings.verbosity = text.optional("verbosity", |field| field.choice(&["medium"], &["low", "high"]))?;
    }
    Ok(settings)
}

fn parse_max_output_tokens(field: &Field) -> Result<NonZeroU32, InvalidRequest> {
    Ok(NonZeroU32::new(field.integer(1..=u32::MAX)?).expect("the range begins at 1"))
}

/// `auto` leaves the choice to the server, for which all are alike.
fn parse_service_tier(field: &Field) -> Result<ServiceClass, InvalidRequest> {
    let served = ["auto", "default", "flex", "priority"];
    Ok(match field.choice(&served, &["scale", "fast", "ultrafast"])? {
        "priority" => ServiceClass::Priority,
        "flex" => ServiceClass::Flex,
        _ => ServiceClass::Default,
    })
}

/// A value that asks for nothing.
#[derive(Clone, Copy)]
enum Harmless {
    Null,
    False,
    Zero,
    EmptyList,
}

/// Fields that ask for what this version does not do, and how to do without.
const UNSUPPORTED: &[(&str, Harmless, &str)] = &[
    ("background", Harmless::False, "nothing runs in the background; send `background: false`"),
    ("context_management", Harmless::EmptyList, "the context is not compacted; shorten the input"),
    ("conversation", Harmless::Null, "conversations are not stored; send the whole conversation as `input`"),
    ("max_tool_calls", Harmless::Null, "no tools run on the server; leave it out"),
    ("moderation", Harmless::Null, "nothing is moderated; leave it out"),
    ("previous_response_id", Harmless::Null, "responses are not stored; send the whole conversation as `input`"),
    ("prompt", Harmless::Null, "prompt templates are not stored; send `instructions` and `input`"),
    ("store", Harmless::False, "responses are not stored; send `store: false`"),
    ("top_logprobs", Harmless::Zero, "log probabilities are not reported; leave it out"),
];

fn refuse_unsupported(body: &Object) -> Result<(), InvalidRequest> {
    for (name, harmless, why) in UNSUPPORTED {
        let Some(field) = body.get(name) else { continue };
        let asks_for_nothing = match harmless {
            Harmless::Null => false,
            Harmless::False => field.value() == &Value::Bool(false),
            Harmless::Zero => field.value().as_u64() == Some(0),
            Harmless::EmptyList => field.value().as_array().is_some_and(Vec::is_empty),
        };
        if !asks_for_nothing {
            return Err(InvalidRequest::unsupported_parameter(name, why));
        }
    }
    body.optional("truncation", |field| field.choice(&["disabled"], &["auto"]))?;
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
mod tests {
    use super::*;
    use insta::{assert_debug_snapshot, assert_snapshot};
    use serde_json::json;

    fn parse(body: &Value) -> Result<CreateResponse, InvalidRequest> {
        CreateResponse::parse(body, UnknownFields::Refuse)
    }

    fn begin(body: &Value) -> (Response, ChatRequest) {
        parse(body).unwrap().begin("tiny", &SamplingParams { top_k: 20, top_p: 0.8, ..SamplingParams::default() })
    }

    /// One line for each body, all of which are wrong.
    fn errors(bodies: &[Value]) -> String {
        let line = |body: &Value| {
            let InvalidRequest { param, code, message } = parse(body).expect_err(&body.to_string());
            format!("{} {code}: {message}\n", param.unwrap_or_default())
        };
        bodies.iter().map(line).collect()
    }

    /// Adds fields to a good body.
    fn with(fields: Value) -> Value {
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
    fn numbers_have_ranges() {
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
            with(json!({ "max_output_tokens": 16.0 })),
            with(json!({ "max_output_tokens": 1_u64 << 40 })),
            with(json!({ "seed": 0.5 })),
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
        max_output_tokens invalid_type: `max_output_tokens` must be an integer from 1 to 4294967295, and it is 16.0
        max_output_tokens invalid_value: `max_output_tokens` must be an integer from 1 to 4294967295, and it is 1099511627776
        seed invalid_type: `seed` must be an integer of at most 64 bits, and it is 0.5
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
            with(json!({ "background": true })),
            with(json!({ "conversation": "conv_1" })),
            with(json!({ "max_tool_calls": 1 })),
            with(json!({ "previous_response_id": "resp_1" })),
            with(json!({ "prompt": { "id": "pmpt_1" } })),
            with(json!({ "reasoning": { "summary": "detailed" } })),
            with(json!({ "reasoning": { "effort": "huge" } })),
            with(json!({ "service_tier": "scale" })),
            with(json!({ "store": true })),
            with(json!({ "text": { "format": { "type": "json_schema" } } })),
            with(json!({ "text": { "verbosity": "low" } })),
            with(json!({ "tool_choice": "required" })),
            with(json!({ "tool_choice": { "type": "function", "name": "find" } })),
            with(json!({ "top_logprobs": 3 })),
            with(json!({ "truncation": "auto" })),
            with(json!({ "max_tokens": 3 })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
        background unsupported_parameter: `background` is not supported: nothing runs in the background; send `background: false`
        conversation unsupported_parameter: `conversation` is not supported: conversations are not stored; send the whole conversation as `input`
        max_tool_calls unsupported_parameter: `max_tool_calls` is not supported: no tools run on the server; leave it out
        previous_response_id unsupported_parameter: `previous_response_id` is not supported: responses are not stored; send the whole conversation as `input`
        prompt unsupported_parameter: `prompt` is not supported: prompt templates are not stored; send `instructions` and `input`
        reasoning.summary unsupported_value: `reasoning.summary` is `detailed`, which this version does not support; supported: `auto`
        reasoning.effort invalid_value: `reasoning.effort` is `huge`, and it must be one of `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`
        service_tier unsupported_value: `service_tier` is `scale`, which this version does not support; supported: `auto`, `default`, `flex`, `priority`
        store unsupported_parameter: `store` is not supported: responses are not stored; send `store: false`
        text.format.type unsupported_value: `text.format.type` is `json_schema`, which this version does not support; supported: `text`
        text.verbosity unsupported_value: `text.verbosity` is `low`, which this version does not support; supported: `medium`
        tool_choice unsupported_value: `tool_choice` is `required`, which this version does not support; supported: `auto`, `none`
        tool_choice unsupported_value: `tool_choice` names tools, which this version does not enforce; send `auto` or `none`
        top_logprobs unsupported_parameter: `top_logprobs` is not supported: log probabilities are not reported; leave it out
        truncation unsupported_value: `truncation` is `auto`, which this version does not support; supported: `disabled`
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
    fn tools_are_checked() {
        let tool = json!({ "type": "function", "name": "find", "parameters": {} });
        let bodies = [
            with(json!({ "tools": {} })),
            with(json!({ "tools": [{ "name": "find" }] })),
            with(json!({ "tools": [{ "type": "web_search" }] })),
            with(json!({ "tools": [tool, { "type": "function" }] })),
            with(json!({ "tools": [tool, { "type": "function", "function": { "name": "a b" } }] })),
            with(json!({ "tools": [tool, tool] })),
            with(json!({ "tools": [{ "type": "function", "name": "find", "parameters": "x" }] })),
            with(json!({ "tools": [{ "type": "function", "name": "find", "strict": true }] })),
            with(json!({ "tools": vec![tool.clone(); 129] })),
            with(json!({ "tools": [tool], "parallel_tool_calls": false })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
        tools invalid_type: `tools` must be an array, and it is an object
        tools[0].type missing_required_parameter: `tools[0].type` is required
        tools[0].type unsupported_value: `tools[0].type` is `web_search`, which this version does not support; only `function` tools are
        tools[1].name missing_required_parameter: `tools[1].name` is required
        tools[1].function.name invalid_value: `tools[1].function.name` is `a b`, and it must be 1 to 64 letters, digits, `_` or `-`
        tools[1] invalid_value: `tools[1]` has the name `find`, which an earlier tool has
        tools[0].parameters invalid_type: `tools[0].parameters` must be a JSON Schema, which is an object, and it is the string "x"
        tools[0].strict unsupported_value: `tools[0].strict` is true, and this version does not hold the model to the schema of the arguments; send `strict: false`
        tools invalid_value: `tools` may hold at most 128 tools, and it holds 129
        parallel_tool_calls unsupported_value: `parallel_tool_calls` is false, and this version does not hold the model to one call at a time; leave it out
        "#);
    }

    #[test]
    fn items_are_checked() {
        let item = |item: Value| json!({ "input": [{ "role": "user", "content": "hi" }, item] });
        let bodies = [
            item(json!("hi")),
            item(json!({ "content": "hi" })),
            item(json!({ "role": "user" })),
            item(json!({ "role": "tool", "content": "hi" })),
            item(json!({ "role": "critic", "content": "hi" })),
            item(json!({ "role": "user", "content": 3 })),
            item(
                json!({ "role": "user", "content": [{ "type": "input_text", "text": "a" }, { "type": "input_image" }] }),
            ),
            item(json!({ "role": "user", "content": [{ "type": "input_text" }] })),
            item(json!({ "type": "item_reference", "id": "msg_1" })),
            item(json!({ "type": "function_call", "name": "find", "arguments": "{}" })),
            item(json!({ "type": "function_call", "call_id": "a", "name": "find", "arguments": {} })),
            item(json!({ "type": "function_call_output", "call_id": "nobody's", "output": "" })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
        input[1] invalid_type: `input[1]` must be an object, and it is the string "hi"
        input[1].type missing_required_parameter: `input[1].type` is required
        input[1].content missing_required_parameter: `input[1].content` is required
        input[1].role invalid_value: `input[1].role` is `tool`; send a tool's result as a `function_call_output` item
        input[1].role invalid_value: `input[1].role` is `critic`, and it must be one of `user`, `assistant`, `system`, `developer`
        input[1].content invalid_type: `input[1].content` must be a string or an array, and it is 3
        input[1].content[1].type unsupported_value: `input[1].content[1].type` is `input_image`, which this version does not support; it reads only text
        input[1].content[0].text missing_required_parameter: `input[1].content[0].text` is required
        input[1].type unsupported_value: `input[1].type` is `item_reference`, which this version does not support; it reads `message`, `reasoning`, `function_call` and `function_call_output` items
        input[1].call_id missing_required_parameter: `input[1].call_id` is required
        input[1].arguments invalid_type: `input[1].arguments` must be a string, and it is an object
        input[1].call_id invalid_value: No tool call found for function call output with call_id nobody's.
        "#);
    }

    #[test]
    fn items_become_turns() {
        let (_, chat) = begin(&json!({
            "instructions": "Be brief.",
            "input": [
                { "role": "developer", "content": "Use tools." },
                { "type": "message", "role": "user", "content": [
                    { "type": "input_text", "text": "Where is" }, { "type": "input_text", "text": " it?" },
                ] },
                { "type": "reasoning", "id": "rs_1", "summary": [{ "type": "summary_text", "text": "Look." }] },
                { "type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                    { "type": "output_text", "text": "I look.", "annotations": [] },
                ] },
                { "type": "function_call", "call_id": "a", "name": "find", "arguments": "{}" },
                { "type": "function_call", "call_id": "b", "name": "list", "arguments": "{}" },
                { "type": "reasoning", "summary": [{ "type": "summary_text", "text": "Dropped." }] },
                { "type": "function_call_output", "call_id": "b", "output": [{ "type": "input_text", "text": "x" }] },
                { "type": "function_call_output", "call_id": "a", "output": "y" },
                { "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": "Again." }] },
                { "type": "function_call", "call_id": "c", "name": "find", "arguments": "" },
                { "type": "function_call_output", "call_id": "c", "output": "z" },
                { "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": "Lost." }] },
                { "role": "user", "content": "Well?" },
                { "role": "assistant", "content": [{ "type": "refusal", "refusal": "No." }] },
            ],
        }));
        let line = |message: &Message| {
            let calls: Vec<&str> = message.tool_calls.iter().map(|call| call.id.as_str()).collect();
            let Message { role, content, reasoning, tool_call_id, .. } = message;
            format!("{role:?} {content:?} thinks {reasoning:?} calls {calls:?} answers {tool_call_id:?}\n")
        };
        assert_snapshot!(chat.messages.iter().map(line).collect::<String>(), @r#"
        System "Be brief." thinks None calls [] answers None
        System "Use tools." thinks None calls [] answers None
        User "Where is it?" thinks None calls [] answers None
        Assistant "I look." thinks Some("Look.") calls ["a", "b"] answers None
        Tool "x" thinks None calls [] answers Some("b")
        Tool "y" thinks None calls [] answers Some("a")
        Assistant "" thinks Some("Again.") calls ["c"] answers None
        Tool "z" thinks None calls [] answers Some("c")
        User "Well?" thinks None calls [] answers None
        Assistant "No." thinks None calls [] answers None
        "#);
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "most of it is one snapshot")]
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
        assert_debug_snapshot!(chat, @r#"
        ChatRequest {
            messages: [
                Message {
                    role: System,
                    content: "Be brief.",
                    reasoning: None,
                    tool_calls: [],
                    tool_call_id: None,
                },
                Message {
                    role: User,
                    content: "hi",
                    reasoning: None,
                    tool_calls: [],
                    tool_call_id: None,
                },
            ],
            tools: [
                Tool {
                    name: "find",
                    description: None,
                    parameters: None,
                    strict: false,
                },
            ],
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
        assert_eq!((response.tools.len(), chat.tools.len()), (1, 0));
    }

    #[test]
    fn every_key_of_the_response_is_there() {
        let (response, _) = begin(&with(json!({})));
        let response = serde_json::to_value(response).unwrap();
        let keys: Vec<&str> = response.as_object().unwrap().keys().map(String::as_str).collect();
        assert_snapshot!(keys.join(" "), @"id object created_at completed_at status incomplete_details model previous_response_id instructions output error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs temperature reasoning usage max_output_tokens max_tool_calls store background service_tier metadata safety_identifier prompt_cache_key");
    }
}
