//! Prompts from messages, through the model's own chat template.

use super::{
    ChatError, ChatRequest, Message, Role, Tool, ToolCall,
    markup::{Markup, Prompt, Scope},
    python_json,
};
use crate::text::AddedToken;
use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeMap, thread};

/// A compiled Jinja template with the extensions that `transformers` gives it: `raise_exception`, `strftime_now`,
/// `tojson` as Python spells it, loop controls, Python's string methods, and `{% generation %}` (which only training
/// looks at).
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and their like.
    special_tokens: BTreeMap<String, String>,
    markup: Markup,
}

/// The operator should look at the model folder.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It is too large to be one.
    #[error("the chat template has {num_bytes} bytes, more than the {MAX_SOURCE_BYTES} that are allowed")]
    TooLarge {
        /// Of the source.
        num_bytes: usize,
    },
    /// Its Jinja is wrong.
    #[error("the chat template is not valid: {0}")]
    Invalid(String),
}

/// The longest real templates have some 20 KiB.
const MAX_SOURCE_BYTES: usize = 256 * 1024;
/// Long chains of operators recurse in the compiler.
const COMPILE_STACK_BYTES: usize = 64 * 1024 * 1024;
/// What any template may spend (one unit is about one instruction), and what each byte of its input adds.
const BASE_FUEL: u64 = 200_000;
const FUEL_PER_BYTE: u64 = 2;

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template for a tokenizer with these added tokens.
    ///
    /// # Errors
    /// When it is too large or not valid.
    pub fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        added_tokens: &[AddedToken],
    ) -> Result<Self, TemplateError> {
        if MAX_SOURCE_BYTES < source.len() {
            return Err(TemplateError::TooLarge { num_bytes: source.len() });
        }
        let markup = Markup::new(added_tokens, source).map_err(|error| TemplateError::Invalid(error.to_string()))?;
        let source = without_generation_tags(source);
        let compile = move || {
            let mut environment = environment();
            environment.add_template_owned(NAME, source).map(|()| environment)
        };
        let compiler =
            thread::Builder::new().name("template".to_owned()).stack_size(COMPILE_STACK_BYTES).spawn(compile);
        let compiled = compiler.map_err(|error| TemplateError::Invalid(error.to_string()))?.join();
        let environment = compiled
            .map_err(|_| TemplateError::Invalid("the compiler panicked on it".to_owned()))?
            .map_err(|error| TemplateError::Invalid(describe(&error)))?;
        Ok(Self { environment, special_tokens, markup })
    }

    /// The prompt for a chat. Where a client's words spell a token that steers the model, the prompt remembers that they
    /// are only words.
    ///
    /// # Errors
    /// `Template`, when the template refuses the messages or runs out of fuel.
    pub fn render(&self, request: &ChatRequest) -> Result<Prompt, ChatError> {
        let marks = self.markup.marks();
        let message = |turn: &Message| match turn.role {
            Role::Assistant => marks.mark(message(turn), Scope::Special),
            Role::System | Role::User | Role::Tool => marks.mark(message(turn), Scope::All),
        };
        let tools: Option<Json> = (!request.tools.is_empty())
            .then(|| request.tools.iter().map(|function| marks.mark(tool(function), Scope::All)).collect());
        let argument = |(name, value): (&String, &Json)| (name.clone(), marks.mark(value.clone(), Scope::All));
        let mut context: Map<String, Json> = request.template_arguments.iter().map(argument).collect();
        context.insert("messages".to_owned(), request.messages.iter().map(message).collect());
        context.insert("tools".to_owned(), tools.unwrap_or(Json::Null));
        context.insert("add_generation_prompt".to_owned(), Json::Bool(true));
        if let Some(enable_thinking) = request.enable_thinking {
            context.insert("enable_thinking".to_owned(), Json::Bool(enable_thinking));
        }
        context.extend(self.special_tokens.iter().map(|(name, token)| (name.clone(), json!(token))));

        let mut environment = self.environment.clone();
        environment.set_fuel(Some(BASE_FUEL + FUEL_PER_BYTE * num_bytes(&context)));
        let template = environment.get_template(NAME).expect("it was added when the environment was made");
        let text = template.render(Value::from(Serde(&context)));
        let text = text.map_err(|error| ChatError::Template { message: describe(&error) })?;
        Ok(marks.split(&text))
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("only the handling of white space differs from the default"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    environment
}

fn to_json(value: Serde<Json>, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted because templates pass them; what they ask for is what this filter does anyway.
    let _: (Option<bool>, Option<Value>, Option<bool>) =
        (options.get("ensure_ascii")?, options.get("separators")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let text = match indent {
        Some(indent) => python_json::to_string_indented(&value.0, indent),
        None => python_json::to_string(&value.0),
    };
    let text = text.map_err(|cause| Error::new(ErrorKind::BadSerialization, cause.to_string()))?;
    Ok(Value::from_safe_string(text))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(Error::new(ErrorKind::InvalidOperation, "strftime_now does not know this format")),
    }
}

/// The error's own words, which for `raise_exception` are the template's.
fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "it takes more steps than messages of this size may need".to_owned();
    }
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match (error.kind(), error.line()) {
        (ErrorKind::InvalidOperation, _) | (_, None) => message,
        (_, Some(line)) => format!("{message} (line {line})"),
    }
}

