//! What a reply has to follow, as a grammar: required and strict tool calls, and formats of the answer.

use super::{
    CallMode, ChatError, ChatRequest, OutputFormat, Tool,
    response_format::{ForcedCalls, Trigger, Writer, slashed},
};
use crate::{
    engine::Constraint,
    text::{GrammarCompiler, GrammarError},
};
use serde_json::{Map, Value, json};
use std::num::NonZeroU32;

/// A grammar in llguidance's variant of Lark, rule by rule.
#[derive(Debug, Default)]
struct Grammar {
    rules: String,
}

/// The constraint for a request that [is not free](is_free). `begins_reasoning` tells whether the prompt has.
///
/// # Errors
/// `InvalidFormat` or `InvalidTool`: the client should change a schema. `NoForcedCall`: no call of this model can be held to
/// anything.
pub(super) fn constraint(
    compiler: &GrammarCompiler,
    request: &ChatRequest,
    format: Writer<'_>,
    begins_reasoning: bool,
) -> Result<Box<dyn Constraint>, ChatError> {
    let mut tools: Vec<(&Tool, bool)> = callable(request).map(|tool| (tool, tool.is_enforceable)).collect();
    let grammar = |tools: &[(&Tool, bool)]| Grammar::of(request, tools, format, begins_reasoning);
    if let Ok(constraint) = compiler.compile(&grammar(&tools)?) {
        return Ok(constraint);
    }
    // A schema that was only meant as words may hold what no grammar can follow.
    for (tool, is_enforced) in tools.iter_mut().filter(|(tool, is_enforced)| *is_enforced && !tool.strict) {
        *is_enforced = compiles(compiler, &arguments(tool, true)).is_ok();
    }
    compiler.compile(&grammar(&tools)?).map_err(|error| blame(compiler, request, &tools, &error))
}

fn compiles(compiler: &GrammarCompiler, rule: &str) -> Result<Box<dyn Constraint>, GrammarError> {
    compiler.compile(&format!("start: {rule}\n"))
}

/// Tools that a reply may call.
pub(super) fn callable(request: &ChatRequest) -> impl Iterator<Item = &Tool> {
    let is_allowed = |tool: &&Tool| match (&request.calls.mode, &request.calls.allowed) {
        (CallMode::None, _) => false,
        (CallMode::Auto | CallMode::Required, Some(names)) => names.contains(&tool.name),
        (CallMode::Auto | CallMode::Required, None) => true,
    };
    request.tools.iter().filter(is_allowed)
}

/// Whether nothing is asked that a model might not do by itself.
pub(super) fn is_free(request: &ChatRequest) -> bool {
    let calls = &request.calls;
    let leaves_calls_free = callable(request).next().is_none()
        || (calls.mode == CallMode::Auto
            && calls.max_calls.is_none()
            && calls.allowed.is_none()
            && request.tools.iter().all(|tool| !tool.strict));
    leaves_calls_free && request.format == OutputFormat::Text
}

/// Which part of the request cannot be compiled.
fn blame(
    compiler: &GrammarCompiler,
    request: &ChatRequest,
    tools: &[(&Tool, bool)],
    error: &GrammarError,
) -> ChatError {
    if *error == GrammarError::Vocabulary {
        return ChatError::NoGrammar;
    }
    let of_tool = |(tool, is_enforced): &(&Tool, bool)| compiles(compiler, &arguments(tool, *is_enforced)).err();
    let broken = tools.iter().find_map(|tool| Some((tool.0, of_tool(tool)?)));
    match broken {
        Some((tool, error)) => ChatError::InvalidTool { name: tool.name.clone(), message: error.to_string() },
        None => {
            let of_answer = Grammar::answer(&request.format).and_then(|rule| compiles(compiler, &rule).err());
            ChatError::InvalidFormat { message: of_answer.as_ref().unwrap_or(error).to_string() }
        }
    }
}

