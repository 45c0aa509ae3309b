//! Stop strings, which never leak, not even their beginning.

/// Cuts a text that comes in pieces before the stop string that is complete first, which does not depend on the pieces.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    is_met: bool,
}

impl StopStrings {
    /// Empty stop strings are ignored.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), is_met: false }
    }

    /// Takes more text and gives out what can no longer be part of a stop string.
    pub fn push(&mut self, text: &str) -> String {
        if self.is_met {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(start) = first_stop(&self.stops, &self.held) {
            self.is_met = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep_from = self.first_possible_stop();
        let rest = self.held.split_off(keep_from);
        std::mem::replace(&mut self.held, rest)
    }

    /// What is left when no more text comes: it never became a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string has appeared.
    pub fn is_met(&self) -> bool {
        self.is_met
    }

    /// Where the longest end of the held text that begins a stop string starts.
    fn first_possible_stop(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        let mut starts = self.held.char_indices().map(|(index, _)| index).filter(|index| earliest <= *index);
        let begins_stop = |index: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*index..]));
        starts.find(begins_stop).unwrap_or(self.held.len())
    }
}

/// Where the stop string that ends first starts; of several that end together, the longest.
fn first_stop(stops: &[String], text: &str) -> Option<usize> {
    let found = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
    found.min().map(|(_, start)| start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text that comes through, given in pieces, and whether a stop was met.
    fn cut(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stops = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut text: String = pieces.iter().map(|piece| stops.push(piece)).collect();
        if !stops.is_met() {
            text += &stops.finish();
        }
        (text, stops.is_met())
    }

    #[test]
    fn nothing_of_a_stop_string_comes_through() {
        assert_eq!(cut(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(cut(&["END"], &["one E", "N", "O"]), ("one ENO".to_owned(), false));
        assert_eq!(cut(&["END"], &["one EN"]), ("one EN".to_owned(), false));
        assert_eq!(cut(&["aab"], &["a", "a", "a", "b"]), ("a".to_owned(), true));
        assert_eq!(cut(&["é!", ""], &["é", "é", "!"]), ("é".to_owned(), true));
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_gives_the_same(
            text in "[abé]{0,30}",
            stops in prop::collection::vec("[abé]{1,4}", 0..3),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let first = first_stop(&stops, &text);
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let expected = (text[..first.unwrap_or(text.len())].to_owned(), first.is_some());
            let mut bounds: Vec<usize> = text.char_indices().map(|(index, _)| index).collect();
            let mut places: Vec<usize> = match bounds.is_empty() {
                true => vec![],
                false => cuts.iter().map(|cut| *cut.get(&bounds)).collect(),
            };
            places.sort_unstable();
            bounds = [vec![0], places, vec![text.len()]].concat();
            let pieces: Vec<&str> = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(cut(&stops, &pieces), expected);
        }
    }
}