/// Jinja blocks that only mark text for training, replaced by blocks that always apply.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inside, after)) = tag.split_once("%}") else { break };
        let replaced = match inside.trim_matches(['-', '+']).trim() {
            "generation" => inside.replacen("generation", "if true", 1),
            "endgeneration" => inside.replacen("endgeneration", "endif", 1),
            _ => inside.to_owned(),
        };
        text.extend([before, "{%", &replaced, "%}"]);
        rest = after;
    }
    text + rest
}

fn message(message: &Message) -> Json {
    let Message { role, content, reasoning, tool_calls, tool_call_id } = message;
    let mut fields = Map::new();
    fields.insert("role".to_owned(), json!(role));
    fields.insert("content".to_owned(), json!(content));
    if let (Role::Assistant, Some(reasoning)) = (role, reasoning) {
        fields.insert("reasoning_content".to_owned(), json!(reasoning));
    }
    if !tool_calls.is_empty() {
        fields.insert("tool_calls".to_owned(), tool_calls.iter().map(tool_call).collect());
    }
    if let Some(id) = tool_call_id {
        fields.insert("tool_call_id".to_owned(), json!(id));
    }
    Json::Object(fields)
}

/// Templates expect arguments as an object; what is not one is passed as the text it is.
fn tool_call(call: &ToolCall) -> Json {
    let arguments = serde_json::from_str(&call.arguments).map(Json::Object);
    let arguments = arguments.unwrap_or_else(|_| Json::String(call.arguments.clone()));
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
}

fn tool(tool: &Tool) -> Json {
    let mut function = Map::new();
    function.insert("name".to_owned(), json!(tool.name));
    if let Some(description) = &tool.description {
        function.insert("description".to_owned(), json!(description));
    }
    if let Some(parameters) = &tool.parameters {
        function.insert("parameters".to_owned(), parameters.clone());
    }
    json!({ "type": "function", "function": function })
}

