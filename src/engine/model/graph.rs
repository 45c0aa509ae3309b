//! An open graph: everything that both families do alike.

use super::{
    FloatType, GraphEdits, GraphFamily, LoadError, Logits, ModelError, ModelLimits, ModelSpec, ProviderConfig,
    ProviderName, Runtime,
    capture::Recurring,
    device::{self, Device, Feed},
    edit::{self, Edited, Scores},
    error::words,
    external_data::ExternalData,
    ffi::{Buffer, Run, Stream, Tensor},
    inputs::{Inputs, Stage},
    provider::Registered,
    spec::{WINDOW_SLACK, window_columns},
    tensorrt::RunLimits,
};
use crate::engine::{Batch, Copied, EngineConfig, TopScoresIn};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use ort::{
    memory::Allocator,
    session::{IoBinding, Session, builder::SessionBuilder},
};
use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// A session, its binding, and the host memory of its inputs.
pub(super) struct Graph {
    /// Where inputs and scores lie that the host does not share. Before the session, whose allocators it uses.
    device: Option<Device>,
    binding: IoBinding,
    session: Session,
    /// What the session's runs are ordered by, on a device that has such.
    stream: Option<Arc<Stream>>,
    host: Allocator,
    spec: ModelSpec,
    edits: GraphEdits,
    limits: ModelLimits,
    provider: ProviderConfig,
    captures: bool,
    pub(super) inputs: Inputs,
    /// Scores that the run cannot write to their place.
    scratch: Scratch,
    time_in_runs: Duration,
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
        let num_bytes = match spec.family {
            GraphFamily::Paged => 0, // As many blocks as there is room for.
            GraphFamily::Gqa | GraphFamily::Concat => {
                spec.cache_bytes_per_slot(context_tokens).saturating_mul(num_slots)
            }
        };
        // Sizes are computed without care from here on; a state may take twice its own.
        if num_bytes > isize::MAX.cast_unsigned() / 2 {
            return Err(LoadError::KvCache { num_bytes, message: "no machine has as much memory".to_owned() });
        }
        let Opened { session, edits, provider, stream, captures } = open_session(runtime, &spec, config)?;
        tracing::info!(?edits, captures, "opened the graph");
        let on_gpu = provider.name != ProviderName::Cpu;
        let has_device = on_gpu || edits.top_scores;
        let device = has_device.then(|| {
            let room = (num_slots, edits.top_scores);
            Device::new(&session, (provider.clone(), stream.clone(), captures), &spec, room)
        });
        let device = device.transpose().map_err(|error| failed(&spec, &error))?;
        let binding = session.create_binding().map_err(|error| failed(&spec, &error))?;
        Ok(Self {
            device,
            binding,
            session,
            stream,
            host: Allocator::default(),
            limits: ModelLimits {
                vocab_size: spec.vocab_size,
                context_tokens,
                chunk_tokens: if on_gpu { GPU_CHUNK_TOKENS } else { CPU_CHUNK_TOKENS },
                rewindable_tokens: 0,
                can_verify_drafts: false,
                can_move_slots: false,
                blocks: None,
            },
            edits,
            provider,
            captures,
            inputs: Inputs::new(&spec, edits),
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

    /// Whether runs that recur are captured.
    pub(super) fn can_capture(&self) -> bool {
        self.captures
    }

    /// Columns that a cache tensor needs for each slot.
    pub(super) fn num_columns(&self, window: Option<usize>) -> usize {
        // Other providers take no window that is wider than it must be.
        let slack = if self.is_on_host() { WINDOW_SLACK } else { 0 };
        let context_tokens = self.limits.context_tokens;
        window.map_or(context_tokens, |window| window_columns(window, slack, context_tokens))
    }

    /// Whether keys and values lie in memory that this process can reach.
    pub(super) fn is_on_host(&self) -> bool {
        self.provider.name == ProviderName::Cpu
    }

    /// What the operator is told of an error while it is loaded.
    pub(super) fn failed(&self, error: &ort::Error) -> LoadError {
        failed(&self.spec, error)
    }

    /// Where keys and values live.
    pub(super) fn device_allocator(&self) -> ort::Result<Allocator> {
        self.provider.allocator(&self.session)
    }

    /// Memory for keys and values.
    pub(super) fn allocate(&self, num_bytes: usize) -> ort::Result<Buffer> {
        Buffer::zeroed(self.device_allocator()?, num_bytes, self.stream.clone())
    }

    pub(super) fn time_in_runs(&self) -> Duration {
        self.device.as_ref().map_or(self.time_in_runs, |device| device.time_in_runs)
    }

    pub(super) fn copied(&self) -> Copied {
        self.device.as_ref().map_or(Copied::default(), Device::copied)
    }

    /// Starts a step, whose runs compute at most so many rows of scores.
    pub(super) fn begin(&mut self, num_rows: usize) -> Result<(), ModelError> {
        let Some(device) = &mut self.device else { return Ok(()) };
        Ok(device.begin(&self.session, num_rows)?)
    }

    /// Rows of scores that a run computes in so many rows of a width, of which so many are wanted.
    pub(super) fn num_computed_rows(&self, num_rows: usize, width: usize, num_wanted: usize) -> usize {
        match self.edits.logits_indices {
            true => num_wanted.max(1),
            false if self.spec.has_last_logits_only => num_rows,
            false => num_rows * width,
        }
    }

    /// Ends a step: appends the scores that are wanted, where its runs have not.
    pub(super) fn finish(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        let Some(device) = &mut self.device else { return Ok(()) };
        Ok(device.finish(batch, logits)?)
    }

    /// See [`Model::complete`](super::Model::complete).
    pub(super) fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> Result<(), ModelError> {
        let device = self.device.as_mut().expect("without a device, all scores were given");
        Ok(device.complete(batch_rows, logits)?)
    }

    /// Computes the rows that [`inputs`](Self::inputs) holds, with what `cache` holds as `bind_cache` binds it, and
    /// appends the scores that they want, or keeps them until the step is finished. Returns the outputs that the runtime
    /// allocated.
    pub(super) fn run<K: ?Sized>(
        &mut self,
        logits: &mut Logits,
        recurring: Option<Recurring>,
        cache: &K,
        bind_cache: impl for<'d> FnOnce(&'d K, &mut Run<'_, 'd>) -> ort::Result<()>,
    ) -> Result<Vec<Tensor<'static>>, ModelError> {
        let Self { device, session, binding, host, spec, limits, inputs, scratch, time_in_runs, .. } = self;
        if let Some(device) = device {
            let graph = device::Opened { session, binding, spec, recurring };
            return Ok(device.run(graph, inputs, cache, bind_cache)?);
        }
        let memory = host.memory_info();
        let computed = inputs.scored_shape(spec);
        let num_computed = computed.iter().product::<usize>();
        let shape: Vec<i64> = computed.into_iter().chain([limits.vocab_size]).map(signed).collect();
        let places: Vec<usize> = inputs.scored_places(spec).map(|(_, place)| place).collect();
        let wanted = logits.extend(&inputs.scored_rows);
        let is_direct = spec.logits_type == FloatType::F32 && num_computed * limits.vocab_size == wanted.len();
        let scores = match spec.logits_type {
            FloatType::F32 if is_direct => Tensor::from_slice_mut(memory, wanted, &shape)?,
            FloatType::F32 => Tensor::from_slice_mut(memory, resized(&mut scratch.f32, &shape), &shape)?,
            FloatType::F16 => Tensor::from_slice_mut(memory, resized(&mut scratch.f16, &shape), &shape)?,
            FloatType::BF16 => Tensor::from_slice_mut(memory, resized(&mut scratch.bf16, &shape), &shape)?,
        };
        let fed = inputs.feed(&mut Stage::Host(memory), spec, false)?;
        let mut run = Run::new(session, binding);
        for (name, tensor) in fed.iter().flatten() {
            run.bind_input(name, tensor)?;
        }
        run.bind_output(c"logits", &scores)?;
        bind_cache(cache, &mut run)?;
        let began = Instant::now();
        let outputs = run.execute(None)?;
        *time_in_runs += began.elapsed();
        drop((scores, fed));
        if !is_direct {
            scratch.write(spec.logits_type, wanted.chunks_exact_mut(limits.vocab_size).zip(places));
        }
        Ok(outputs)
    }
}

