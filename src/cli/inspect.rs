//! `ortolan inspect DIR`

use super::{SUCCESS, print_line};
use crate::model_dir::{ModelDir, Target};
use std::path::Path;

pub(super) fn run(dir: &Path) -> anyhow::Result<u8> {
    for (name, value) in describe(&ModelDir::open(dir, &Target::CPU)?) {
        print_line(format_args!("{name:<18} {value}"))?;
    }
    Ok(SUCCESS)
}

fn describe(model: &ModelDir) -> Vec<(&'static str, String)> {
    let spec = &model.spec;
    let slot_bytes = spec.kv_bytes_per_token().saturating_mul(spec.context_tokens);
    let mut kinds: Vec<String> = spec
        .kv
        .iter()
        .map(|kv| format!("{} heads of {} in {}", kv.num_heads, kv.head_size, kv.element_type.name()))
        .collect();
    kinds.dedup();
    let mut operators: Vec<(&String, &usize)> = model.onnx.operators.iter().collect();
    operators.sort_by(|left, right| right.1.cmp(left.1).then(left.0.cmp(right.0)));
    let operators = operators.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
    let stop_tokens: Vec<String> = model.generation.stop_tokens().iter().map(|token| token.0.to_string()).collect();
    vec![
        ("folder", model.path.display().to_string()),
        ("model type", model.model_type.clone().unwrap_or_else(|| "not told".to_owned())),
        ("graph", format!("{} ({})", spec.path.display(), bytes(model.onnx.num_bytes))),
        ("exported by", format!("{}, IR version {}", model.onnx.producer, model.onnx.ir_version)),
        ("family", spec.family.name().to_owned()),
        ("position ids", if spec.has_position_ids { "fed" } else { "made by the graph" }.to_owned()),
        ("layers", (spec.kv.len() / 2).to_string()),
        ("keys and values", kinds.join("; ")),
        ("logits", format!("{} of {} tokens", spec.logits_type.name(), spec.vocab_size)),
        ("context", format!("{} tokens", spec.context_tokens)),
        ("memory per token", bytes(spec.kv_bytes_per_token() as u64)),
        ("memory per slot", format!("{} for the whole context", bytes(slot_bytes as u64))),
        ("chat template", if model.chat_template().is_some() { "yes" } else { "none: cannot be served" }.to_owned()),
        ("stop tokens", stop_tokens.join(", ")),
        ("operators", operators),
    ]
}

/// In the largest binary unit that leaves a whole part.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["bytes", "KiB", "MiB", "GiB"];
    let power = (0..UNITS.len()).rev().find(|power| 1024_u64.pow(u32::try_from(*power).unwrap_or(0)) <= count);
    match power.unwrap_or(0) {
        0 => format!("{count} bytes"),
        power => format!("{:.1} {}", count as f64 / 1024_f64.powi(i32::try_from(power).unwrap_or(0)), UNITS[power]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(
            [0, 1023, 1024, 1536, 3 << 30].map(bytes),
            ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "3.0 GiB"]
        );
    }
}
