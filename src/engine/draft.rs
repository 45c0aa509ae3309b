//! Guesses of what comes next: prompt lookup (Saxena, 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>).
//!
//! Where the last few tokens occurred before, what followed them then is likely to follow again. The model verifies the
//! whole guess in one run.

use super::TokenId;
use std::ops::Range;

/// The shortest repeated end that is worth a guess, and the longest that is looked for.
const MIN_MATCH: usize = 2;
const MAX_MATCH: usize = 4;
/// Tokens that are searched, from the end on: what makes the search take microseconds however long the context.
const MAX_SEARCHED: usize = 8192;

/// Where in `tokens` a guess of what follows them is found: at most `max_tokens`, none when no end of them occurred before.
/// Longer matches win over shorter ones, then those that more follows, then later ones.
pub(super) fn find(tokens: &[TokenId], max_tokens: usize) -> Range<usize> {
    let searched = &tokens[tokens.len().saturating_sub(MAX_SEARCHED)..];
    let skipped = tokens.len() - searched.len();
    let Some(last) = searched.last().filter(|_| 0 < max_tokens) else { return 0..0 };
    let mut best = (0, 0, 0);
    for end in (1..searched.len()).rev() {
        // `end` tokens come before the guess; the last of them must be the last of all.
        if searched[end - 1] != *last {
            continue;
        }
        let pairs = searched[..end].iter().rev().zip(searched.iter().rev()).take(MAX_MATCH);
        let num_equal = pairs.take_while(|(earlier, later)| earlier == later).count();
        let num_guessed = max_tokens.min(searched.len() - end);
        if (best.0, best.1) < (num_equal, num_guessed) && MIN_MATCH <= num_equal {
            best = (num_equal, num_guessed, end);
            if (num_equal, num_guessed) == (MAX_MATCH, max_tokens) {
                break;
            }
        }
    }
    let (_, num_guessed, end) = best;
    skipped + end..skipped + end + num_guessed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(text: &str, max_tokens: usize) -> String {
        let tokens: Vec<TokenId> = text.bytes().map(|byte| TokenId(byte.into())).collect();
        text[find(&tokens, max_tokens)].to_owned()
    }

    #[test]
    fn what_followed_before_is_guessed_again() {
        assert_eq!(guess("the cat sat. the c", 4), "at s");
        // The longer match wins, then the later one.
        assert_eq!(guess("xabc1 yabc2 ..xabc", 1), "1");
        assert_eq!(guess("abc1 abc2 abc", 1), "2");
        // A guess as long as wanted wins over a later one, a longer match over both.
        assert_eq!(guess("7777777", 3), "777");
        assert_eq!(guess("ababab", 9), "ab");
        assert_eq!(guess("ab-ab", 9), "-ab");
        for nothing in ["", "a", "ab", "aXbYa"] {
            assert_eq!(guess(nothing, 4), "", "{nothing}");
        }
        assert_eq!(guess("abab", 0), "");
    }
}
