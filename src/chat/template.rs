//! Prompts from messages, through the model's own chat template.

use super::{
    Capabilities, ChatError, ChatRequest, Message, Role, Tool, adaptation,
    jinja::Jinja,
    markup::{Marks, Markup, Prompt, Scope},
};
use crate::text::AddedToken;
use chrono::{DateTime, Local};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// A model's compiled chat template, and what it can say.
#[derive(Debug)]
pub struct ChatTemplate {
    jinja: Jinja,
    /// Of the template for all conversations, and of the one for those with tools if that is another.
    capabilities: Capabilities,
    tool_use: Option<Capabilities>,
    /// `bos_token`, `eos_token` and their like.
    special_tokens: BTreeMap<String, String>,
    markup: Markup,
}

/// The templates of a model folder.
#[derive(Clone, Copy, Debug)]
pub struct TemplateSources<'a> {
    /// For all conversations.
    pub default: &'a str,
    /// For those with tools, where that is another (`tool_use` in a list of named templates).
    pub tool_use: Option<&'a str>,
}

impl<'a> From<&'a str> for TemplateSources<'a> {
    fn from(default: &'a str) -> Self {
        Self { default, tool_use: None }
    }
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

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Compiles a template for a tokenizer with these added tokens, and finds out what it can say.
    ///
    /// # Errors
    /// When it is too large or not valid.
    pub fn new<'a>(
        sources: impl Into<TemplateSources<'a>>,
        special_tokens: BTreeMap<String, String>,
        added_tokens: &[AddedToken],
    ) -> Result<Self, TemplateError> {
        Self::at(Local::now, sources.into(), special_tokens, added_tokens)
    }

    /// The same at another time, which templates can ask for.
    fn at(
        now: fn() -> DateTime<Local>,
        sources: TemplateSources<'_>,
        special_tokens: BTreeMap<String, String>,
        added_tokens: &[AddedToken],
    ) -> Result<Self, TemplateError> {
        let TemplateSources { default, tool_use } = sources;
        let num_bytes = default.len().max(tool_use.map_or(0, str::len));
        if MAX_SOURCE_BYTES < num_bytes {
            return Err(TemplateError::TooLarge { num_bytes });
        }
        let both = [default, tool_use.unwrap_or_default()].concat();
        let markup = Markup::new(added_tokens, &both).map_err(|error| TemplateError::Invalid(error.to_string()))?;
        let named = [Some((DEFAULT, default)), tool_use.map(|source| (TOOL_USE, source))];
        let named = named.into_iter().flatten().map(|(name, source)| (name.to_owned(), source.to_owned())).collect();
        let jinja = Jinja::compile(named, now).map_err(TemplateError::Invalid)?;
        let probe = |name| {
            Capabilities::probe(|form, messages, tools| {
                let messages = adaptation::fields(messages, form);
                let context = context(messages, adaptation::tools(tools, form), Map::new(), &special_tokens);
                jinja.render(name, &context).ok()
            })
        };
        let (capabilities, tool_use) = (probe(DEFAULT), tool_use.map(|_| probe(TOOL_USE)));
        Ok(Self { jinja, capabilities, tool_use, special_tokens, markup })
    }

    /// What the template can say; of two, the one for conversations with tools.
    pub fn capabilities(&self) -> &Capabilities {
        self.tool_use.as_ref().unwrap_or(&self.capabilities)
    }

    /// The prompt for a chat. Where a client's words spell a token that steers the model, the prompt remembers that they
    /// are only words.
    ///
    /// # Errors
    /// `Template`, when the template refuses the messages or runs out of fuel.
    pub fn render(&self, request: &ChatRequest) -> Result<Prompt, ChatError> {
        let (name, capabilities) = self.named(&request.tools);
        let marks = self.markup.marks();
        let messages = adaptation::adapted(&request.messages, capabilities);
        let fields = adaptation::fields(&messages, capabilities);
        let fields = messages.iter().zip(fields).map(|(message, fields)| marks.mark(fields, scope(message))).collect();
        let tools = adaptation::tools(&request.tools, capabilities);
        let tools = tools.into_iter().map(|tool| marks.mark(tool, Scope::All)).collect();
        let context = context(fields, tools, arguments(request, &marks), &self.special_tokens);
        let text = self.jinja.render(name, &context).map_err(|message| ChatError::Template { message })?;
        Ok(marks.split(&text))
    }

    /// What the template writes behind an assistant's last words: it begins with the token that ends a turn, where the
    /// model has one. None where the template shows no such turn.
    pub fn end_of_turn(&self) -> Option<String> {
        const WORDS: &str = "Lantern";
        let messages = [Message::text(Role::User, "Whistle"), Message::text(Role::Assistant, WORDS)];
        let text = self.transcript(&messages, &[], false)?;
        text.rsplit_once(WORDS).map(|(_, behind)| behind.trim_start().to_owned())
    }

    /// What the template makes of messages as they are, which may end in a reply; none where it refuses them.
    pub(super) fn transcript(&self, messages: &[Message], tools: &[Tool], begins_reply: bool) -> Option<String> {
        let (name, capabilities) = self.named(tools);
        let (fields, tools) = (adaptation::fields(messages, capabilities), adaptation::tools(tools, capabilities));
        let mut context = context(fields, tools, Map::new(), &self.special_tokens);
        context.insert("add_generation_prompt".to_owned(), Json::Bool(begins_reply));
        self.jinja.render(name, &context).ok()
    }

    /// The template for conversations with these tools, and what it can say.
    fn named(&self, tools: &[Tool]) -> (&'static str, &Capabilities) {
        match &self.tool_use {
            Some(tool_use) if !tools.is_empty() => (TOOL_USE, tool_use),
            _ => (DEFAULT, &self.capabilities),
        }
    }
}

