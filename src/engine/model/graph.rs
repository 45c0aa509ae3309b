//! An open graph: everything that both families do alike.

use super::{
    FloatType, GraphEdits, LoadError, Logits, ModelError, ModelLimits, ModelSpec, ProviderConfig, ProviderName,
    Runtime,
    edit::{self, Edited},
    error::words,
    external_data::ExternalData,
    ffi::{Run, Tensor},
    inputs::Inputs,
    spec::{WINDOW_SLACK, window_columns},
    tensorrt::RunLimits,
};
use crate::engine::EngineConfig;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use ort::{
    memory::Allocator,
    session::{IoBinding, Session, builder::SessionBuilder},
};
use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, thread,
    time::{Duration, Instant},
};

/// A session, its binding, and the host memory of its inputs.
pub(super) struct Graph {
    session: Session,
    binding: IoBinding,
    host: Allocator,
    spec: ModelSpec,
    edits: GraphEdits,
    limits: ModelLimits,
    device: ProviderConfig,
    pub(super) inputs: Inputs,
    /// Scores that the run cannot write to their place.
    scratch: Scratch,
    pub(super) time_in_runs: Duration,
}

/// In the graph's own type.
#[derive(Default)]
struct Scratch {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Graph {
    /// Opens the graph on the first providers that can be had.
    pub(super) fn open(runtime: &Runtime, spec: ModelSpec, config: &EngineConfig) -> Result<Self, LoadError> {
        let context_tokens = spec.context_tokens.min(config.max_context_tokens.get() as usize);
        let num_slots = config.max_batch_size.get() as usize;
        let num_bytes = spec.cache_bytes_per_slot(context_tokens).saturating_mul(num_slots);
        // Sizes are computed without care from here on; a state may take twice its own.
        if num_bytes > isize::MAX.cast_unsigned() / 2 {
            return Err(LoadError::KvCache { num_bytes, message: "no machine has as much memory".to_owned() });
        }
        let mut builder = session_builder(runtime, config).map_err(|error| failed(&spec, &error))?;
        let device = register_providers(&mut builder, runtime, &spec, config)?;
        let on_cpu = device.name == ProviderName::Cpu;
        let wanted = GraphEdits {
            accuracy_level: config.graph_edits.accuracy_level && on_cpu,
            // What pads a row would enter its states.
            query_seqlens: config.graph_edits.query_seqlens
                && device.name != ProviderName::TensorRt
                && !spec.has_states(),
            logits_indices: config.graph_edits.logits_indices && !spec.has_last_logits_only,
        };
        let (session, edits) = open_edited(builder, &spec, wanted)?;
        tracing::info!(?edits, "opened the graph");
        let binding = session.create_binding().map_err(|error| failed(&spec, &error))?;
        Ok(Self {
            session,
            binding,
            host: Allocator::default(),
            limits: ModelLimits {
                vocab_size: spec.vocab_size,
                context_tokens,
                chunk_tokens: if device.name == ProviderName::Cpu { CPU_CHUNK_TOKENS } else { GPU_CHUNK_TOKENS },
                rewindable_tokens: 0,
                can_verify_drafts: false,
                can_move_slots: false,
            },
            edits,
            device,
            inputs: Inputs::new(&spec),
            scratch: Scratch::default(),
            time_in_runs: Duration::ZERO,
            spec,
        })
    }

    pub(super) fn limits(&self) -> ModelLimits {
        self.limits
    }

    pub(super) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Whether a run takes rows of different lengths.
    pub(super) fn can_pad(&self) -> bool {
        self.edits.query_seqlens && !self.spec.has_last_logits_only
    }

    /// Columns that a cache tensor needs for each slot.
    pub(super) fn num_columns(&self, window: Option<usize>) -> usize {
        // Other providers take no window that is wider than it must be.
        let slack = if self.device.name == ProviderName::Cpu { WINDOW_SLACK } else { 0 };
        let context_tokens = self.limits.context_tokens;
        window.map_or(context_tokens, |window| window_columns(window, slack, context_tokens))
    }

    /// Whether keys and values lie in memory that this process can reach.
    pub(super) fn is_on_host(&self) -> bool {
        self.device.name == ProviderName::Cpu
    }

