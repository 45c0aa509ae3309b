//! `ortolan bench DIR`: what a model can do on this machine, and what the engine adds to the runs of its graph.

use super::{SUCCESS, VariantArgs, checked_model, print_line};
use crate::{
    config::Config,
    engine::{
        self, Batch, BlockLimits, End, Engine, EngineConfig, EngineHandle, Logits, Model, ModelLimits, ModelSpec,
        Request, Runtime, SamplingParams, ServiceClass, Stats, TokenEvent, TokenId, TokenStream, Wanted,
    },
};
use anyhow::{Context, bail};
use clap::Args;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::{num::NonZeroU32, path::PathBuf, thread, time::Instant};

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// A folder as exported to Hugging Face.
    dir: PathBuf,
    #[command(flatten)]
    variant: VariantArgs,
    /// Sequences that decode at once, one measurement for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8].map(|rows| NonZeroU32::new(rows).expect("not zero")))]
    rows: Vec<NonZeroU32>,
    /// Tokens that each sequence has before it decodes.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=MAX_TOKENS))]
    context: u32,
    /// Tokens that are timed in each sequence.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=MAX_TOKENS))]
    tokens: u32,
    /// Tokens of the prompt whose prefill is timed.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=MAX_TOKENS))]
    prompt: u32,
    /// Measurements of everything; the medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// More than any model's context.
const MAX_TOKENS: i64 = 10_000_000;

/// All that is measured.
#[derive(Debug, Serialize)]
struct Report {
    prompt_tokens: u32,
    /// Whole prompt, in chunks of `engine.max_step_tokens`.
    prefill_tokens_per_second: f64,
    context_tokens: u32,
    decode: Vec<Decode>,
}

/// Medians for one number of sequences.
#[derive(Debug, Serialize)]
struct Decode {
    rows: u32,
    /// The same runs of the graph in an empty loop.
    floor_tokens_per_second: f64,
    /// The engine, greedy.
    greedy: Rate,
    /// The engine, at temperature 1 and top-p 0.95.
    sampled: Rate,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    tokens_per_second: f64,
    /// Share of the engine's time outside the runs of the graph.
    outside_runs: f64,
    /// What has crossed the bus for each token: all scores of one are four bytes, or two, times the vocabulary.
    bytes_to_device_per_token: f64,
    bytes_to_host_per_token: f64,
}

pub(super) fn run(args: &BenchArgs, config: &Config, runtime: &Runtime) -> anyhow::Result<u8> {
    // One engine, where the first one of a model would be.
    let (variant, config) = (args.variant.or_configured(config), &config.engine.replicas()[0]);
    let spec = checked_model::open_dir(&args.dir, variant, config)?.spec;
    let most_rows = args.rows.iter().map(|rows| rows.get()).max().unwrap_or(1);
    // While the last prompts are computed, the first sequences decode already.
    let num_chunks = args.context.div_ceil(config.max_step_tokens.checked_sub(most_rows).unwrap_or(32).max(1));
    let max_output_tokens = most_rows.saturating_mul(num_chunks + 1).saturating_add(2 * args.tokens);
    let num_tokens = args.prompt.max(max_output_tokens.saturating_add(args.context)).saturating_add(2);
    if spec.context_tokens < num_tokens as usize {
        bail!("this takes {num_tokens} tokens of context, and the model has {}; ask for fewer", spec.context_tokens);
    }
    let spared = spec.context_tokens - num_tokens as usize;
    let spared = u32::try_from(spared).map_or(MAX_SPARED, |spared| spared.min(MAX_SPARED));
    let (num_tokens, max_output_tokens) = (num_tokens + spared, max_output_tokens + spared);
    let bench = Bench { args, config, runtime, spec, num_tokens, max_output_tokens };
    let report = bench.measure(NonZeroU32::new(most_rows).context("name at least one number of rows")?)?;
    if args.json {
        print_line(format_args!("{}", serde_json::to_string(&report)?))?;
    } else {
        report.print()?;
    }
    Ok(SUCCESS)
}

/// Steps that sequences can go on for when all is counted, and this thread has not noticed yet.
const MAX_SPARED: u32 = 128;

struct Bench<'b> {
    args: &'b BenchArgs,
    config: &'b EngineConfig,
    runtime: &'b Runtime,
    spec: ModelSpec,
    /// Context that every slot needs.
    num_tokens: u32,
    /// Enough for every sequence to go on until the time is taken.
    max_output_tokens: u32,
}

