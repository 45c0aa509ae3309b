//! Greedy tokens equal those that other implementations recorded (`scripts/record-golden`).

use crate::{
    engine::{config, drain},
    tiny_model::{TINY_MODELS, endless, fixture, start, token_ids},
};
use serde::Deserialize;
use std::{fs, path::Path};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    input_ids: Vec<u32>,
    output_ids: Vec<u32>,
}

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("json");
    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()
}

#[test]
fn tiny_models_say_what_other_implementations_say() {
    for name in TINY_MODELS {
        let golden = golden(name);
        assert!(3 <= golden.cases.len());
        let (handle, engine) = start(&fixture(name), &config(3, 16));
        for case in golden.cases {
            let limit = u32::try_from(case.output_ids.len()).unwrap();
            let output = token_ids(&drain(handle.submit(endless(&case.input_ids, limit)).unwrap()));
            assert_eq!(output, case.output_ids, "{name}");
        }
        drop(handle);
        engine.join().unwrap();
    }
}
