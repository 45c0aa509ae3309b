//! Model folders come from strangers: whatever their files hold, opening them is a result and never a panic.

use crate::tiny_model::{copy, files, fixtures};
use ortolan::{
    chat::ChatTemplate,
    model_dir::{ModelDir, Target},
    text::Tokenizer,
};
use proptest::prelude::*;
use std::{fs, path::Path};

/// What is done to a file, at a place that is taken modulo its length.
#[derive(Clone, Debug)]
enum Harm {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    /// Of two values in JSON, or two fields of a graph, one takes the other's place.
    CopyWithin(usize, usize, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        (any::<usize>(), 1_u8..).prop_map(|(place, mask)| Harm::Flip(place, mask)),
        any::<usize>().prop_map(Harm::Cut),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(place, bytes)| Harm::Insert(place, bytes)),
        (any::<usize>(), any::<usize>(), 1_usize..50).prop_map(|(to, from, len)| Harm::CopyWithin(to, from, len)),
    ]
}

fn apply(harm: &Harm, bytes: &mut Vec<u8>) {
    let len = bytes.len();
    match harm {
        Harm::Flip(place, mask) => bytes[place % len] ^= mask,
        Harm::Cut(place) => bytes.truncate(place % len),
        Harm::Insert(place, more) => drop(bytes.splice(place % len..place % len, more.iter().copied())),
        Harm::CopyWithin(to, from, num_bytes) => {
            let num_bytes = (*num_bytes).min(len);
            let from = from % (len - num_bytes + 1);
            bytes.copy_within(from..from + num_bytes, to % (len - num_bytes + 1));
        }
    }
}

/// Any file of any model.
fn model_and_file() -> impl Strategy<Value = (String, String)> {
    let models = prop::sample::select(fixtures());
    models.prop_flat_map(|model| (Just(model.clone()), prop::sample::select(files(&model))))
}

/// Everything that is read before the graph is opened; false when any of it is refused.
fn opens(dir: &Path) -> bool {
    let Ok(model) = ModelDir::open(dir, &Target::CPU) else { return false };
    let Ok(tokenizer) = Tokenizer::load(&model.tokenizer) else { return false };
    let template = model
        .chat_template()
        .map(|source| ChatTemplate::new(source, model.special_tokens.clone(), tokenizer.added_tokens()).is_ok());
    template.unwrap_or(false)
}

proptest! {
    #[test]
    fn a_harmed_folder_is_opened_or_refused(
        (model, file) in model_and_file(),
        harms in prop::collection::vec(harm(), 1..4),
    ) {
        let dir = copy(&model);
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        for harm in &harms {
            if !bytes.is_empty() {
                apply(harm, &mut bytes);
            }
        }
        fs::write(path, bytes).unwrap();
        opens(dir.path());
    }
}

#[test]
fn the_unharmed_folders_open() {
    for model in fixtures() {
        assert!(opens(copy(&model).path()), "{model}");
    }
}