    /// What the operator is told of an error while it is loaded.
    pub(super) fn failed(&self, error: &ort::Error) -> LoadError {
        failed(&self.spec, error)
    }

    /// Where keys and values live.
    pub(super) fn device_allocator(&self) -> ort::Result<Allocator> {
        self.device.allocator(&self.session)
    }

    /// Computes the rows that [`inputs`](Self::inputs) holds, with what `cache` holds as `bind_cache` binds it, and
    /// appends the scores that they want. Returns the outputs that the runtime allocated.
    pub(super) fn run<K: ?Sized>(
        &mut self,
        logits: &mut Logits,
        cache: &K,
        bind_cache: impl for<'d> FnOnce(&'d K, &mut Run<'_, 'd>) -> ort::Result<()>,
    ) -> Result<Vec<Tensor<'static>>, ModelError> {
        let Self { session, binding, host, spec, edits, limits, inputs, scratch, time_in_runs, .. } = self;
        let memory = host.memory_info();
        let (num_rows, width) = (inputs.num_rows(), inputs.width());
        // How many places of each row the graph scores, and in how many rows it gives their scores.
        let num_places = match &spec.num_logits {
            _ if spec.has_last_logits_only => 1,
            Some(_) if !edits.logits_indices => inputs.num_scored_places(),
            Some(_) | None => width,
        };
        let computed = if edits.logits_indices { [1, inputs.scored_rows.len()] } else { [num_rows, num_places] };
        let num_computed = computed[0] * computed[1];
        let shape = [signed(computed[0]), signed(computed[1]), signed(limits.vocab_size)];
        let wanted = logits.extend(&inputs.scored_rows);
        let is_direct = spec.logits_type == FloatType::F32 && num_computed * limits.vocab_size == wanted.len();
        let scores = match spec.logits_type {
            FloatType::F32 if is_direct => Tensor::from_slice_mut(memory, wanted, &shape)?,
            FloatType::F32 => Tensor::from_slice_mut(memory, resized(&mut scratch.f32, &shape), &shape)?,
            FloatType::F16 => Tensor::from_slice_mut(memory, resized(&mut scratch.f16, &shape), &shape)?,
            FloatType::BF16 => Tensor::from_slice_mut(memory, resized(&mut scratch.bf16, &shape), &shape)?,
        };
        let fed = inputs.feed(memory, spec, *edits, num_places)?;
        let mut run = Run::new(session, binding);
        for (name, tensor) in fed.iter().flatten() {
            run.bind_input(name, tensor)?;
        }
        run.bind_output(c"logits", &scores)?;
        bind_cache(cache, &mut run)?;
        let began = Instant::now();
        let outputs = run.execute()?;
        *time_in_runs += began.elapsed();
        drop((scores, fed));
        if !is_direct {
            let places = inputs.logits_indices.iter().enumerate().map(|(row, place)| match index(*place) {
                _ if edits.logits_indices => row,
                place => place / width * num_places + place % width + num_places - width,
            });
            scratch.write(spec.logits_type, wanted.chunks_exact_mut(limits.vocab_size).zip(places));
        }
        Ok(outputs)
    }
}

impl Scratch {
    /// Brings rows of scores from their places to where they are wanted.
    fn write<'w>(&self, logits_type: FloatType, wanted: impl Iterator<Item = (&'w mut [f32], usize)>) {
        for (wanted, place) in wanted {
            let place = place * wanted.len()..(place + 1) * wanted.len();
            match logits_type {
                FloatType::F32 => wanted.copy_from_slice(&self.f32[place]),
                FloatType::F16 => self.f16[place].convert_to_f32_slice(wanted),
                FloatType::BF16 => self.bf16[place].convert_to_f32_slice(wanted),
            }
        }
    }
}

/// More are computed no faster on a CPU; a GPU is not busy with fewer.
const CPU_CHUNK_TOKENS: usize = 32;
const GPU_CHUNK_TOKENS: usize = 2048;

