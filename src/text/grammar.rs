//! Grammars that a reply has to follow.

use super::Tokenizer;
use crate::engine::{Constraint, ConstraintError, TokenId};
use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokRxInfo, TokTrie, TokenizerEnv},
};
use std::{
    fmt,
    sync::{Arc, Mutex},
    thread,
};

/// Compiles grammars for one model.
pub struct GrammarCompiler {
    factory: ParserFactory,
    /// Compiled ones, the one used last at the end.
    cache: Mutex<Vec<(String, Matcher)>>,
}

/// Why a grammar cannot be followed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GrammarError {
    /// The client should change it.
    #[error("{0}")]
    Invalid(String),
    /// The operator should know.
    #[error("this model's tokens are not bytes, so its replies cannot follow a grammar")]
    Vocabulary,
}

/// Compiled grammars that are kept, and bytes of their text.
const MAX_CACHED: usize = 32;
const MAX_CACHED_BYTES: usize = 1 << 20;
/// The library recurses along the grammar: some hundred references in a chain overflow a stack of 2 MiB, which nothing can
/// catch.
const COMPILE_STACK_BYTES: usize = 256 << 20;
/// A chain as long as this text can spell fits on that stack.
const MAX_GRAMMAR_BYTES: usize = 512 * 1024;
/// Of the automaton that reads the text, 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 50_000;

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// For a model that scores `vocab_size` tokens, of which `stop_tokens` end a reply.
    ///
    /// # Errors
    /// `Vocabulary`
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, stop_tokens: &[TokenId]) -> Result<Self, GrammarError> {
        let mut words = tokenizer.token_bytes().ok_or(GrammarError::Vocabulary)?.to_vec();
        // A special token is never part of a text, however it is spelled.
        for token in tokenizer.added_tokens().iter().filter(|token| token.is_special) {
            if let Some(word) = words.get_mut(token.id as usize) {
                word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
        }
        words.resize(vocab_size, Vec::new());
        let stop_tokens: Vec<u32> = stop_tokens.iter().map(|token| token.0).collect();
        let vocab_size = u32::try_from(vocab_size).map_err(|_| GrammarError::Vocabulary)?;
        let first = *stop_tokens.first().ok_or(GrammarError::Vocabulary)?;
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, first), &words).with_eos_tokens(&stop_tokens);
        let slices = SlicedBiasComputer::general_slices();
        let environment: Arc<dyn TokenizerEnv + Sync> = Arc::new(Environment(trie));
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| GrammarError::Invalid(error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        // Else errors hold what a client has said.
        limits.verbose_errors = false;
        limits.max_lexer_states = MAX_LEXER_STATES;
        Ok(Self { factory, cache: Mutex::default() })
    }

    /// Compiles a grammar in llguidance's variant of Lark. Takes up to some hundred milliseconds.
    ///
    /// # Errors
    /// `Invalid`, in the library's words, or where it is too long.
    pub fn compile(&self, lark: &str) -> Result<Box<dyn Constraint>, GrammarError> {
        if MAX_GRAMMAR_BYTES < lark.len() {
            let num_bytes = lark.len();
            let message =
                format!("it comes to {num_bytes} bytes, and it may to {MAX_GRAMMAR_BYTES}; shorten the schemas");
            return Err(GrammarError::Invalid(message));
        }
        let cached = self.with_cache(|cache| {
            let place = cache.iter().position(|(text, _)| text == lark)?;
            let last = cache.remove(place);
            cache.push(last);
            cache.last().map(|(_, matcher)| matcher.deep_clone())
        });
        if let Some(matcher) = cached {
            return Ok(Box::new(Grammar(matcher)));
        }
        let compile = || self.factory.create_parser(TopLevelGrammar::from_lark(lark.to_owned()));
        let compiled = thread::scope(|scope| {
            let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK_BYTES);
            let thread =
                thread.spawn_scoped(scope, compile).map_err(|error| GrammarError::Invalid(error.to_string()))?;
            let parser = thread.join().map_err(|_| GrammarError::Invalid("the compiler panicked on it".to_owned()))?;
            parser.map_err(|error| GrammarError::Invalid(one_line(&error.to_string())))
        });
        let matcher = Matcher::new(Ok(compiled?));
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Invalid(one_line(&error)));
        }
        self.with_cache(|cache| {
            cache.push((lark.to_owned(), matcher.deep_clone()));
            let num_bytes = |cache: &[(String, Matcher)]| cache.iter().map(|(text, _)| text.len()).sum::<usize>();
            while MAX_CACHED < cache.len() || MAX_CACHED_BYTES < num_bytes(cache) {
                cache.remove(0);
            }
        });
        Ok(Box::new(Grammar(matcher)))
    }

    fn with_cache<T>(&self, use_it: impl FnOnce(&mut Vec<(String, Matcher)>) -> T) -> T {
        use_it(&mut self.cache.lock().expect("nothing panics while it holds this"))
    }
}

/// What is wrong. Its place in the grammar, and the lines that quote it, mean nothing to a client who has sent a schema.
fn one_line(error: &str) -> String {
    const MAX_CHARS: usize = 300;
    let error = match error.split_once("): ") {
        Some((place, what)) if place.starts_with("at ") => what,
        _ => error,
    };
    error.lines().next().unwrap_or_default().chars().take(MAX_CHARS).collect()
}

