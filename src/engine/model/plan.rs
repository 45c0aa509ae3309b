//! Which rows of a batch share a run of the graph.
//!
//! Rows of a run lie in neighbouring slots and are as wide as the widest of them, so sharing a run saves its fixed cost
//! and pays for padding. A slot in between that has nothing to do costs as much as a row.

use crate::engine::Batch;
use std::ops::Range;

/// What decides whether rows share a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlanLimits {
    /// What a run costs beside its tokens, as a number of tokens.
    pub(super) run_overhead_tokens: usize,
    /// Whether rows of different lengths can be in one run.
    pub(super) can_pad: bool,
    /// Whether slots with nothing to do can be in one run with others. Only where rows can be padded.
    pub(super) can_idle: bool,
    /// Whether a row that starts at 0 has to be alone, because its slot does not hold what it starts from.
    pub(super) begins_alone: bool,
    /// A row's first position and the width of its run must not exceed this together.
    pub(super) context_tokens: usize,
}

/// One run of the graph.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PlannedRun {
    /// Its rows, as a range of [`Plan::rows`].
    rows: Range<usize>,
    /// The slots that it spans, of which some may have nothing to do.
    pub(super) slots: Range<usize>,
    /// Tokens per slot, padding included.
    pub(super) width: usize,
    /// Whether one of its rows starts at 0.
    pub(super) begins: bool,
}

/// Refilled for each step, so that a steady state allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Indices into the batch.
    order: Vec<usize>,
    runs: Vec<PlannedRun>,
}

impl Plan {
    /// Puts each row of the batch into one run. Narrow rows come first, and each row joins the run before it if that is
    /// cheaper than a run of its own.
    pub(super) fn fill(&mut self, batch: &Batch, limits: PlanLimits) {
        self.order.clear();
        self.order.extend(0..batch.rows().len());
        self.order.sort_unstable_by_key(|index| {
            let row = &batch.rows()[*index];
            (row.num_tokens(), row.slot_index)
        });
        self.runs.clear();
        let mut furthest_start = 0;
        for (position, index) in self.order.iter().enumerate() {
            let row = &batch.rows()[*index];
            let alone = PlannedRun {
                rows: position..position + 1,
                slots: row.slot_index..row.slot_index + 1,
                width: row.num_tokens(),
                begins: row.start == 0,
            };
            if let Some(last) = self.runs.last_mut() {
                let joined = last.joined_with(&alone);
                let furthest = furthest_start.max(row.start);
                let fits = furthest + joined.width <= limits.context_tokens;
                if fits && limits.allow(&joined) && limits.cost(&joined) <= limits.cost(last) + limits.cost(&alone) {
                    *last = joined;
                    furthest_start = furthest;
                    continue;
                }
            }
            furthest_start = row.start;
            self.runs.push(alone);
        }
    }

    pub(super) fn runs(&self) -> &[PlannedRun] {
        &self.runs
    }

    /// Indices into the batch of a run's rows.
    pub(super) fn rows(&self, run: &PlannedRun) -> &[usize] {
        &self.order[run.rows.clone()]
    }
}

impl PlannedRun {
    fn joined_with(&self, next: &Self) -> Self {
        Self {
            rows: self.rows.start..next.rows.end,
            slots: self.slots.start.min(next.slots.start)..self.slots.end.max(next.slots.end),
            width: self.width.max(next.width),
            begins: self.begins || next.begins,
        }
    }
}

impl PlanLimits {
    /// Whether rows of several slots can be in this run. Without padding, only single tokens in neighbouring slots: the
    /// operator takes no longer rows behind a past, and would overwrite the first position of an idle slot.
    fn allow(&self, run: &PlannedRun) -> bool {
        let has_idle = run.rows.len() < run.slots.len();
        (self.can_pad || run.width == 1) && (self.can_idle || !has_idle) && !(self.begins_alone && run.begins)
    }

