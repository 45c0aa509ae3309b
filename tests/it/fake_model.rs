//! A model without ONNX Runtime, whose next token depends on every token before it.

use ortolan::engine::{Batch, BlockLimits, Canary, Logits, Model, ModelError, ModelLimits, Row, TokenId};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

pub(crate) const VOCAB_SIZE: usize = 512;
pub(crate) const CONTEXT_TOKENS: usize = 512;

/// A row that reads another row's cache, or skips a position, changes the output.
#[derive(Debug)]
pub(crate) struct FakeModel {
    vocab_size: usize,
    context_tokens: usize,
    /// How many different tokens it says: few repeat themselves, and can be guessed.
    num_said: usize,
    /// Can only append.
    is_rigid: bool,
    first_failing_run: Option<usize>,
    panics: bool,
    faults: Vec<Injected>,
    canary: Option<Canary>,
    /// From this run on it scores other tokens than it should.
    first_spoiled_run: Option<usize>,
    /// From this run on its scores are no numbers.
    first_numberless_run: Option<usize>,
    /// Of this token comes nothing that is a number.
    numberless_token: Option<TokenId>,
    /// Slots or blocks in which there is something of it, until they are wiped.
    numberless: BTreeSet<usize>,
    gate: Option<mpsc::Receiver<()>>,
    script: Option<Vec<u32>>,
    runs: Arc<AtomicUsize>,
    kv: BTreeMap<usize, Vec<TokenId>>,
    blocks: Option<Blocks>,
}

/// Stands where nothing of use was computed.
const SPOILED: TokenId = TokenId(u32::MAX);

/// Tokens by block and offset.
#[derive(Debug)]
struct Blocks {
    limits: BlockLimits,
    tokens: Vec<TokenId>,
}

/// These runs compute the first rows of their batch, and then say this.
#[derive(Clone, Debug)]
struct Injected {
    runs: Range<usize>,
    num_rows: usize,
    message: &'static str,
}

impl Default for FakeModel {
    fn default() -> Self {
        Self {
            vocab_size: VOCAB_SIZE,
            context_tokens: CONTEXT_TOKENS,
            num_said: 64,
            is_rigid: false,
            first_failing_run: None,
            panics: false,
            faults: Vec::new(),
            canary: None,
            first_spoiled_run: None,
            first_numberless_run: None,
            numberless_token: None,
            numberless: BTreeSet::new(),
            gate: None,
            script: None,
            runs: Arc::default(),
            kv: BTreeMap::new(),
            blocks: None,
        }
    }
}

impl FakeModel {
    pub(crate) fn failing_from(run: usize) -> Self {
        Self::default().which_fails_from(run)
    }

    pub(crate) fn which_fails_from(self, run: usize) -> Self {
        Self { first_failing_run: Some(run), ..self }
    }

    pub(crate) fn panicking_from(run: usize) -> Self {
        Self { panics: true, ..Self::failing_from(run) }
    }

    /// Runs with these numbers fail with this message when so many rows have been computed.
    pub(crate) fn with_fault(mut self, message: &'static str, runs: Range<usize>, num_rows: usize) -> Self {
        self.faults.push(Injected { runs, num_rows, message });
        self
    }

    /// To be looked at again; what that takes now is no run.
    pub(crate) fn watched(mut self) -> Self {
        self.canary = Some(Canary::compute(&mut self, 0, &[0]).unwrap());
        self.runs.store(0, Ordering::SeqCst);
        self
    }

    /// From this run on it computes something else.
    pub(crate) fn spoiled_from(self, run: usize) -> Self {
        Self { first_spoiled_run: Some(run), ..self }
    }

    /// From this run on it computes no numbers.
    pub(crate) fn numberless_from(self, run: usize) -> Self {
        Self { first_numberless_run: Some(run), ..self }
    }

    /// Where it has computed this token it finds no numbers any more, whatever stands there, unless it is told to wipe that.
    pub(crate) fn with_numberless_token(self, token: u32) -> Self {
        Self { numberless_token: Some(TokenId(token)), ..self }
    }

