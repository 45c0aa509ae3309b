//! What a request says about thinking.

use super::{error::InvalidRequest, field::Field};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// As the response repeats it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Reasoning {
    effort: Option<&'static str>,
    /// What reasoning is told of is its text, so there is nothing to shorten: any wish is repeated and has no effect.
    summary: Option<&'static str>,
}

const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];
const SUMMARIES: &[&str] = &["auto", "concise", "detailed"];

impl Reasoning {
    /// Where a request has nothing but an effort.
    pub(crate) fn parse_effort(field: &Field) -> Result<Self, InvalidRequest> {
        Ok(Self { effort: Some(field.choice(EFFORTS)?), summary: None })
    }

    /// `context` and `mode` steer models that others host; they are let be.
    pub(super) fn parse(field: &Field) -> Result<Self, InvalidRequest> {
        let reasoning = field.object()?;
        let summary = |name| reasoning.optional(name, |summary| summary.choice(SUMMARIES));
        Ok(Self {
            effort: reasoning.optional("effort", |effort| effort.choice(EFFORTS))?,
            // The older name comes second.
            summary: summary("summary")?.or(summary("generate_summary")?),
        })
    }

    /// What the template is told: its variables and `enable_thinking`. What a client says in the template's own words is
    /// said last. A model thinks or does not, so of an effort only few templates take more than that.
    pub(crate) fn merge(self, mut arguments: Map<String, Value>) -> (Map<String, Value>, Option<bool>) {
        let thinks = self.effort.map(|effort| effort != "none");
        if let Some(effort) = self.effort.filter(|effort| *effort != "none") {
            arguments.entry("reasoning_effort").or_insert_with(|| json!(effort));
        }
        let enable_thinking = arguments.shift_remove("enable_thinking").and_then(|value| value.as_bool());
        (arguments, enable_thinking.or(thinks))
    }
}