    fn cost(&self, run: &PlannedRun) -> usize {
        self.run_overhead_tokens + run.slots.len() * run.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TokenId;
    use proptest::prelude::*;

    const CPU: PlanLimits =
        PlanLimits { run_overhead_tokens: 5, can_pad: true, can_idle: true, begins_alone: false, context_tokens: 100 };

    /// `(slot, start, number of tokens)` of each row to `(rows, slots, width)` of each run.
    fn plan(rows: &[(usize, usize, usize)], limits: PlanLimits) -> Vec<(Vec<usize>, Range<usize>, usize)> {
        let mut batch = Batch::default();
        for (slot_index, start, num_tokens) in rows {
            batch.push(*slot_index, *start, &vec![TokenId(1); *num_tokens], Some(&[]));
        }
        let mut plan = Plan::default();
        plan.fill(&batch, limits);
        plan.runs().iter().map(|run| (plan.rows(run).to_vec(), run.slots.clone(), run.width)).collect()
    }

    #[test]
    fn rows_share_a_run_where_that_is_cheaper() {
        // All that decode, whatever their order, and one idle slot between them.
        assert_eq!(plan(&[(3, 9, 1), (0, 5, 1), (1, 7, 1)], CPU), [(vec![1, 2, 0], 0..4, 1)]);
        // An idle stretch that costs more than another run.
        assert_eq!(plan(&[(0, 9, 1), (9, 5, 1)], CPU), [(vec![0], 0..1, 1), (vec![1], 9..10, 1)]);
        // A chunk of a prompt is on its own, a short draft is not.
        assert_eq!(plan(&[(0, 9, 1), (1, 5, 1), (2, 0, 32)], CPU), [(vec![0, 1], 0..2, 1), (vec![2], 2..3, 32)]);
        assert_eq!(plan(&[(0, 9, 1), (1, 5, 3)], CPU), [(vec![0, 1], 0..2, 3)]);
        // Where a run is dear, everything goes together.
        let gpu = PlanLimits { run_overhead_tokens: 1000, ..CPU };
        assert_eq!(plan(&[(0, 9, 1), (1, 5, 1), (2, 0, 32)], gpu), [(vec![0, 1, 2], 0..3, 32)]);
        // No row is padded beyond the context.
        assert_eq!(plan(&[(0, 99, 1), (1, 5, 2)], CPU), [(vec![0], 0..1, 1), (vec![1], 1..2, 2)]);
    }

    #[test]
    fn without_padding_only_neighbours_that_decode_go_together() {
        let limits = PlanLimits { can_pad: false, can_idle: false, ..CPU };
        let runs = plan(&[(0, 9, 1), (1, 5, 1), (3, 5, 1), (2, 5, 2)], limits);
        assert_eq!(runs, [(vec![0, 1], 0..2, 1), (vec![2], 3..4, 1), (vec![3], 2..3, 2)]);
    }

    #[test]
    fn where_states_begin_empty_a_row_begins_alone() {
        let limits = PlanLimits { can_pad: false, can_idle: false, begins_alone: true, ..CPU };
        let runs = plan(&[(0, 9, 1), (1, 0, 1), (2, 5, 1), (3, 7, 1)], limits);
        assert_eq!(runs, [(vec![0], 0..1, 1), (vec![1], 1..2, 1), (vec![2, 3], 2..4, 1)]);
    }

    #[test]
    fn rows_are_padded_but_no_slot_is_idle_where_it_cannot_be() {
        let limits = PlanLimits { can_idle: false, ..CPU };
        assert_eq!(plan(&[(0, 9, 1), (1, 5, 3)], limits), [(vec![0, 1], 0..2, 3)]);
        assert_eq!(plan(&[(0, 9, 1), (2, 5, 1)], limits), [(vec![0], 0..1, 1), (vec![1], 2..3, 1)]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_run_that_it_fits(
            rows in prop::collection::btree_map(0_usize..16, (0_usize..60, 1_usize..40), 1..10),
            run_overhead_tokens in 0_usize..200,
            (can_pad, can_idle, begins_alone) in any::<(bool, bool, bool)>(),
        ) {
            let rows: Vec<(usize, usize, usize)> =
                rows.into_iter().map(|(slot, (start, num_tokens))| (slot, start, num_tokens)).collect();
            let can_idle = can_pad && can_idle;
            let limits = PlanLimits { run_overhead_tokens, can_pad, can_idle, begins_alone, context_tokens: 100 };
            let runs = plan(&rows, limits);
            let mut seen: Vec<usize> = runs.iter().flat_map(|(rows, ..)| rows.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows.len()).collect::<Vec<_>>());
            for (members, slots, width) in runs {
                for index in &members {
                    let (slot, start, num_tokens) = rows[*index];
                    prop_assert!(slots.contains(&slot) && num_tokens <= width && start + width <= 100);
                }
                prop_assert!(can_pad || members.len() == 1 || width == 1);
                prop_assert!(can_idle || members.len() == slots.len());
                prop_assert!(!begins_alone || members.len() == 1 || members.iter().all(|index| 0 < rows[*index].1));
            }
        }
    }
}