/// The first elements of a scratch vector, which never shrinks: what they hold does not matter.
fn resized<'v, T: Clone + Default>(scratch: &'v mut Vec<T>, shape: &[i64]) -> &'v mut [T] {
    let num_elements = shape.iter().copied().map(index).product();
    if scratch.len() < num_elements {
        scratch.resize(num_elements, T::default());
    }
    &mut scratch[..num_elements]
}

/// Opens the graph with the edits that it and the runtime allow.
fn open_edited(
    mut builder: SessionBuilder,
    spec: &ModelSpec,
    wanted: GraphEdits,
) -> Result<(Session, GraphEdits), LoadError> {
    if wanted == GraphEdits::NONE {
        let session = builder.commit_from_file(&spec.path).map_err(|error| failed(spec, &error))?;
        return Ok((session, wanted));
    }
    let unreadable = |message: String| LoadError::Session { path: spec.path.clone(), message };
    let read = || fs::read(&spec.path).map_err(|error| unreadable(error.to_string()));
    let files = edit::external_files(&read()?).map_err(|error| unreadable(error.to_string()))?;
    let data = ExternalData::find(&spec.path, &files).map_err(unreadable)?;
    let mut builder = builder
        .with_config_entry(DATA_FOLDER, data.folder.to_string_lossy())
        .map_err(|error| failed(spec, &error.into()))?;
    // The file is read anew for each try, and only its edited copy kept: with its weights inside, it may be large.
    let edited =
        |wanted| edit::edit(&read()?, wanted, |file| data.name(file)).map_err(|error| unreadable(error.to_string()));
    let Edited { model, made } = edited(wanted)?;
    let error = match builder.commit_from_memory(&model) {
        Ok(session) => return Ok((session, made)),
        Err(error) => error,
    };
    drop(model);
    if !made.query_seqlens {
        return Err(failed(spec, &error));
    }
    // A runtime before 1.32 refuses the input: its operator has no such one.
    let Edited { model, made } = edited(GraphEdits { query_seqlens: false, ..wanted })?;
    let session = builder.commit_from_memory(&model).map_err(|error| failed(spec, &error))?;
    tracing::warn!(
        error = words(&error),
        "without `query_seqlens` the graph loads; rows of different lengths run one by one"
    );
    Ok((session, made))
}

/// Session option: where the files named by the graph lie.
const DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

fn failed(spec: &ModelSpec, error: &ort::Error) -> LoadError {
    LoadError::session(spec.path.clone(), error)
}

/// A size as ONNX spells it.
pub(super) fn signed(size: usize) -> i64 {
    i64::try_from(size).expect("no tensor has 2^63 elements")
}

/// A size or place that is not negative.
pub(super) fn index(value: i64) -> usize {
    usize::try_from(value).expect("sizes are not negative")
}

/// A tensor's name as the C API wants it.
pub(super) fn c_name(name: &str) -> CString {
    CString::new(name).expect("the graph was read, so its names hold no NUL")
}

fn session_builder(runtime: &Runtime, config: &EngineConfig) -> ort::Result<SessionBuilder> {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    let threads = match config.intra_op_threads {
        // Left to itself, the runtime takes one for each core of the machine, also where a container may use only some of
        // them, and pins each to a core, where it waits when something else runs there.
        0 => allowed.min(num_cpus::get_physical()),
        threads => threads,
    };
    let mut builder = Session::builder(&runtime.environment)?.with_intra_threads(threads)?;
    if !config.intra_op_affinity.is_empty() {
        builder = builder.with_config_entry(AFFINITY, &config.intra_op_affinity)?;
    }
    Ok(builder.with_intra_op_spinning(config.spin)?)
}

/// Session option: the cores of each thread but the first, which is the engine's own.
const AFFINITY: &str = "session.intra_op_thread_affinities";

/// Registers every provider that the config names; returns the first one that could be.
fn register_providers(
    builder: &mut SessionBuilder,
    runtime: &Runtime,
    spec: &ModelSpec,
    config: &EngineConfig,
) -> Result<ProviderConfig, LoadError> {
    let cpu = ProviderConfig { name: ProviderName::Cpu, options: BTreeMap::new() };
    let mut device = None;
    let limits = RunLimits::new(spec, config, GPU_CHUNK_TOKENS);
    for provider in &config.providers {
        match provider.register(builder, runtime, Some((spec, limits))) {
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
