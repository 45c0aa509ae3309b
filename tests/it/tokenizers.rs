//! Tokenizers of every kind do what `tokenizers` does in Python (`scripts/record-tokenizers`), also token by token.

use ortolan::{
    engine::TokenId,
    text::{Detokenizer, Piece, Tokenizer},
};
use serde::Deserialize;
use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    tokenizer: String,
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn golden() -> (BTreeMap<String, Arc<Tokenizer>>, Vec<Recorded>) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let golden: Golden = serde_json::from_slice(&fs::read(tests.join("golden/tokenizers.json")).unwrap()).unwrap();
    let load = |name: &str| Tokenizer::load(&tests.join(format!("tokenizers/{name}.json"))).unwrap();
    let mut tokenizers = BTreeMap::new();
    for case in &golden.cases {
        tokenizers.entry(case.tokenizer.clone()).or_insert_with(|| Arc::new(load(&case.tokenizer)));
    }
    (tokenizers, golden.cases)
}

fn streamed(tokenizer: &Arc<Tokenizer>, tokens: &[TokenId]) -> String {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), Arc::default());
    let text: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
    text + &detokenizer.finish()
}

#[test]
fn texts_become_the_tokens_that_they_become_in_python() {
    let (tokenizers, cases) = golden();
    for Recorded { tokenizer: name, text, ids, decoded } in &cases {
        let tokens = tokenizers[name].encode(&[Piece::Template(text)]).unwrap();
        assert_eq!(tokens.iter().map(|token| token.0).collect::<Vec<_>>(), *ids, "{name}: {text:?}");
        assert_eq!(tokenizers[name].decode(&tokens), *decoded, "{name}: {text:?}");
    }
    eprintln!("tokenizers: {} texts with {} of them", cases.len(), tokenizers.len());
    assert!(9 <= tokenizers.len());
}

#[test]
fn tokens_that_come_one_by_one_say_the_same() {
    let (tokenizers, cases) = golden();
    let mut num_streams = 0;
    for Recorded { tokenizer: name, text, ids, .. } in &cases {
        let tokens: Vec<TokenId> = ids.iter().copied().map(TokenId).collect();
        for start in 0..tokens.len() {
            for end in [tokens.len(), (start + 3).min(tokens.len()), start + (tokens.len() - start) / 2] {
                let whole = tokenizers[name].decode(&tokens[start..end]);
                // Half a character is left out at the end, and bytes that are not text have no one reading.
                if !whole.contains('\u{FFFD}') || text.contains('\u{FFFD}') && (start, end) == (0, tokens.len()) {
                    assert_eq!(
                        streamed(&tokenizers[name], &tokens[start..end]),
                        whole,
                        "{name}: {text:?} {start}..{end}"
                    );
                    num_streams += 1;
                }
            }
        }
    }
    eprintln!("tokenizers: {num_streams} streams");
}