/// The vocabulary. How the library would spell a text does not matter: masks allow every spelling.
struct Environment(TokTrie);

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// A grammar, and how far a reply has come in it.
struct Grammar(Matcher);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Constraint for Grammar {
    fn restrict(&mut self, scores: &mut [f32]) -> Result<(), ConstraintError> {
        let mask = self.0.compute_mask_or_eos().map_err(|error| ConstraintError(one_line(&error.to_string())))?;
        let words = mask.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (scores, word) in scores.chunks_mut(u32::BITS as usize).zip(words) {
            match word {
                u32::MAX => {}
                0 => scores.fill(f32::NEG_INFINITY),
                _ => {
                    for (bit, score) in scores.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.0.consume_token(token.0).map_err(|error| ConstraintError(one_line(&error.to_string())))
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(Self(self.0.deep_clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Piece, tokenizer::tests::byte_level};

    const VOCAB_SIZE: usize = 300;
    const END: [TokenId; 2] = [TokenId(257), TokenId(256)];

    fn compiler() -> GrammarCompiler {
        GrammarCompiler::new(&byte_level(), VOCAB_SIZE, &END).unwrap()
    }

    /// The tokens that may come next.
    fn allowed(constraint: &mut dyn Constraint) -> Vec<u32> {
        let mut scores = vec![0.0; VOCAB_SIZE];
        constraint.restrict(&mut scores).unwrap();
        (0..).zip(scores).filter(|(_, score)| *score == 0.0).map(|(token, _)| token).collect()
    }

    /// Whether a reply may be this text and then end.
    fn accepts(constraint: &mut dyn Constraint, text: &str) -> bool {
        let tokens = byte_level().encode(&[Piece::Plain(text)]).unwrap();
        tokens.iter().all(|token| allowed(constraint).contains(&token.0) && constraint.push(*token).is_ok())
            && END.iter().all(|end| allowed(constraint).contains(&end.0))
    }

    #[test]
    fn a_reply_follows_its_grammar_and_then_ends() {
        let compiler = compiler();
        let lark =
            r#"start: "a" %json { "type": "object", "properties": { "é": { "enum": [1, 22] } }, "required": ["é"] }"#;
        for _cached in 0..2 {
            let compile = || compiler.compile(lark).unwrap();
            assert!(accepts(&mut *compile(), "a{\"é\": 22}"));
            assert!(!accepts(&mut *compile(), "a{\"é\": 3}"));
            assert!(!accepts(&mut *compile(), "a{}"));
            let mut ended = compile();
            assert!(accepts(&mut *ended, "a{\"é\":1}"));
            assert_eq!(allowed(&mut *ended), [256, 257], "only an end can follow");
        }
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let mut one = compiler().compile("start: \"ab\" | \"ac\"").unwrap();
        let token = |text| byte_level().encode(&[Piece::Plain(text)]).unwrap()[0];
        one.push(token("a")).unwrap();
        let mut other = one.clone();
        one.push(token("b")).unwrap();
        assert!(accepts(&mut *other, "c"));
        assert_eq!(allowed(&mut *one), [256, 257]);
    }

    #[test]
    fn special_tokens_are_not_text() {
        let mut anything = compiler().compile("start: /(.|\\n)*/").unwrap();
        let allowed = allowed(&mut *anything);
        assert!(!allowed.contains(&299), "no token of the vocabulary");
        assert!(allowed.contains(&258), "an added token that is not special");
        let mut angle = compiler().compile("start: /<[|a-z_]*>/").unwrap();
        assert!(accepts(&mut *angle, "<|im_start|>"), "spelled in plain characters");
    }

    #[test]
    fn what_is_no_grammar_is_refused_in_one_line() {
        for lark in ["start: (", "start: %json { \"type\": 3 }", "x: \"a\"", "start: /(/"] {
            let Err(GrammarError::Invalid(message)) = compiler().compile(lark) else { panic!("{lark}") };
            assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        }
    }

    #[test]
    fn a_long_chain_of_references_is_compiled_or_refused() {
        let definition = |n: usize| {
            format!("\"d{n}\":{{\"type\":\"object\",\"properties\":{{\"a\":{{\"$ref\":\"#/$defs/d{}\"}}}}}}", n + 1)
        };
        let chain: Vec<String> = (0..400).map(definition).collect();
        let schema =
            format!("{{\"$ref\":\"#/$defs/d0\",\"$defs\":{{{},\"d400\":{{\"type\":\"string\"}}}}}}", chain.join(","));
        let _whatever_it_says = compiler().compile(&format!("start: %json {schema}"));
    }

    #[test]
    fn the_longest_chain_of_rules_fits_on_the_stack() {
        // As short as names can be: each rule is a level.
        let digit = |value: usize| char::from(b'A' + u8::try_from(value % 26).unwrap());
        let name = |n: usize| String::from_iter([digit(n / 17_576), digit(n / 676), digit(n / 26), digit(n)]);
        let num_rules = MAX_GRAMMAR_BYTES / "ABCD:ABCE\n".len() - 8;
        for lower in [false, true] {
            let chain: String = (0..num_rules).map(|n| format!("{}:{}\n", name(n), name(n + 1))).collect();
            let lark = format!("start: AAAA\n{chain}{}: \"a\"\n", name(num_rules));
            let lark = if lower { lark.to_lowercase() } else { lark };
            assert!(lark.len() <= MAX_GRAMMAR_BYTES);
            let _whatever_it_says = compiler().compile(&lark);
            let Err(GrammarError::Invalid(message)) = compiler().compile(&lark.repeat(2)) else { panic!("too long") };
            assert!(message.contains("bytes"), "{message}");
        }
    }

    #[test]
    fn the_cache_is_bounded() {
        let compiler = compiler();
        for number in 0..MAX_CACHED + 5 {
            compiler.compile(&format!("start: \"{number}\"")).unwrap();
        }
        assert_eq!(compiler.with_cache(|cache| cache.len()), MAX_CACHED);
        assert!(compiler.with_cache(|cache| cache.iter().all(|(text, _)| text != "start: \"0\"")));
    }
}