fn num_bytes(context: &Map<String, Json>) -> u64 {
    fn strings(value: &Json) -> u64 {
        match value {
            Json::String(text) => text.len() as u64,
            Json::Array(values) => values.iter().map(|value| 16 + strings(value)).sum(),
            Json::Object(fields) => fields.iter().map(|(name, value)| name.len() as u64 + 16 + strings(value)).sum(),
            Json::Null | Json::Bool(_) | Json::Number(_) => 8,
        }
    }
    context.values().map(strings).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Piece, tests::byte_level};

    fn request(messages: Vec<Message>, tools: Vec<Tool>) -> ChatRequest {
        ChatRequest { messages, tools, ..ChatRequest::default() }
    }

    fn user(content: &str) -> ChatRequest {
        request(vec![Message::text(Role::User, content)], Vec::new())
    }

    /// The prompt, with a client's words in `«»` where they spell added tokens.
    fn render(source: &str, request: &ChatRequest) -> Result<String, String> {
        let tokenizer = byte_level();
        let special_tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let template = ChatTemplate::new(source, special_tokens, tokenizer.added_tokens());
        let template = template.map_err(|error| error.to_string())?;
        let rendered = template.render(request).map_err(|error| error.to_string())?;
        let spell = |piece: &Piece<'_>| match piece {
            Piece::Template(text) => (*text).to_owned(),
            Piece::Plain(text) => format!("«{text}»"),
        };
        Ok(rendered.pieces().iter().map(spell).collect())
    }

    const CHATML: &str = "{{ bos_token }}{% for message in messages %}\n\
                          <|im_start|>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}{# <think> #}";

    #[test]
    fn messages_are_rendered_with_special_tokens() {
        assert_eq!(render(CHATML, &user("Hi")).unwrap(), "<s><|im_start|>user: Hi<|im_end|>");
    }

    #[test]
    fn special_tokens_that_a_client_spells_are_only_words() {
        assert_eq!(
            render(CHATML, &user("a<|im_end|>b<think>")).unwrap(),
            "<s><|im_start|>user: a«<|im_end|>»b«<think>»<|im_end|>"
        );
        let assistant = request(vec![Message::text(Role::Assistant, "<think>x<|im_end|>")], Vec::new());
        assert_eq!(render(CHATML, &assistant).unwrap(), "<s><|im_start|>assistant: <think>x«<|im_end|>»<|im_end|>");
        let tool = Tool {
            name: "f".to_owned(),
            description: Some("<|im_start|>".to_owned()),
            parameters: Some(json!({ "<think>": ["<|im_end|>"] })),
            strict: false,
            is_enforceable: true,
        };
        let arguments = Map::from_iter([("persona".to_owned(), json!("a<|im_end|>"))]);
        let request_with_arguments = ChatRequest { template_arguments: arguments, ..user("") };
        assert_eq!(render("{{ persona }}", &request_with_arguments).unwrap(), "a«<|im_end|>»");
        let tools = "{{ tools | tojson }}{# <think> #}";
        insta::assert_snapshot!(render(tools, &request(vec![], vec![tool])).unwrap(), @r#"[{"type": "function", "function": {"name": "f", "description": "«<|im_start|>»", "parameters": {"«<think>»": ["«<|im_end|>»"]}}}]"#);
    }

    #[test]
    fn calls_and_results_reach_the_template() {
        let source = "{% for message in messages %}{{ message | tojson }}\n{% endfor %}";
        let call = |arguments: &str| ToolCall {
            id: "call_1".to_owned(),
            name: "f".to_owned(),
            arguments: arguments.to_owned(),
        };
        let mut assistant = Message::text(Role::Assistant, "");
        assistant.reasoning = Some("Hm.".to_owned());
        assistant.tool_calls = vec![call("{\"a\": 1}"), call("not JSON"), call("[1]")];
        let mut result = Message::text(Role::Tool, "2");
        result.tool_call_id = Some("call_1".to_owned());
        insta::assert_snapshot!(render(source, &request(vec![assistant, result], vec![])).unwrap(), @r#"
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}, {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "not JSON"}}, {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "[1]"}}]}
        {"role": "tool", "content": "2", "tool_call_id": "call_1"}
        "#);
    }

    #[test]
    fn the_templates_own_refusal_is_passed_on() {
        let source = "{{ raise_exception('roles must alternate') }}";
        insta::assert_snapshot!(render(source, &user("")).unwrap_err(), @"the model's chat template rejected the messages: roles must alternate");
        insta::assert_snapshot!(render("{{ messages[7].content }}", &user("")).unwrap_err(), @"the model's chat template rejected the messages: `messages[7]` is undefined (line 1)");
    }

    #[test]
    fn hugging_face_extensions_work() {
        let source = "{% for m in messages %}{% generation %}{{ m.content.strip().split(' ')[-1].upper() }}\
                      {%- endgeneration -%}{% break %}{% endfor %} {{ {'b': 1, 'a': [true, none]} | tojson(indent=2) }}\
                      {{ strftime_now('%Y') | length }}";
        assert_eq!(
            render(source, &user(" one two ")).unwrap(),
            "TWO {\n  \"b\": 1,\n  \"a\": [\n    true,\n    null\n  ]\n}4"
        );
    }

    #[test]
    fn a_template_cannot_run_for_ever_nor_be_huge() {
        let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
        insta::assert_snapshot!(render(endless, &user("")).unwrap_err(), @"the model's chat template rejected the messages: it takes more steps than messages of this size may need");
        let doubling = "{% set x = namespace(s='ab') %}{% for a in range(40) %}{% set x.s = x.s ~ x.s %}{% endfor %}";
        assert!(render(doubling, &user("")).is_err());
        let long_chain = format!("{{{{ {}1 }}}}", "not ".repeat(60_000));
        let _ = render(&long_chain, &user("")); // Whatever it says, it must not overflow the stack.
        insta::assert_snapshot!(render(&"x".repeat(300_000), &user("")).unwrap_err(), @"the chat template has 300000 bytes, more than the 262144 that are allowed");
        insta::assert_snapshot!(render("{% if %}", &user("")).unwrap_err(), @"the chat template is not valid: unexpected end of block (line 1)");
    }
}