impl Graph {
    /// The same for rows that are packed, on a device.
    pub(super) fn run_packed<K: ?Sized>(
        &mut self,
        inputs: &mut impl Feed,
        recurring: Option<Recurring>,
        cache: &K,
        bind_cache: impl for<'d> FnOnce(&'d K, &mut Run<'_, 'd>) -> ort::Result<()>,
    ) -> Result<(), ModelError> {
        let Self { device, session, binding, spec, .. } = self;
        let device = device.as_mut().expect("the operator that packed rows are for runs on devices only");
        let graph = device::Opened { session, binding, spec, recurring };
        device.run(graph, inputs, cache, bind_cache)?;
        Ok(())
    }

    /// Bytes of the device's memory that nobody has taken, where it has some of its own.
    pub(super) fn free_memory(&self) -> ort::Result<Option<usize>> {
        self.stream.as_ref().map(|stream| stream.memory().map(|(free, _)| free)).transpose()
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

/// A session, and how it came to be.
struct Opened {
    session: Session,
    edits: GraphEdits,
    provider: ProviderConfig,
    stream: Option<Arc<Stream>>,
    captures: bool,
}

/// Opens the graph on the first provider that can be had, with the edits that it and the runtime allow.
fn open_session(runtime: &Runtime, spec: &ModelSpec, config: &EngineConfig) -> Result<Opened, LoadError> {
    let open = |wants_captures: bool| {
        let mut builder = session_builder(runtime, config).map_err(|error| failed(spec, &error))?;
        let Registered { provider, stream, captures } =
            register_providers(&mut builder, runtime, spec, (config, wants_captures))?;
        let on_cpu = provider.name == ProviderName::Cpu;
        let wanted = GraphEdits {
            accuracy_level: config.graph_edits.accuracy_level && on_cpu,
            // What pads a row would enter its states.
            query_seqlens: config.graph_edits.query_seqlens
                && provider.name != ProviderName::TensorRt
                && !spec.has_states(),
            logits_indices: config.graph_edits.logits_indices
                && !spec.has_last_logits_only
                && spec.family != GraphFamily::Paged,
            sequence_lengths: config.graph_edits.sequence_lengths,
            top_scores: match config.top_scores {
                // TensorRT would build what finds them into its engines.
                TopScoresIn::Gpu => provider.name == ProviderName::Cuda,
                TopScoresIn::Always => true,
                TopScoresIn::Never => false,
            },
        };
        let (session, edits) = open_edited(builder, spec, wanted)?;
        Ok(Opened { session, edits, provider, stream, captures })
    };
    // A run that is captured is run more than once: a state, or a window, would take its tokens in more than once.
    let can_capture = config.cuda_graphs && !spec.has_states() && !spec.has_windows();
    match open(can_capture) {
        Err(LoadError::Session { message, .. }) if can_capture && message.contains(NOT_CAPTURED) => {
            tracing::warn!(message, "the graph cannot be captured; each step launches its operators one by one");
            open(false)
        }
        opened => opened,
    }
}

/// What ONNX Runtime says where some of a graph does not run on the device, or branches.
const NOT_CAPTURED: &str = "graph capture feature";

/// Opens the graph with the edits that it and the runtime allow.
fn open_edited(
    mut builder: SessionBuilder,
    spec: &ModelSpec,
    wanted: GraphEdits,
) -> Result<(Session, GraphEdits), LoadError> {
    if wanted == GraphEdits::default() {
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
    let scores = Scores {
        vocab_size: spec.vocab_size,
        element_type: spec.logits_type,
        of_all: !spec.has_last_logits_only && !spec.has_logits_indices,
    };
    // The file is read anew for each try, and only its edited copy kept: with its weights inside, it may be large.
    let edited = |wanted| {
        edit::edit(&read()?, wanted, scores, |file| data.name(file)).map_err(|error| unreadable(error.to_string()))
    };
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

/// A name of ours as protobuf wants it.
pub(super) fn text(name: &CStr) -> &str {
    name.to_str().expect("names of ours are text")
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
    (config, wants_captures): (&EngineConfig, bool),
) -> Result<Registered, LoadError> {
    let mut first: Option<Registered> = None;
    let limits = RunLimits::new(spec, config, GPU_CHUNK_TOKENS);
    for provider in &config.providers {
        match provider.register(builder, runtime, Some((spec, limits)), (first.as_ref(), wants_captures)) {
            Ok(registered) => {
                tracing::info!(provider = %provider.name, "registered execution provider");
                first.get_or_insert(registered);
            }
            Err(error) if config.fallback => tracing::warn!(%error, "going on without this execution provider"),
            Err(error) => return Err(error),
        }
    }
    let cpu = || ProviderConfig { name: ProviderName::Cpu, options: BTreeMap::new() };
    Ok(first.unwrap_or_else(|| Registered { provider: cpu(), stream: None, captures: false }))
}
