//! Chat Completions and the older Completions, for clients that speak only these: the same chats as under `responses`, told
//! in other words. Nothing is kept. Knows nothing of HTTP.

mod choices;
mod chunk;
mod messages;
mod request;
mod text;

pub use choices::{CompletionEvent, last_completion, start};
pub use request::{ChatCompletion, Envelope};
pub use text::TextCompletion;

use crate::{
    chat::ChatRequest,
    engine::SamplingParams,
    responses::{InvalidRequest, UnknownFields},
};
use serde_json::Value;

/// The body of a request for a completion, of either protocol.
pub trait CompletionRequest: Sized {
    /// The field that is gone on from.
    const INPUT: &str;

    /// # Errors
    /// Names the first field that is wrong or that this version does not support.
    fn parse(body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest>;

    /// None means the server's first one.
    fn model(&self) -> Option<&str>;

    /// Server-sent events, or one object.
    fn is_streamed(&self) -> bool;

    /// How it is told, and what each choice is. `model` is the served name, `defaults` its own settings.
    fn begin(self, model: &str, defaults: &SamplingParams, cache_salt: u64) -> (Envelope, Vec<ChatRequest>);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{
        collection::{hash_map, vec},
        prelude::*,
    };
    use serde_json::json;

    const FIELDS: &str = "model stream stream_options tools tool_choice parallel_tool_calls response_format logprobs \
                          top_logprobs stop n best_of echo suffix seed max_tokens max_completion_tokens logit_bias \
                          reasoning_effort chat_template_kwargs modalities store metadata";
    const NAMES: &str = "type function name arguments parameters json_schema schema content text refusal id tool_calls \
                         tool_call_id function_call reasoning allowed_tools mode tools include_usage";
    const VALUES: &str = "function text json_object json_schema auto required none allowed_tools refusal a low call_1";

    fn word(words: &'static str) -> impl Strategy<Value = &'static str> + Clone {
        proptest::sample::select(words.split_whitespace().collect::<Vec<_>>())
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            4 => word(VALUES).prop_map(Value::from),
            1 => any::<Option<i64>>().prop_map(|number| json!(number)),
            1 => any::<bool>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            let object = hash_map(word(NAMES), inner.clone(), 0..5).prop_map(|fields| json!(fields));
            prop_oneof![vec(inner, 0..4).prop_map(Value::from), object]
        })
    }

    fn any_message() -> impl Strategy<Value = Value> {
        let roles = word("system developer user assistant tool function critic");
        (roles, hash_map(word(NAMES), any_json(), 0..6)).prop_map(|(role, fields)| {
            let mut message = json!(fields);
            message["role"] = json!(role);
            message
        })
    }

    fn begins<C: CompletionRequest>(body: &Value) {
        if let Ok(completion) = C::parse(body, UnknownFields::Ignore) {
            let (_, requests) = completion.begin("tiny", &SamplingParams::default(), 0);
            assert!((1..=16).contains(&requests.len()));
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_is_a_panic(
            messages in vec(any_message(), 1..4),
            prompt in any_json(),
            field in word(FIELDS),
            value in any_json(),
        ) {
            let mut body = json!({ "messages": messages, "prompt": prompt });
            begins::<ChatCompletion>(&body);
            begins::<TextCompletion>(&body);
            body["messages"] = json!([{ "role": "user", "content": "hi" }]);
            body["prompt"] = json!("hi");
            body[field] = value;
            begins::<ChatCompletion>(&body);
            begins::<TextCompletion>(&body);
        }
    }
}
