//! What stands behind the `?` of an address.

use super::{
    error::{InvalidRequest, excerpt},
    include::INCLUDES,
};

const MAX_LIMIT: u64 = 100;
const DEFAULT_LIMIT: u64 = 20;

/// Names that no route knows are ignored, as they are elsewhere.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Query {
    /// Events, and not the object.
    pub stream: bool,
    /// The last event that the client has.
    pub starting_after: Option<u64>,
    /// Reasoning items have `encrypted_content`.
    pub encrypted_reasoning: bool,
    /// Most entries of a list.
    pub limit: u64,
    /// The first one first.
    pub is_ascending: bool,
    /// The entry behind which a list begins.
    pub after: Option<String>,
}

impl Query {
    /// Of the names and values, decoded.
    ///
    /// # Errors
    /// Names the first one that is wrong.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self, InvalidRequest> {
        let mut query = Self {
            stream: false,
            starting_after: None,
            encrypted_reasoning: false,
            limit: DEFAULT_LIMIT,
            is_ascending: false,
            after: None,
        };
        for (name, value) in pairs {
            let wrong = |expected: &str| {
                InvalidRequest::invalid(name, format!("must be {expected}, and it is `{}`", excerpt(value)))
            };
            match name.as_str() {
                "stream" => query.stream = parse_bool(value).ok_or_else(|| wrong("true or false"))?,
                "starting_after" => {
                    query.starting_after = Some(value.parse().map_err(|_| wrong("an integer of 0 or more"))?);
                }
                "include" | "include[]" => {
                    let known = INCLUDES.contains(&value.as_str());
                    known.then_some(()).ok_or_else(|| wrong(&format!("one of {}", INCLUDES.join(", "))))?;
                    query.encrypted_reasoning |= value == "reasoning.encrypted_content";
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                    query.limit = limit.ok_or_else(|| wrong(&format!("an integer from 1 to {MAX_LIMIT}")))?;
                }
                "order" => {
                    query.is_ascending = match value.as_str() {
                        "asc" => true,
                        "desc" => false,
                        _ => return Err(wrong("`asc` or `desc`")),
                    };
                }
                "after" => query.after = Some(value.clone()),
                _ => {}
            }
        }
        Ok(query)
    }
}

fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Query, InvalidRequest> {
        Query::parse(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_left_open_has_a_default() {
        let query = parse(&[("later", "x")]).unwrap();
        assert_eq!((query.stream, query.limit, query.is_ascending, query.after), (false, 20, false, None));
    }

    #[test]
    fn each_name_is_read() {
        let pairs = [
            ("stream", "true"),
            ("starting_after", "7"),
            ("include[]", "file_search_call.results"),
            ("include", "reasoning.encrypted_content"),
            ("limit", "100"),
            ("order", "asc"),
            ("after", "msg_1"),
        ];
        let expected = Query {
            stream: true,
            starting_after: Some(7),
            encrypted_reasoning: true,
            limit: 100,
            is_ascending: true,
            after: Some("msg_1".to_owned()),
        };
        assert_eq!(parse(&pairs).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let pairs = [
            ("stream", "yes"),
            ("starting_after", "-1"),
            ("include[]", "all"),
            ("limit", "0"),
            ("limit", "101"),
            ("order", "up"),
        ];
        let errors: Vec<String> = pairs.iter().map(|pair| parse(&[*pair]).unwrap_err().message).collect();
        insta::assert_snapshot!(errors.join("\n"), @r"
        `stream` must be true or false, and it is `yes`
        `starting_after` must be an integer of 0 or more, and it is `-1`
        `include[]` must be one of reasoning.encrypted_content, message.output_text.logprobs, code_interpreter_call.outputs, computer_call_output.output.image_url, file_search_call.results, message.input_image.image_url, web_search_call.action.sources, web_search_call.results, and it is `all`
        `limit` must be an integer from 1 to 100, and it is `0`
        `limit` must be an integer from 1 to 100, and it is `101`
        `order` must be `asc` or `desc`, and it is `up`
        ");
    }
}