fn scope(message: &Message) -> Scope {
    match message.role {
        Role::Assistant => Scope::Special,
        Role::System | Role::User | Role::Tool => Scope::All,
    }
}

fn arguments(request: &ChatRequest, marks: &Marks<'_>) -> Map<String, Json> {
    let argument = |(name, value): (&String, &Json)| (name.clone(), marks.mark(value.clone(), Scope::All));
    let mut arguments: Map<String, Json> = request.template_arguments.iter().map(argument).collect();
    if let Some(enable_thinking) = request.enable_thinking {
        arguments.insert("enable_thinking".to_owned(), Json::Bool(enable_thinking));
    }
    arguments
}

/// The variables of a template.
fn context(
    messages: Vec<Json>,
    tools: Vec<Json>,
    arguments: Map<String, Json>,
    special_tokens: &BTreeMap<String, String>,
) -> Map<String, Json> {
    let mut context = arguments;
    context.insert("messages".to_owned(), Json::Array(messages));
    context.insert("tools".to_owned(), if tools.is_empty() { Json::Null } else { Json::Array(tools) });
    context.insert("documents".to_owned(), Json::Null);
    context.insert("add_generation_prompt".to_owned(), Json::Bool(true));
    context.extend(special_tokens.iter().map(|(name, token)| (name.clone(), json!(token))));
    context
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{CallForm, ToolCall},
        text::{Piece, tests::byte_level},
    };
    use chrono::TimeZone;
    use serde::Deserialize;

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
    fn what_ends_a_turn_stands_behind_the_words() {
        let end = |source: &str| ChatTemplate::new(source, BTreeMap::new(), &[]).unwrap().end_of_turn();
        assert_eq!(end(CHATML).as_deref(), Some("<|im_end|>"));
        assert_eq!(end("{% for m in messages %}{{ m.content }}\n<end>\n{% endfor %}").as_deref(), Some("<end>\n"));
        assert_eq!(end("{{ messages[0].content }}"), None);
    }

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
        let spelled = "{{ messages }} {{ messages | tojson(ensure_ascii=true) }}";
        insta::assert_snapshot!(render(spelled, &user("a<|im_end|>é")).unwrap(), @r#"[{'role': 'user', 'content': 'a«<|im_end|>»é'}] [{"role": "user", "content": "a«<|im_end|>»\u00e9"}]"#);
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
        {"thinking": "Hm.", "role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}, {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "not JSON"}}, {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "[1]"}}], "reasoning_content": "Hm."}
        {"role": "tool", "content": "2", "tool_call_id": "call_1", "name": "f"}
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
        let deep = "{% set x = namespace(l=[]) %}{% for a in range(90000) %}{% set x.l = [x.l] %}{% endfor %}";
        assert!(render(deep, &user("")).is_err()); // Nor does taking it apart overflow the stack.
        let long_chain = format!("{{{{ {}1 }}}}", "not ".repeat(60_000));
        let _ = render(&long_chain, &user("")); // Whatever it says, it must not overflow the stack.
        insta::assert_snapshot!(render(&"x".repeat(300_000), &user("")).unwrap_err(), @"the chat template has 300000 bytes, more than the 262144 that are allowed");
        insta::assert_snapshot!(render("{% if %}", &user("")).unwrap_err(), @"the chat template is not valid: unexpected end of block (line 1)");
    }

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Recorded>,
    }

    /// What transformers makes of a conversation: a prompt, or a refusal in the template's words if it has any.
    #[derive(Deserialize)]
    struct Recorded {
        template: String,
        conversation: String,
        prompt: Option<String>,
        refusal: Option<String>,
    }

    #[derive(Deserialize)]
    struct Conversation {
        messages: Vec<Json>,
        #[serde(default)]
        tools: Vec<Json>,
        #[serde(default)]
        arguments: Map<String, Json>,
        add_generation_prompt: Option<bool>,
    }

    fn corpus(path: &str) -> String {
        std::fs::read_to_string(format!("{}/tests/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn special_tokens() -> BTreeMap<String, String> {
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];
        tokens.map(|(name, token)| (name.to_owned(), token.to_owned())).into()
    }

    /// When the golden prompts were recorded.
    fn still_clock() -> DateTime<Local> {
        Local.with_ymd_and_hms(2026, 3, 7, 14, 5, 9).unwrap()
    }

    impl Conversation {
        /// The same conversation as a chat, where it is one.
        fn request(&self) -> Option<ChatRequest> {
            let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
            let message = |fields: &Json| {
                let role = match fields["role"].as_str()? {
                    "system" => Role::System,
                    "user" => Role::User,
                    "assistant" => Role::Assistant,
                    "tool" => Role::Tool,
                    _ => return None,
                };
                let mut message = Message::text(role, fields["content"].as_str()?);
                message.reasoning = fields["reasoning_content"].as_str().map(str::to_owned);
                message.tool_call_id = fields["tool_call_id"].as_str().map(str::to_owned);
                for call in fields["tool_calls"].as_array().into_iter().flatten() {
                    let (id, name) = (text(&call["id"]), text(&call["function"]["name"]));
                    let arguments = call["function"]["arguments"].to_string();
                    message.tool_calls.push(ToolCall { id, name, arguments });
                }
                Some(message)
            };
            let tool = |tool: &Json| Tool {
                name: text(&tool["function"]["name"]),
                description: tool["function"]["description"].as_str().map(str::to_owned),
                parameters: tool["function"].get("parameters").cloned(),
                strict: false,
                is_enforceable: true,
            };
            let is_chat = self.add_generation_prompt.is_none() && !self.arguments.contains_key("documents");
            is_chat.then_some(())?;
            Some(ChatRequest {
                messages: self.messages.iter().map(message).collect::<Option<_>>()?,
                tools: self.tools.iter().map(tool).collect(),
                template_arguments: self.arguments.clone(),
                ..ChatRequest::default()
            })
        }

        /// The variables that transformers gives a template.
        fn context(&self) -> Map<String, Json> {
            let mut messages = self.messages.clone();
            for fields in messages.iter_mut().filter_map(Json::as_object_mut) {
                if let Some(reasoning) = fields.get("reasoning_content").cloned() {
                    fields.shift_insert(0, "thinking".to_owned(), reasoning);
                }
            }
            let mut context = context(messages, self.tools.clone(), Map::new(), &special_tokens());
            context.insert("add_generation_prompt".to_owned(), json!(self.add_generation_prompt.unwrap_or(true)));
            context.extend(self.arguments.clone());
            context
        }
    }

    #[test]
    fn prompts_are_those_of_transformers() {
        let golden: Golden = serde_json::from_str(&corpus("golden/chat_templates.json")).unwrap();
        let conversations: BTreeMap<String, Conversation> =
            serde_json::from_str(&corpus("templates/conversations.json")).unwrap();
        let mut templates = BTreeMap::new();
        let mut num_chats = 0;
        for recorded in &golden.cases {
            let template = templates.entry(&recorded.template).or_insert_with(|| {
                let source = corpus(&format!("templates/{}.jinja", recorded.template));
                ChatTemplate::at(still_clock, source.as_str().into(), special_tokens(), &[]).unwrap()
            });
            let case = format!("{} / {}", recorded.template, recorded.conversation);
            let conversation = &conversations[&recorded.conversation];
            let rendered = template.jinja.render(DEFAULT, &conversation.context());
            assert_eq!(rendered.as_ref().ok(), recorded.prompt.as_ref(), "{case}: {rendered:?}");
            if let (Err(refusal), Some(words)) = (&rendered, &recorded.refusal) {
                assert_eq!(refusal, words, "{case}");
            }
            let Some(request) = conversation.request() else { continue };
            let messages = adaptation::adapted(&request.messages, &template.capabilities);
            let form = template.capabilities.calls.unwrap_or_default();
            let prompt = template.render(&request).unwrap_or_else(|error| panic!("{case}: {error}"));
            let is_as_it_was = messages == request.messages && !template.capabilities.content_parts;
            if is_as_it_was && form == CallForm::default() {
                num_chats += 1;
                let pieces = prompt.pieces();
                let text = |piece: &Piece<'_>| match piece {
                    Piece::Template(text) | Piece::Plain(text) => (*text).to_owned(),
                };
                assert_eq!(Some(pieces.iter().map(text).collect()), recorded.prompt, "{case}");
            }
        }
        eprintln!(
            "chat templates: {} renders of {} templates, {num_chats} of chats",
            golden.cases.len(),
            templates.len()
        );
        assert!(40 <= templates.len() && 300 < num_chats);
    }

    #[test]
    fn capabilities_are_found_out() {
        let mut found = String::new();
        let mut names: Vec<_> = std::fs::read_dir(format!("{}/tests/templates", env!("CARGO_MANIFEST_DIR")))
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".jinja").map(str::to_owned))
            .collect();
        names.sort();
        for name in names {
            let source = corpus(&format!("templates/{name}.jinja"));
            let template = ChatTemplate::new(source.as_str(), special_tokens(), &[]).unwrap();
            found += &format!("{name}: {}\n", template.capabilities());
        }
        insta::assert_snapshot!(found, @"
        alpaca: system messages anywhere, roles in any order, results
        chatml: system messages anywhere, roles in any order, results
        command-r: a system message first
        command-r-plus-tools: a system message first, roles in any order, tools, no tools without parameters, calls, parallel calls, results
        deepseek-r1: system messages anywhere, roles in any order, calls, arguments as text, null beside calls, no words beside calls, no reasoning beside words and calls, parallel calls, results
        deepseek-v2: system messages anywhere, roles in any order
        deepseek-v3.1: system messages anywhere, roles in any order, tools, no tools without parameters, calls, parallel calls, results
        exaone: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        falcon-3: system messages anywhere, roles in any order, tools
        features: 
        gemma-1: 
        gemma-3: a system message first
        gemma-4: system messages anywhere, roles in any order, tools, no tools without parameters, calls, parallel calls, results, reasoning
        glm-4: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        glm-4.5: system messages anywhere, roles in any order, tools, calls, parallel calls, results, reasoning
        gpt-oss: a system message first, roles in any order, tools, no tools without parameters, calls, no reasoning beside words and calls, parallel calls, results, reasoning
        granite-3: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        granite-4: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        hunyuan: a system message first, roles in any order
        internlm-2: system messages anywhere, roles in any order, results
        jamba: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        kimi-k2: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        lfm-2: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        llama-2: a system message first
        llama-3: system messages anywhere, roles in any order, results
        llama-3.1: system messages anywhere, roles in any order, tools, calls, results
        llama-3.2: system messages anywhere, roles in any order, results
        llama-4: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        minimax-m2: a system message first, roles in any order, tools, calls, parallel calls, results, reasoning
        mistral-tekken: a system message first, tools, calls, parallel calls, results
        mistral-v1: 
        mistral-v3: a system message first, tools, calls, ids of nine characters, parallel calls, results
        mixtral: a system message first
        nemotron-nano: a system message first, roles in any order, tools, calls, parallel calls, results
        olmo-2: system messages anywhere, roles in any order
        parts-only: content in parts, system messages anywhere, roles in any order, results
        phi-3: system messages anywhere, roles in any order
        phi-3.5: system messages anywhere, roles in any order, results
        phi-4: system messages anywhere, roles in any order
        phi-4-mini: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        qwen-1.5: system messages anywhere, roles in any order, results
        qwen-2.5: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        qwen-3: system messages anywhere, roles in any order, tools, calls, parallel calls, results, reasoning
        qwen-3-coder: system messages anywhere, roles in any order, tools, calls, parallel calls, results
        qwen-3.5: a system message first, roles in any order, tools, calls, parallel calls, results, reasoning
        smollm-2: system messages anywhere, roles in any order, results
        smollm-3: a system message first, roles in any order, tools, results
        vicuna: a system message first, roles in any order
        yi: a system message first, roles in any order
        zephyr: system messages anywhere, roles in any order
        ");
    }

    #[test]
    fn reasoning_has_the_name_that_the_template_reads() {
        let mut assistant = Message::text(Role::Assistant, "");
        assistant.reasoning = Some("Hm.".to_owned());
        let request = request(vec![assistant], vec![]);
        for name in ["reasoning_content", "thinking", "reasoning"] {
            assert_eq!(
                render(
                    &format!("{{% for m in messages %}}{{{{ m.{name} }}}}{{{{ m.content }}}}{{% endfor %}}"),
                    &request
                )
                .unwrap(),
                "Hm."
            );
        }
    }

    #[test]
    fn a_template_for_tools_is_taken_where_there_are_tools() {
        let sources = TemplateSources { default: "plain", tool_use: Some("{{ tools[0].function.name }}") };
        let template = ChatTemplate::new(sources, BTreeMap::new(), &[]).unwrap();
        let tool =
            Tool { name: "f".to_owned(), description: None, parameters: None, strict: false, is_enforceable: true };
        let prompt = |request: &ChatRequest| template.render(request).unwrap().last_words().to_owned();
        assert_eq!(prompt(&user("")), "plain");
        assert_eq!(prompt(&request(vec![Message::text(Role::User, "")], vec![tool])), "f");
    }
}