impl Grammar {
    fn of(
        request: &ChatRequest,
        tools: &[(&Tool, bool)],
        format: Writer<'_>,
        begins_reasoning: bool,
    ) -> Result<String, ChatError> {
        let mut grammar = Self::default();
        grammar.rule("start", "reasoning reply");
        grammar.rule("SPACE", r"/[ \t\r\n]{0,8}/");
        grammar.rule("FREE", r"/(.|\n)*/");
        let not_reasoning = grammar.reasoning(request, format, begins_reasoning);
        let around = format.around_texts();
        let placed = |(before, behind): &(String, String), text: &str| format!("{before} {text} {behind}");
        let placed_answer = around.first().map_or_else(|| "answer".to_owned(), |around| placed(around, "answer"));
        let answer = Self::answer(&request.format);
        if let Some(answer) = &answer {
            grammar.rule("answer", answer);
        }
        if tools.is_empty() {
            grammar.rule("reply", &placed_answer);
            return Ok(grammar.rules);
        }
        let max_calls = request.calls.max_calls;
        let calls = format.calls(tools, max_calls).ok_or(ChatError::NoForcedCall)?;
        for (name, body) in &calls.rules {
            grammar.rule(name, body);
        }
        let more = match max_calls.map(NonZeroU32::get) {
            _ if !calls.repeats => String::new(),
            None => "(SPACE region)*".to_owned(),
            Some(1) => String::new(),
            Some(max) => format!("(SPACE region){{0,{}}}", max - 1),
        };
        match (request.calls.mode, answer) {
            (CallMode::Required, _) => grammar.rule("reply", &format!("region {more} SPACE")),
            (CallMode::Auto | CallMode::None, Some(_)) => {
                grammar.rule("reply", &format!("{placed_answer} | region {more} SPACE"));
            }
            (CallMode::Auto | CallMode::None, None) if !around.is_empty() => {
                let texts: Vec<String> = around.iter().map(|around| placed(around, "FREE")).collect();
                grammar.rule("said", &texts.join(" | "));
                grammar.rule("reply", &format!("said* | said* region {more} SPACE"));
            }
            (CallMode::Auto | CallMode::None, None) => {
                let max_calls = if calls.repeats { max_calls } else { NonZeroU32::new(1) };
                grammar.free_reply(&calls, &not_reasoning, max_calls);
            }
        }
        Ok(grammar.rules)
    }

    /// Text is free up to a mark, which ends it at once. Reasoning is not text: a mark in it means nothing.
    fn free_reply(&mut self, calls: &ForcedCalls, not_reasoning: &str, max_calls: Option<NonZeroU32>) {
        match &calls.trigger {
            Trigger::Text(text) => {
                self.rule("TEXT", &format!(r"/(.|\n)*/{not_reasoning}"));
                self.rule("TO_CALL", &format!("/{}/{not_reasoning}", slashed(&format!(r"(.|\n)*{text}"))));
                self.rule("to_call[lazy]", "TO_CALL");
            }
            Trigger::Token(token) => {
                self.rule("TEXT", &format!(r"/(.|\n)*/{not_reasoning}"));
                self.rule("to_call", &format!("TEXT {token}"));
            }
            Trigger::Beginning(beginning) => {
                let not_call = format!(r" & ~/{}/", slashed(&format!(r"[ \t\r\n]*{beginning}(.|\n)*")));
                self.rule("TEXT", &format!(r"/(.|\n)*/{not_reasoning}{not_call}"));
                return self.rule("reply", "TEXT | SPACE region SPACE");
            }
        }
        // Text behind the last call that is allowed could begin another one.
        let calls = match max_calls {
            None => "(to_call behind_trigger)+ TEXT".to_owned(),
            Some(max) => format!("(to_call behind_trigger){{1,{max}}} SPACE"),
        };
        self.rule("reply", &format!("TEXT | {calls}"));
    }

    /// Reasoning is free up to its end. What keeps a text from being taken for it.
    fn reasoning(&mut self, request: &ChatRequest, format: Writer<'_>, has_begun: bool) -> String {
        let reasoning = format.reasoning();
        let may_begin = request.enable_thinking != Some(false);
        match &reasoning {
            Some(reasoning) if has_begun || may_begin => {
                self.rule(&reasoning.rule.0, &reasoning.rule.1);
                let body = match has_begun {
                    true => "thought SPACE".to_owned(),
                    false => format!("SPACE | SPACE {} thought SPACE", reasoning.open),
                };
                self.rule("reasoning", &body);
            }
            _ => self.rule("reasoning", "SPACE"),
        }
        let beginning = reasoning.and_then(|reasoning| reasoning.beginning);
        beginning.map_or_else(String::new, |text| format!(" & ~/{}/", slashed(&format!(r"[ \t\r\n]*{text}(.|\n)*"))))
    }