impl Bench<'_> {
    fn load(&self, rows: NonZeroU32) -> anyhow::Result<(Box<dyn Model>, EngineConfig)> {
        let config = EngineConfig {
            max_batch_size: rows,
            // The sequences of one measurement may not be gone yet when those of the next one come.
            max_waiting: rows.saturating_mul(NonZeroU32::new(2).expect("not zero")),
            max_context_tokens: NonZeroU32::new(self.num_tokens).expect("checked"),
            prefix_cache: false,
            ..self.config.clone()
        };
        Ok((engine::load(self.runtime, self.spec.clone(), &config)?, config))
    }

    fn measure(&self, most_rows: NonZeroU32) -> anyhow::Result<Report> {
        let (mut model, config) = self.load(most_rows)?;
        let mut floors = self.floors(&mut *model)?;
        let running = Running::start(model, &config)?;
        let prefill_tokens_per_second = self.prefill(&running.handle)?;
        let mut decode = Vec::new();
        for rows in &self.args.rows {
            let (mut greedy, mut sampled) = (Vec::new(), Vec::new());
            let params = || SamplingParams { temperature: 0.0, ..Default::default() };
            // The first time, kernels are loaded and steps that recur are captured.
            self.rate(&running.handle, *rows, u64::from(self.args.rounds), params())?;
            for round in 0..u64::from(self.args.rounds) {
                greedy.push(self.rate(&running.handle, *rows, round, params())?);
                let params = SamplingParams { top_p: 0.95, seed: Some(round), ..Default::default() };
                sampled.push(self.rate(&running.handle, *rows, round, params)?);
            }
            decode.push((*rows, Rate::median(&greedy), Rate::median(&sampled)));
        }
        running.stop()?;
        if 1 < self.args.rounds {
            // Again at the end, so that a machine that slows down does not flatter the engine.
            let again = self.floors(&mut *self.load(most_rows)?.0)?;
            floors = floors.into_iter().zip(again).map(|(one, other)| median(vec![one, other])).collect();
        }
        let decode = decode.into_iter().zip(floors).map(|((rows, greedy, sampled), floor_tokens_per_second)| Decode {
            rows: rows.get(),
            floor_tokens_per_second,
            greedy,
            sampled,
        });
        Ok(Report {
            prompt_tokens: self.args.prompt,
            prefill_tokens_per_second,
            context_tokens: self.args.context,
            decode: decode.collect(),
        })
    }

    /// For each number of rows.
    fn floors(&self, model: &mut dyn Model) -> anyhow::Result<Vec<f64>> {
        self.args.rows.iter().map(|rows| self.floor(model, *rows)).collect()
    }

    /// Runs of the graph alone, over the lengths that the engine is timed at.
    fn floor(&self, model: &mut dyn Model, rows: NonZeroU32) -> anyhow::Result<f64> {
        let limits = model.limits();
        let (mut batch, mut logits) = (Batch::default(), Logits::new(limits.vocab_size));
        let position = self.args.context as usize;
        let blocks = blocks_of_rows(limits, rows.get() as usize, position + self.args.tokens as usize)?;
        for (slot_index, blocks) in blocks.iter().enumerate() {
            let prompt = self.tokens(position, slot_index as u64);
            for (chunk, start) in prompt.chunks(64).zip((0..).step_by(64)) {
                batch.clear();
                batch.push(slot_index, start, chunk, None);
                batch.set_blocks(blocks);
                model.forward(&batch, &mut logits)?;
            }
        }
        let mut times = Vec::new();
        for position in (position..).take(self.args.tokens as usize) {
            batch.clear();
            for (slot_index, blocks) in blocks.iter().enumerate() {
                batch.push(slot_index, position, &[TokenId(1)], Some(&[]));
                batch.want(Wanted::Top { temperature: 1.0 });
                batch.set_blocks(blocks);
            }
            logits.clear();
            let before = model.time_in_runs();
            model.forward(&batch, &mut logits)?;
            times.push((model.time_in_runs() - before).as_secs_f64());
        }
        Ok(f64::from(rows.get()) / median(times))
    }

    /// Decodes all rows at once and takes the time from the moment when all have started, over as many tokens as the engine
    /// itself has counted: this thread may be late to read them.
    fn rate(
        &self,
        handle: &EngineHandle,
        rows: NonZeroU32,
        round: u64,
        sampling: SamplingParams,
    ) -> anyhow::Result<Rate> {
        let mut streams = Vec::new();
        for row in 0..rows.get() {
            let prompt = self.tokens(self.args.context as usize, 1000 * (1 + round) + u64::from(row));
            streams.push(handle.submit(self.request(prompt, self.max_output_tokens, sampling.clone()))?);
        }
        for stream in &mut streams {
            next_token(stream)?;
        }
        // One step more, so that the last prompt is not in the time.
        next_token(streams.last_mut().expect("at least one row"))?;
        let (began, before) = (Instant::now(), handle.stats());
        let enough = u64::from(rows.get()) * u64::from(self.args.tokens);
        let (elapsed, stats) = loop {
            next_token(streams.last_mut().expect("at least one row"))?;
            let (elapsed, stats) = (began.elapsed(), handle.stats().since(&before));
            if enough <= stats.generated_tokens {
                break (elapsed, stats);
            }
        };
        let Stats { busy, running, generated_tokens, copied, .. } = stats;
        if handle.load().running < rows.get() as usize {
            bail!("a sequence ended while the others were timed; ask for more with `--tokens`, or end what else runs");
        }
        Ok(Rate {
            tokens_per_second: generated_tokens as f64 / elapsed.as_secs_f64(),
            outside_runs: 1.0 - running.as_secs_f64() / busy.as_secs_f64(),
            bytes_to_device_per_token: copied.to_device as f64 / generated_tokens as f64,
            bytes_to_host_per_token: copied.to_host as f64 / generated_tokens as f64,
        })
    }

    fn prefill(&self, handle: &EngineHandle) -> anyhow::Result<f64> {
        let mut rates = Vec::new();
        // A prompt of a new length is slow once where kernels are loaded when they are first used.
        for round in 0..=u64::from(self.args.rounds) {
            let prompt = self.tokens(self.args.prompt as usize, round);
            let began = Instant::now();
            next_token(&mut handle.submit(self.request(prompt, 1, SamplingParams::default()))?)?;
            rates.push(f64::from(self.args.prompt) / began.elapsed().as_secs_f64());
        }
        rates.remove(0);
        Ok(median(rates))
    }

    /// Any tokens will do: speed does not depend on them.
    fn tokens(&self, count: usize, seed: u64) -> Vec<TokenId> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let vocab_size = u32::try_from(self.spec.vocab_size).unwrap_or(u32::MAX);
        (0..count).map(|_| TokenId(random.next_u32() % vocab_size)).collect()
    }

    fn request(&self, prompt: Vec<TokenId>, max_output_tokens: u32, sampling: SamplingParams) -> Request {
        Request {
            prompt,
            sampling,
            constraint: None,
            top_logprobs: None,
            stop_tokens: [].into(),
            max_output_tokens: NonZeroU32::new(max_output_tokens),
            service_class: ServiceClass::Default,
            cache_salt: 0,
            max_draft_tokens: Some(0),
        }
    }
}

