//! Scores of what may come next, and how many of them a sampler wants to see.

use crate::engine::TokenId;

/// What a row of a batch wants to know of its scores. A model may always give more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// Every token's.
    All,
    /// The best [`NUM_TOP_SCORES`](super::NUM_TOP_SCORES), and what all weigh together at this temperature.
    Top {
        /// Greater than 0.
        temperature: f32,
    },
}

/// The best scores of one row.
#[derive(Clone, Copy, Debug)]
pub struct TopScores<'l> {
    /// Best first.
    pub scores: &'l [f32],
    /// What they are the scores of.
    pub tokens: &'l [TokenId],
    /// Over all tokens, the sum of `exp((score - best) / temperature)`.
    pub total: f32,
}

/// All rows of scores that one row of a batch has, in the order of its tokens.
#[derive(Debug)]
pub enum Scores<'l> {
    /// Every token's, one row behind the other.
    All(&'l mut [f32]),
    /// As many rows as there are totals.
    Top {
        /// Those of all rows.
        scores: &'l [f32],
        /// Those of all rows.
        tokens: &'l [TokenId],
        /// One for each row.
        totals: &'l [f32],
    },
}

impl Scores<'_> {
    /// Each row's best, where only these are there.
    pub fn tops(&self) -> impl Iterator<Item = TopScores<'_>> {
        let (scores, tokens, totals): (&[f32], &[TokenId], &[f32]) = match self {
            Self::All(_) => (&[], &[], &[]),
            Self::Top { scores, tokens, totals } => (scores, tokens, totals),
        };
        let width = (scores.len() / totals.len().max(1)).max(1);
        let rows = scores.chunks_exact(width).zip(tokens.chunks_exact(width)).zip(totals);
        rows.map(|((scores, tokens), total)| TopScores { scores, tokens, total: *total })
    }
}

/// Scores of one step. They are refilled for each.
#[derive(Debug)]
pub struct Logits {
    /// As large as any step has needed.
    scores: Vec<f32>,
    /// For each row of scores, the row of the batch that it belongs to. Those of one row are in the order of its tokens.
    rows: Vec<usize>,
    top: Top,
    vocab_size: usize,
}

/// The same of rows of which only the best are there.
#[derive(Debug, Default)]
struct Top {
    scores: Vec<f32>,
    tokens: Vec<TokenId>,
    totals: Vec<f32>,
    rows: Vec<usize>,
}

impl Logits {
    /// No rows yet.
    pub fn new(vocab_size: usize) -> Self {
        assert!(vocab_size > 0, "the vocabulary is not empty");
        Self { scores: Vec::new(), rows: Vec::new(), top: Top::default(), vocab_size }
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        let Top { scores, tokens, totals, rows } = &mut self.top;
        scores.clear();
        tokens.clear();
        totals.clear();
        rows.clear();
    }

    /// Room for a row of scores for each of these rows of the batch, to be written as a whole.
    pub fn extend(&mut self, batch_rows: &[usize]) -> &mut [f32] {
        let begin = self.rows.len() * self.vocab_size;
        self.rows.extend_from_slice(batch_rows);
        let end = self.rows.len() * self.vocab_size;
        if self.scores.len() < end {
            self.scores.resize(end, 0.0);
        }
        &mut self.scores[begin..end]
    }

    /// Adds the best scores of a row of the batch, all rows with the same number of them.
    pub fn push_top(&mut self, batch_row: usize, top: impl Iterator<Item = (f32, TokenId)>, total: f32) {
        for (score, token) in top {
            self.top.scores.push(score);
            self.top.tokens.push(token);
        }
        self.top.totals.push(total);
        self.top.rows.push(batch_row);
    }

    /// How many rows of scores there are.
    pub fn num_rows(&self) -> usize {
        self.rows.len() + self.top.rows.len()
    }

    /// For each row of the batch that has scores, its number and all of its rows of scores, one behind the other.
    pub fn by_batch_row_mut(&mut self) -> impl Iterator<Item = (usize, Scores<'_>)> {
        let Self { scores, rows, top, vocab_size } = self;
        let (mut scores, top) = (&mut scores[..], &*top);
        let all = rows.chunk_by(|one, next| one == next).map(move |rows| {
            let (of_row, rest) = std::mem::take(&mut scores).split_at_mut(rows.len() * *vocab_size);
            scores = rest;
            (rows[0], Scores::All(of_row))
        });
        let width = top.scores.len() / top.rows.len().max(1);
        let mut begin = 0;
        let top = top.rows.chunk_by(|one, next| one == next).map(move |rows| {
            let range = begin..begin + rows.len();
            begin = range.end;
            let numbers = range.start * width..range.end * width;
            let (scores, tokens) = (&top.scores[numbers.clone()], &top.tokens[numbers]);
            (rows[0], Scores::Top { scores, tokens, totals: &top.totals[range] })
        });
        all.chain(top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_kinds_are_told_apart_and_grouped() {
        let mut logits = Logits::new(2);
        for _ in 0..2 {
            logits.clear();
            logits.extend(&[0, 0, 3]).copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            for (row, score) in [(1, 7.0), (1, 8.0), (2, 9.0)] {
                logits.push_top(row, [(score, TokenId(1))].into_iter(), score + 0.5);
            }
            assert_eq!(logits.num_rows(), 6);
            let told = logits.by_batch_row_mut().map(|(row, scores)| match &scores {
                Scores::All(all) => (row, all.to_vec(), vec![]),
                Scores::Top { .. } => {
                    (row, vec![], scores.tops().map(|top| (top.scores[0], top.tokens[0].0, top.total)).collect())
                }
            });
            let told: Vec<_> = told.collect();
            assert_eq!(
                told,
                [
                    (0, vec![1.0, 2.0, 3.0, 4.0], vec![]),
                    (3, vec![5.0, 6.0], vec![]),
                    (1, vec![], vec![(7.0, 1, 7.5), (8.0, 1, 8.5)]),
                    (2, vec![], vec![(9.0, 1, 9.5)])
                ]
            );
        }
    }
}