    /// None for a free answer.
    fn answer(format: &OutputFormat) -> Option<String> {
        match format {
            OutputFormat::Text => None,
            OutputFormat::Json => Some(json_rule(&json!({ "type": "object" }))),
            OutputFormat::JsonSchema(schema) => Some(json_rule(schema)),
            OutputFormat::Regex(pattern) => Some(format!("/{}/", slashed(pattern))),
            OutputFormat::Lark(grammar) => Some(format!("%lark {{\n{grammar}\n}}")),
        }
    }

    fn rule(&mut self, name: &str, body: &str) {
        self.rules.extend([name, ": ", body, "\n"]);
    }
}

/// The arguments of a call: any object, where the schema is not enforced.
pub(super) fn arguments(tool: &Tool, is_enforced: bool) -> String {
    let schema = tool.parameters.as_ref().filter(|_| is_enforced);
    json_rule(schema.unwrap_or(&json!({ "type": "object" })))
}

/// JSON that follows a schema. White space is limited: a model that is not sure what to say next could go on with it for
/// ever.
pub(super) fn json_rule(schema: &Value) -> String {
    // `true` and `false` are schemas, too.
    let wrapped = || Map::from_iter([("allOf".to_owned(), json!([schema]))]);
    let mut schema = schema.as_object().cloned().unwrap_or_else(wrapped);
    schema.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": r"[ \t\n]{0,24}" }));
    format!("%json {}", Value::Object(schema))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{Calls, Delta, FormatCalls, ReplyParser, ResponseFormat},
        engine::TokenId,
        text::{
            Piece, Tokenizer,
            tests::{byte_level, byte_level_description},
        },
    };

    const END: TokenId = TokenId(257);

    fn tool(name: &str, strict: bool) -> Tool {
        let parameters = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"],
                                 "additionalProperties": false });
        Tool { name: name.to_owned(), parameters: Some(parameters), strict, is_enforceable: true, description: None }
    }

    /// A tokenizer in which these marks are special tokens.
    fn with_special_tokens(marks: &[&str]) -> Tokenizer {
        let mut description = byte_level_description();
        for (id, mark) in (259..).zip(marks) {
            let token = json!({ "id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                                "normalized": false, "special": true });
            description["added_tokens"].as_array_mut().unwrap().push(token);
        }
        Tokenizer::parse(&serde_json::to_vec(&description).unwrap()).unwrap()
    }

    fn follows(tokenizer: &Tokenizer, constraint: &mut dyn Constraint, text: &str) -> bool {
        let mut tokens = tokenizer.encode(&[Piece::Template(text)]).unwrap();
        tokens.push(END);
        tokens.iter().all(|token| {
            let mut scores = vec![0.0; 300];
            constraint.restrict(&mut scores).unwrap();
            let is_allowed = scores[token.index()] == 0.0;
            is_allowed && (*token == END || constraint.push(*token).is_ok())
        })
    }

    /// Which of these replies follow what the request asks for.
    fn allowed<'t>(request: &ChatRequest, begins_reasoning: bool, replies: &[&'t str]) -> Vec<&'t str> {
        allowed_in("hermes", &[], request, begins_reasoning, replies)
    }

    fn allowed_in<'t>(
        format: &str,
        special_tokens: &[&str],
        request: &ChatRequest,
        begins_reasoning: bool,
        replies: &[&'t str],
    ) -> Vec<&'t str> {
        let tokenizer = with_special_tokens(special_tokens);
        let compiler = GrammarCompiler::new(&tokenizer, 300, &[END]).unwrap();
        assert!(!is_free(request));
        let format = ResponseFormat::named(format).unwrap();
        let format = format.writer(FormatCalls::OwnOrOurs, tokenizer.added_tokens());
        let constraint = constraint(&compiler, request, format, begins_reasoning).unwrap();
        replies.iter().copied().filter(|reply| follows(&tokenizer, &mut *constraint.clone(), reply)).collect()
    }

    fn call(name: &str, arguments: &str) -> String {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    }

    #[test]
    fn most_requests_need_no_grammar() {
        let tools = vec![tool("f", false)];
        assert!(is_free(&ChatRequest::default()));
        assert!(is_free(&ChatRequest { tools, ..ChatRequest::default() }));
    }

    #[test]
    fn a_required_call_is_made_and_its_arguments_are_valid() {
        let calls = Calls { mode: CallMode::Required, ..Calls::default() };
        let request = ChatRequest { tools: vec![tool("f", false), tool("g", false)], calls, ..ChatRequest::default() };
        let (f, g) = (call("f", "{\"a\": 1}"), call("g", "{ \"a\": 22 }"));
        let (both, thought) = (format!("{f}\n{g}"), format!("<think>I </tool_call> \n</think>\n\n{f}"));
        let wrong = [call("f", "{}"), call("h", "{\"a\": 1}"), call("f", "{\"a\": \"1\"}"), format!("Well. {f}")];
        let good = [&*f, &*g, &*both, &*thought];
        assert_eq!(allowed(&request, false, &good), good);
        assert_eq!(allowed(&request, false, &[&wrong[0], &wrong[1], &wrong[2], &wrong[3], "text", ""]), [""; 0]);
        let thought_on = format!("Hm.</think>{f}");
        assert_eq!(allowed(&request, true, &[&f, &thought_on]), [&*thought_on], "the prompt has begun the reasoning");
    }

    #[test]
    fn calls_can_be_limited_to_some_tools_and_to_a_number() {
        let calls = Calls { allowed: Some(vec!["f".to_owned()]), max_calls: NonZeroU32::new(1), ..Calls::default() };
        let request = ChatRequest { tools: vec![tool("f", false), tool("g", false)], calls, ..ChatRequest::default() };
        let (f, g) = (call("f", "{\"a\": 1}"), call("g", "{\"a\": 1}"));
        let (twice, said) = (format!("{f}\n{f}"), format!("Let me see.\n{f}"));
        assert_eq!(allowed(&request, false, &[&f, &g, &twice, &said, "Just text."]), [&*f, &*said, "Just text."]);
    }

    #[test]
    fn a_strict_tool_is_held_to_its_schema_once_its_call_has_begun() {
        let request = ChatRequest { tools: vec![tool("f", true)], ..ChatRequest::default() };
        let (good, bad) = (call("f", "{\"a\": 1}"), call("f", "{\"b\": 1}"));
        let (twice, said) = (format!("a {good} b {good} c"), format!("a {good} b {bad}"));
        let thought = format!("<think>Is <tool_call> {{ needed?</think>\n\n{good}");
        let wrong = [&*bad, &*said, &*thought.replace("\"a\"", "\"b\"")].map(str::to_owned);
        let good = [&*good, &*twice, "1 < 2 <tool", &*thought, "<think>No <tool_call>.</think>\n\nWell."];
        assert_eq!(allowed(&request, false, &good), good);
        assert_eq!(allowed(&request, false, &[&wrong[0], &wrong[1], &wrong[2]]), [""; 0]);
    }

    #[test]
    fn the_answer_has_its_format_and_the_reasoning_is_free() {
        let format = |format| ChatRequest { format, ..ChatRequest::default() };
        let schema = OutputFormat::JsonSchema(json!({ "type": "array", "items": { "type": "boolean" } }));
        let replies = ["[true, false]", "<think>[</think>\n\n[]", "[1]", "{\"a\": [1]}", "x", "a/b"];
        assert_eq!(allowed(&format(schema.clone()), false, &replies), replies[..2]);
        assert_eq!(allowed(&format(OutputFormat::Json), false, &replies), [replies[3]]);
        assert_eq!(allowed(&format(OutputFormat::Regex("a/b|[xy]".to_owned())), false, &replies), ["x", "a/b"]);
        assert_eq!(
            allowed(&format(OutputFormat::Lark("start: \"x\" | A\nA: \"{\"".to_owned())), false, &replies),
            ["x"]
        );
        let silent = ChatRequest { enable_thinking: Some(false), ..format(schema.clone()) };
        assert_eq!(allowed(&silent, false, &replies), ["[true, false]"]);
        let with_tools = ChatRequest { tools: vec![tool("f", false)], ..format(schema) };
        let f = call("f", "{\"a\": 1}");
        assert_eq!(allowed(&with_tools, false, &[&f, "[true]", "text"]), [&*f, "[true]"]);
    }

    #[test]
    fn a_schema_that_is_only_words_need_not_be_one() {
        let calls = Calls { mode: CallMode::Required, ..Calls::default() };
        for (parameters, is_enforceable) in [(json!({ "properties": [] }), true), (json!({ "required": ["b"] }), false)]
        {
            let tools =
                vec![Tool { parameters: Some(parameters), is_enforceable, ..tool("f", false) }, tool("g", false)];
            let request = ChatRequest { tools, calls: calls.clone(), ..ChatRequest::default() };
            let (f, g) = (call("f", "{\"x\": []}"), call("g", "{\"x\": []}"));
            assert_eq!(allowed(&request, false, &[&f, &g]), [&*f], "that of the other tool is followed");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_blamed_on_its_place() {
        let tokenizer = byte_level();
        let compiler = GrammarCompiler::new(&tokenizer, 300, &[END]).unwrap();
        let format = ResponseFormat::named("hermes").unwrap();
        let writer = format.writer(FormatCalls::Own, &[]);
        let error = |request: &ChatRequest| constraint(&compiler, request, writer, false).unwrap_err().to_string();
        let format = OutputFormat::JsonSchema(json!({ "type": "strnig" }));
        let mut tools = vec![tool("f", true), tool("g", false)];
        insta::assert_snapshot!(error(&ChatRequest { format: format.clone(), tools: tools.clone(), ..ChatRequest::default() }), @"no answer can be held to this format: failed to compile JSON schema: Invalid type: strnig");
        tools[0].parameters = Some(json!({ "properties": [] }));
        insta::assert_snapshot!(error(&ChatRequest { format, tools, ..ChatRequest::default() }), @"no call can be held to the parameters of the tool `f`: failed to compile JSON schema: properties must be an object");
    }

    /// A tool with parameters of several types, the last one optional.
    fn typed(name: &str, strict: bool) -> Tool {
        let properties = json!({ "city": { "type": "string" }, "days": { "type": "integer" },
                                 "unit": { "type": "string", "enum": ["C", "F"] }, "dry": { "type": "boolean" } });
        let parameters = json!({ "type": "object", "properties": properties, "required": ["city", "days"],
                                 "additionalProperties": false });
        Tool { parameters: Some(parameters), ..tool(name, strict) }
    }

    /// How each format writes the call of `f` with these arguments, with their wrong type, and its special tokens.
    const CALLS: &[(&str, &str, &str, &[&str])] = &[
        (
            "hermes",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"a/b\", \"days\": 3}}\n</tool_call>",
            "3",
            &[],
        ),
        (
            "qwen3-coder",
            "<tool_call>\n<function=f>\n<parameter=city>\na/b <x> </function>\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
             <parameter=dry>\ntrue\n</parameter>\n</function>\n</tool_call>",
            "3",
            &[],
        ),
        ("qwen3-coder", "<function=f><parameter=city></parameter><parameter=days>3</parameter></function>", "3", &[]),
        (
            "glm-4",
            "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n\
             <arg_key>unit</arg_key><arg_value>C</arg_value></tool_call>",
            "3",
            &["<arg_key>", "</arg_value>"],
        ),
        (
            "minimax-m2",
            "<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"city\">Oslo</parameter>\n\
             <parameter name=\"days\">3</parameter>\n</invoke>\n</minimax:tool_call>",
            "3",
            &[],
        ),
        ("llama-3", "{\"name\": \"f\", \"parameters\": {\"city\": \"Oslo\", \"days\": 3}}", "3", &["<|python_tag|>"]),
        ("llama-4-pythonic", "[f(city=\"Oslo\", days=3, dry=True)]", "3", &[]),
        (
            "lfm2",
            "<|tool_call_start|>[f(city=\"Oslo\", days=3), f(city=\"x\",days=1)]<|tool_call_end|>",
            "3",
            &["<|tool_call_start|>", "<|tool_call_end|>"],
        ),
        (
            "mistral",
            "[TOOL_CALLS]f[ARGS]{\"city\": \"Oslo\", \"days\": 3}",
            "3",
            &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        ),
        ("gemma-3", "```tool_code\nf(city=\"Oslo\", days=3)\n```", "3", &[]),
        (
            "gemma-4",
            "<|tool_call>call:f{city:<|\"|>Os\"lo<|\"|>,days:3,unit:<|\"|>F<|\"|>}<tool_call|>",
            "3",
            &["<|tool_call>", "<tool_call|>", "<|\"|>"],
        ),
        ("functiongemma", "<start_function_call>call:f{city:<escape>Oslo<escape>,days:3}<end_function_call>", "3", &[]),
        (
            "gpt-oss",
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"city\": \"Oslo\", \"days\": 3}",
            "3",
            &["<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"],
        ),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"city\": \"Oslo\", \"days\": 3}\n```\
             <｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "3",
            &[],
        ),
        (
            "deepseek-v3.1",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"city\": \"Oslo\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "3",
            &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
        ),
        (
            "phi-4-mini",
            "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}]<|/tool_call|>",
            "3",
            &["<|tool_call|>", "<|/tool_call|>"],
        ),
        (
            "nemotron",
            "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}]</TOOLCALL>",
            "3",
            &[],
        ),
        (
            "granite-3",
            "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}]",
            "3",
            &["<|tool_call|>"],
        ),
        (
            "command-r",
            "<|START_ACTION|>[{\"tool_name\": \"f\", \"parameters\": {\"city\": \"Oslo\", \"days\": 3}}]<|END_ACTION|>",
            "3",
            &["<|START_ACTION|>", "<|END_ACTION|>"],
        ),
        (
            "kimi-k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"city\": \"Oslo\", \"days\": 3}\
             <|tool_call_end|><|tool_calls_section_end|>",
            "3",
            &[
                "<|tool_calls_section_begin|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
        ),
        (
            "jamba",
            "<tool_calls>[{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}]</tool_calls>",
            "3",
            &[],
        ),
        (
            "deepseek-v3.2",
            "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Oslo</｜DSML｜parameter>\n\
             <｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            "3",
            &[],
        ),
        (
            "seed-oss",
            "<seed:tool_call>\n<function=f>\n<parameter=city>Oslo</parameter>\n<parameter=days>3</parameter>\n</function>\n\
             </seed:tool_call>",
            "3",
            &["<seed:tool_call>", "</seed:tool_call>"],
        ),
        (
            "minicpm-5",
            "<function name=\"f\"><param name=\"city\"><![CDATA[Oslo]]></param><param name=\"days\">3</param></function>",
            "3",
            &[],
        ),
        (
            "gigachat-3",
            "<|function_call|>{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}",
            "3",
            &["<|function_call|>"],
        ),
        ("functionary-3.1", "<function=f>{\"city\": \"Oslo\", \"days\": 3}</function>", "3", &[]),
        ("glm-4-0414", "f\n{\"city\": \"Oslo\", \"days\": 3}", "3", &[]),
        (
            "think",
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}</tool_call>",
            "3",
            &[],
        ),
    ];

    #[test]
    fn every_format_can_be_held_to_a_call() {
        for (format, good, digit, special_tokens) in CALLS {
            let calls = Calls { mode: CallMode::Required, ..Calls::default() };
            let request =
                ChatRequest { tools: vec![typed("g", false), typed("f", false)], calls, ..ChatRequest::default() };
            let bad = [good.replace(digit, "many"), good.replace('f', "h"), "Well.".to_owned(), String::new()];
            let replies = [*good, &*bad[0], &*bad[1], &*bad[2], &*bad[3]];
            assert_eq!(allowed_in(format, special_tokens, &request, false, &replies), [*good], "{format}");
        }
    }

    #[test]
    fn every_format_holds_a_strict_tool_to_its_schema_once_its_call_has_begun() {
        for (format, good, digit, special_tokens) in CALLS {
            if *format == "think" {
                continue; // Calls only where it must.
            }
            let request = ChatRequest { tools: vec![typed("f", true)], ..ChatRequest::default() };
            let said = match *format {
                "gpt-oss" => format!("<|channel|>commentary<|message|>Well.<|end|><|start|>assistant{good}"),
                "glm-4-0414" | "llama-3" | "llama-4-pythonic" => (*good).to_owned(),
                _ => format!("Well.\n{good}"),
            };
            let text = if *format == "gpt-oss" { "<|channel|>final<|message|>Well.<|return|>" } else { "Well, 1 < 2." };
            let bad = [good.replace(digit, "many"), said.replace(digit, "many")];
            let replies = [*good, &*said, text, &*bad[0], &*bad[1]];
            let text = if *format == "gpt-oss" { "<|channel|>final<|message|>Well." } else { text };
            let replies = [replies[0], replies[1], text, replies[3], replies[4]];
            assert_eq!(allowed_in(format, special_tokens, &request, false, &replies), replies[..3], "{format}");
        }
    }

    #[test]
    fn what_a_grammar_holds_to_is_what_the_parser_hears() {
        for (format, good, _, special_tokens) in CALLS {
            let format = ResponseFormat::named(format).unwrap().with_special_tokens(special_tokens.iter().copied());
            let mut parser = ReplyParser::new(&format, FormatCalls::OwnOrOurs, "", vec![typed("f", false)]);
            let deltas = [parser.push(good), parser.finish(false)].concat();
            let said: String = deltas
                .iter()
                .map_while(|delta| {
                    if let Delta::Arguments(text) = delta {
                        Some(text.as_str())
                    } else {
                        (!matches!(delta, Delta::ToolCallEnd)).then_some("")
                    }
                })
                .collect();
            let arguments: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{good}: {deltas:?}"));
            assert_eq!(
                (&deltas[0], &arguments["days"]),
                (&Delta::ToolCall { name: "f".to_owned() }, &json!(3)),
                "{good}"
            );
            assert_eq!(deltas.last(), Some(&Delta::ToolCallEnd), "{good}");
        }
    }

    #[test]
    fn reasoning_between_special_tokens_is_free() {
        let calls = Calls { mode: CallMode::Required, ..Calls::default() };
        let request = ChatRequest { tools: vec![typed("f", false)], calls, ..ChatRequest::default() };
        let tokens = ["<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"];
        let call = "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{\"city\": \"\", \"days\": 3}";
        let good = format!("<|channel|>analysis<|message|>It is </think> {{.<|end|>{call}");
        let bad = good.replace("<|end|>", "");
        assert_eq!(allowed_in("gpt-oss", &tokens, &request, false, &[&good, &bad]), [&*good]);
        let schema = OutputFormat::JsonSchema(json!({ "type": "boolean" }));
        let request = ChatRequest { format: schema, ..ChatRequest::default() };
        let answer = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>true";
        assert_eq!(allowed_in("gpt-oss", &tokens, &request, false, &[answer, "true"]), [answer]);
    }

    #[test]
    fn a_format_that_no_grammar_can_write_says_so() {
        let lines = json!({ "start_anchor": "<a>", "fields": { "tool_calls": {
            "open_pattern": "(?P<name>.)\\(", "content": "kv-lines",
            "transform": { "function": { "name": "{name}", "arguments": "{content}" } } } } });
        let format = ResponseFormat::pick(None, "", Some(&lines), "auto").unwrap();
        let tokenizer = byte_level();
        let compiler = GrammarCompiler::new(&tokenizer, 300, &[END]).unwrap();
        let request = ChatRequest { tools: vec![tool("f", true)], ..ChatRequest::default() };
        let error = constraint(&compiler, &request, format.writer(FormatCalls::Own, &[]), false).unwrap_err();
        insta::assert_snapshot!(error, @"this model writes calls in a way that none can be held to; ask for `tool_choice: \"auto\"` and tools that are not strict");
    }
}