/// Blocks for so many tokens in each row; none where each row has a slot.
fn blocks_of_rows(limits: ModelLimits, num_rows: usize, num_tokens: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let Some(BlockLimits { num_blocks, block_tokens }) = limits.blocks else { return Ok(vec![Vec::new(); num_rows]) };
    let per_row = num_tokens.div_ceil(block_tokens);
    if num_blocks < num_rows * per_row {
        bail!("{num_rows} rows of {num_tokens} tokens take {} blocks, and there are {num_blocks}", num_rows * per_row);
    }
    let mut blocks = 0..u32::try_from(num_blocks)?;
    Ok((0..num_rows).map(|_| blocks.by_ref().take(per_row).collect()).collect())
}

/// An engine on its thread.
struct Running {
    handle: EngineHandle,
    thread: thread::JoinHandle<End>,
}

impl Running {
    fn start(model: Box<dyn Model>, config: &EngineConfig) -> anyhow::Result<Self> {
        let (engine, handle) = Engine::new(config, model);
        let thread = thread::Builder::new().name("engine".to_owned()).spawn(|| engine.run());
        Ok(Self { handle, thread: thread.context("the engine thread cannot be started")? })
    }

    fn stop(self) -> anyhow::Result<()> {
        self.handle.shut_down();
        if !matches!(self.thread.join(), Ok(End::Shutdown)) {
            bail!("the engine has failed");
        }
        Ok(())
    }
}

fn next_token(stream: &mut TokenStream) -> anyhow::Result<()> {
    loop {
        match stream.blocking_recv() {
            Some(TokenEvent::Token(_)) => return Ok(()),
            Some(TokenEvent::Queued | TokenEvent::Started | TokenEvent::Logprobs(_)) => {}
            Some(TokenEvent::Finished { reason, .. }) => bail!("a sequence ended early ({reason:?})"),
            None => bail!("the engine has failed"),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

impl Rate {
    fn median(rates: &[Self]) -> Self {
        let of = |value: fn(&Self) -> f64| median(rates.iter().map(value).collect());
        Self {
            tokens_per_second: of(|rate| rate.tokens_per_second),
            outside_runs: of(|rate| rate.outside_runs),
            bytes_to_device_per_token: of(|rate| rate.bytes_to_device_per_token),
            bytes_to_host_per_token: of(|rate| rate.bytes_to_host_per_token),
        }
    }
}

impl Report {
    fn print(&self) -> anyhow::Result<()> {
        let Self { prompt_tokens, prefill_tokens_per_second: rate, context_tokens, decode } = self;
        print_line(format_args!("prefill of {prompt_tokens} tokens: {rate:.0} tokens/s"))?;
        print_line(format_args!(
            "decode behind {context_tokens} tokens, tokens/s of all rows (time outside the graph):"
        ))?;
        print_line(format_args!("{:>6} {:>10} {:>18} {:>18}", "rows", "floor", "greedy", "top-p 0.95"))?;
        for Decode { rows, floor_tokens_per_second: floor, greedy, sampled } in decode {
            let cell = |rate: &Rate| format!("{:.1} ({:.1} %)", rate.tokens_per_second, 100.0 * rate.outside_runs);
            print_line(format_args!("{rows:>6} {floor:>10.1} {:>18} {:>18}", cell(greedy), cell(sampled)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!([median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])], [2.0, 2.5]);
    }
}
