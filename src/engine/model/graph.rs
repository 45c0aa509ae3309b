//! An open graph: everything that both families do alike.

use super::{
    ElementType, LoadError, Logits, ModelError, ModelLimits, ModelSpec, ProviderConfig, ProviderName, Runtime,
    error::words,
    ffi::{Run, Tensor},
};
use crate::engine::{EngineConfig, TokenId};
use half::f16;
use ndarray::{ArrayView1, ArrayView2, Axis};
use ort::{
    memory::Allocator,
    session::{IoBinding, Session, builder::SessionBuilder},
};
use std::{collections::BTreeMap, ffi::CString};

/// A session, its binding, and the host memory of its inputs and logits.
pub(super) struct Graph {
    session: Session,
    binding: IoBinding,
    host: Allocator,
    spec: ModelSpec,
    limits: ModelLimits,
    device: ProviderConfig,
    inputs: Inputs,
    scores: Scores,
}

/// Host memory of the inputs, kept from run to run.
#[derive(Default)]
struct Inputs {
    token_ids: Vec<i64>,
    attention_mask: Vec<i64>,
    position_ids: Vec<i64>,
}

/// Host memory of the logits, kept from run to run.
enum Scores {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Graph {
    /// Opens the graph on the first providers that can be had.
    pub(super) fn open(runtime: &Runtime, spec: ModelSpec, config: &EngineConfig) -> Result<Self, LoadError> {
        let failed = |error: ort::Error| LoadError::Session { path: spec.path.clone(), message: words(&error) };
        let mut builder = session_builder(runtime, config).map_err(failed)?;
        let device = register_providers(&mut builder, config)?;
        let session = builder.commit_from_file(&spec.path).map_err(failed)?;
        let binding = session.create_binding().map_err(failed)?;
        let context_tokens = spec.context_tokens.min(config.max_context_tokens.get() as usize);
        Ok(Self {
            session,
            binding,
            host: Allocator::default(),
            limits: ModelLimits { vocab_size: spec.vocab_size, context_tokens },
            device,
            inputs: Inputs::default(),
            scores: match spec.logits_type {
                ElementType::F32 => Scores::F32(Vec::new()),
                ElementType::F16 => Scores::F16(Vec::new()),
            },
            spec,
        })
    }

    pub(super) fn limits(&self) -> ModelLimits {
        self.limits
    }

    pub(super) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where keys and values live.
    pub(super) fn device_allocator(&self) -> ort::Result<Allocator> {
        self.device.allocator(&self.session)
    }

    /// Computes `tokens` of one row at positions from `start` on, with keys and values as `bind_kv` binds them. Returns the
    /// outputs that the runtime allocated.
    pub(super) fn run_row<'d>(
        &'d mut self,
        tokens: &[TokenId],
        start: usize,
        bind_kv: impl FnOnce(&mut Run<'d, 'd>) -> ort::Result<()>,
    ) -> Result<Vec<Tensor<'static>>, ModelError> {
        let num_tokens = signed(tokens.len());
        let end = start + tokens.len();
        self.inputs.fill(tokens, start);
        let num_rows = if self.spec.has_last_logits_only { 1 } else { tokens.len() };
        let num_scores = num_rows * self.limits.vocab_size;
        let memory = self.host.memory_info();
        let logits_shape = [1, signed(num_rows), signed(self.limits.vocab_size)];
        let logits = match &mut self.scores {
            Scores::F32(scores) => {
                scores.resize(num_scores, 0.0);
                Tensor::from_slice_mut(memory, scores, &logits_shape)?
            }
            Scores::F16(scores) => {
                scores.resize(num_scores, f16::ZERO);
                Tensor::from_slice_mut(memory, scores, &logits_shape)?
            }
        };
        let mut run = Run::new(&mut self.session, &mut self.binding);
        run.bind_input(c"input_ids", &Tensor::from_slice(memory, &self.inputs.token_ids, &[1, num_tokens])?)?;
        let mask = Tensor::from_slice(memory, &self.inputs.attention_mask, &[1, signed(end)])?;
        run.bind_input(c"attention_mask", &mask)?;
        if self.spec.has_position_ids {
            let positions = Tensor::from_slice(memory, &self.inputs.position_ids, &[1, num_tokens])?;
            run.bind_input(c"position_ids", &positions)?;
        }
        run.bind_output(c"logits", &logits)?;
        bind_kv(&mut run)?;
        Ok(run.execute()?)
    }

    /// Appends the scores of what follows the last token of the last run.
    pub(super) fn push_last_scores(&self, logits: &mut Logits) {
        let vocab_size = self.limits.vocab_size;
        match &self.scores {
            Scores::F32(scores) => logits.push(last_row(scores, vocab_size).iter().copied()),
            Scores::F16(scores) => logits.push(last_row(scores, vocab_size).iter().map(|score| score.to_f32())),
        }
    }
}

/// The last row of `[1, num_tokens, vocab_size]` scores.
fn last_row<T>(scores: &[T], vocab_size: usize) -> ArrayView1<'_, T> {
    let num_rows = scores.len() / vocab_size;
    let scores = ArrayView2::from_shape((num_rows, vocab_size), scores).expect("a run scores whole rows");
    scores.index_axis_move(Axis(0), num_rows - 1)
}

impl Inputs {
    fn fill(&mut self, tokens: &[TokenId], start: usize) {
        self.token_ids.clear();
        self.token_ids.extend(tokens.iter().map(|token| i64::from(token.0)));
        self.attention_mask.clear();
        self.attention_mask.resize(start + tokens.len(), 1);
        self.position_ids.clear();
        self.position_ids.extend(signed(start)..signed(start + tokens.len()));
    }
}

/// A size as ONNX spells it.
pub(super) fn signed(size: usize) -> i64 {
    i64::try_from(size).expect("no tensor has 2^63 elements")
}

/// A tensor's name as the C API wants it.
pub(super) fn c_name(name: &str) -> CString {
    CString::new(name).expect("the graph was read, so its names hold no NUL")
}

fn session_builder(runtime: &Runtime, config: &EngineConfig) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(&runtime.environment)?;
    if 0 < config.intra_op_threads {
        builder = builder.with_intra_threads(config.intra_op_threads)?;
    }
    Ok(builder.with_intra_op_spinning(config.spin)?)
}

/// Registers every provider that the config names; returns the first one that could be.
fn register_providers(builder: &mut SessionBuilder, config: &EngineConfig) -> Result<ProviderConfig, LoadError> {
    let cpu = ProviderConfig { name: ProviderName::Cpu, options: BTreeMap::new() };
    let mut device = None;
    for provider in &config.providers {
        match provider.register(builder) {
            Ok(()) => {
                tracing::info!(provider = %provider.name, "registered execution provider");
                device.get_or_insert_with(|| provider.clone());
            }
            Err(error) if config.fallback => tracing::warn!(%error, "going on without this execution provider"),
            Err(error) => return Err(error),
        }
    }
    Ok(device.unwrap_or(cpu))
}