    pub(crate) fn runs(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.runs)
    }

    /// Can neither rewind nor move what its slots hold.
    pub(crate) fn rigid() -> Self {
        Self { is_rigid: true, ..Self::default() }
    }

    /// Keeps what it computes in blocks, which hold one context of at most the usual length.
    pub(crate) fn in_blocks(num_blocks: usize, block_tokens: usize) -> Self {
        let limits = BlockLimits { num_blocks, block_tokens };
        let tokens = vec![SPOILED; num_blocks * block_tokens];
        Self {
            context_tokens: tokens.len().min(CONTEXT_TOKENS),
            blocks: Some(Blocks { limits, tokens }),
            ..Self::default()
        }
    }

    /// Takes conversations of so many tokens.
    pub(crate) fn with_context_tokens(self, context_tokens: usize) -> Self {
        Self { context_tokens, ..self }
    }

    /// Scores so many tokens, nearly all of them alike.
    pub(crate) fn with_vocab_size(self, vocab_size: usize) -> Self {
        Self { vocab_size, ..self }
    }

    /// Says only so many different tokens.
    pub(crate) fn saying_few(self, num_said: usize) -> Self {
        Self { num_said, ..self }
    }

    /// Says these tokens, whatever the prompt, then the last of them for ever.
    pub(crate) fn saying(tokens: Vec<u32>) -> Self {
        Self { script: Some(tokens), ..Self::default() }
    }

    /// Waits for a permit before each run, until the sender is dropped. Also returns the count of runs.
    pub(crate) fn gated(self) -> (Self, mpsc::SyncSender<()>, Arc<AtomicUsize>) {
        let (permits, gate) = mpsc::sync_channel(1);
        let model = Self { gate: Some(gate), ..self };
        let runs = Arc::clone(&model.runs);
        (model, permits, runs)
    }
}

impl FakeModel {
    /// Whether what a row reads is no number from some position on.
    fn is_numberless(&mut self, batch: &Batch, row: &Row, held: &[TokenId]) -> bool {
        let block_tokens = self.blocks.as_ref().map(|blocks| blocks.limits.block_tokens);
        let places: Vec<usize> = match block_tokens {
            Some(_) => batch.blocks(row).iter().map(|block| *block as usize).collect(),
            None => vec![row.slot_index],
        };
        if let Some(first) = held.iter().position(|token| Some(*token) == self.numberless_token) {
            self.numberless.extend(&places[block_tokens.map_or(0, |block_tokens| first / block_tokens)..]);
        }
        places.iter().any(|place| self.numberless.contains(place))
    }

    /// What the cache holds up to the end of a row.
    fn held_after(&mut self, batch: &Batch, row: &Row) -> Vec<TokenId> {
        if let Some(blocks) = &self.blocks {
            return (0..row.end()).map(|position| blocks.tokens[blocks.place(batch, row, position)]).collect();
        }
        let history = self.kv.entry(row.slot_index).or_default();
        let can_start =
            if self.is_rigid && 0 < row.start { row.start == history.len() } else { row.start <= history.len() };
        assert!(can_start, "a row goes on from what its slot holds");
        history.truncate(row.start);
        history.extend_from_slice(batch.new_tokens(row));
        history.clone()
    }
}

impl Blocks {
    fn place(&self, batch: &Batch, row: &Row, position: usize) -> usize {
        let BlockLimits { block_tokens, .. } = self.limits;
        batch.blocks(row)[position / block_tokens] as usize * block_tokens + position % block_tokens
    }

    /// Writes the new tokens of all rows before any is read, as the rows of a run have no order; of those that are not
    /// computed any more, something else.
    fn write(&mut self, batch: &Batch, num_computed: usize) {
        for (index, row) in batch.rows().iter().enumerate() {
            for (position, token) in (row.start..).zip(batch.new_tokens(row)) {
                let place = self.place(batch, row, position);
                self.tokens[place] = if index < num_computed { *token } else { SPOILED };
            }
            let written = &batch.blocks(row)[row.start / self.limits.block_tokens..];
            let of_others = batch.rows().iter().enumerate().filter(|(other, _)| *other != index);
            let mut read = of_others.flat_map(|(_, other)| batch.blocks(other));
            assert!(!read.any(|block| written.contains(block)), "a block that is shared is not written");
        }
    }
}

impl Model for FakeModel {
    fn limits(&self) -> ModelLimits {
        ModelLimits {
            vocab_size: self.vocab_size,
            context_tokens: self.context_tokens,
            chunk_tokens: 32,
            rewindable_tokens: if self.is_rigid { 0 } else { self.context_tokens },
            can_verify_drafts: !self.is_rigid,
            can_move_slots: !self.is_rigid && self.blocks.is_none(),
            blocks: self.blocks.as_ref().map(|blocks| blocks.limits),
        }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        if let Some(gate) = &self.gate {
            let _: Result<(), mpsc::RecvError> = gate.recv(); // A closed gate is an open one.
        }
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        if self.first_failing_run.is_some_and(|first| first <= run) {
            assert!(!self.panics, "injected");
            return Err(ModelError::new("injected"));
        }

        let fault = self.faults.iter().find(|fault| fault.runs.contains(&run)).cloned();
        if let Some(blocks) = &mut self.blocks {
            blocks.write(batch, fault.as_ref().map_or(usize::MAX, |fault| fault.num_rows));
        }
        let is_spoiled = self.first_spoiled_run.is_some_and(|first| first <= run);
        for (index, row) in batch.rows().iter().enumerate() {
            if fault.as_ref().is_some_and(|fault| fault.num_rows == index) {
                break;
            }
            let is_prompt = row.start == 0 || row.num_logits == 0 || (row.num_logits == 1 && 1 < row.num_tokens());
            let held = self.held_after(batch, row);
            let is_numberless =
                self.is_numberless(batch, row, &held) || self.first_numberless_run.is_some_and(|first| first <= run);
            for end in row.end() - row.num_logits..row.end() {
                let history = &held[..=end];
                let next = match &self.script {
                    Some(script) => {
                        // The first sampled row of a sequence ends its prompt, however long that was.
                        let said = if is_prompt { 0 } else { said(script, history) };
                        script[said.min(script.len() - 1)] as usize
                    }
                    None => hash(history) as usize % self.num_said,
                };
                let scores = logits.extend(&[index]);
                scores.fill(0.0);
                scores[(next + usize::from(is_spoiled)) % self.vocab_size] = 1.0;
                if is_numberless {
                    scores.fill(f32::NAN);
                }
            }
        }
        fault.map_or(Ok(()), |fault| Err(ModelError::new(fault.message)))
    }

    fn time_in_runs(&self) -> Duration {
        Duration::ZERO
    }

    fn canary(&self) -> Option<Canary> {
        self.canary
    }

    fn wipe(&mut self, slot_index: usize, blocks: &[u32]) -> Result<(), ModelError> {
        let in_blocks = self.blocks.is_some();
        let is_wiped = |place: usize| blocks.iter().any(|block| *block as usize == place);
        self.numberless.retain(|place| if in_blocks { !is_wiped(*place) } else { *place != slot_index });
        Ok(())
    }

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        assert!(!self.is_rigid && from != to, "only where it can be done");
        let copy = self.kv.entry(from).or_default()[..num_tokens].to_vec();
        self.kv.insert(to, copy);
        Ok(())
    }

    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        assert!(!self.is_rigid && one != other, "only where it can be done");
        let mut take = |slot| {
            let mut tokens = self.kv.remove(&slot).unwrap_or_default();
            tokens.truncate(num_tokens);
            tokens
        };
        let (held_by_one, held_by_other) = (take(one), take(other));
        self.kv.insert(one, held_by_other);
        self.kv.insert(other, held_by_one);
        let exchanged = |slot| {
            if slot == one {
                other
            } else if slot == other {
                one
            } else {
                slot
            }
        };
        self.numberless = self.numberless.iter().copied().map(exchanged).collect();
    }
}

/// What the model says after a prompt, computed without an engine.
pub(crate) fn says(prompt: &[u32], num_said: usize, num_tokens: usize) -> Vec<TokenId> {
    let mut history = tokens(prompt);
    for _ in 0..num_tokens {
        history.push(TokenId(hash(&history) % u32::try_from(num_said).unwrap()));
    }
    history.split_off(prompt.len())
}

/// How much of the script stands at the end of the history.
fn said(script: &[u32], history: &[TokenId]) -> usize {
    (0..=script.len()).rev().find(|said| history.ends_with(&tokens(&script[..*said]))).unwrap_or(0)
}

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

fn hash(history: &[TokenId]) -> u32 {
    let mix = |hash: u32, token: &TokenId| (hash ^ token.0).wrapping_mul(0x9E37_79B1).rotate_left(13);
    history.iter().fold(17, mix)
}
