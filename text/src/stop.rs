//! Stop strings over a text that arrives in pieces.
//!
//! Each stop string runs its own Knuth–Morris–Pratt automaton over the bytes, so the work is one step
//! per byte and stop string, and nothing is scanned twice however the text is cut. What is held back is
//! exactly the longest suffix that may still become a stop string. The match is the one that ends
//! first (the longest of those that end together), which does not depend on where the pieces end.

/// What to do with a found stop string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopText {
    Exclude,
    Include,
}

/// The state of one sequence.
#[derive(Debug, Default)]
pub struct StopMatcher {
    automata: Vec<Automaton>,
    /// Text that may be the start of a stop string.
    held: String,
    include: bool,
    /// Bytes of the last pushed text and before it that a match hides.
    dropped: usize,
}

/// What a push brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    No,
    /// The stop string at this index was found; the text is complete.
    At(usize),
}

impl StopMatcher {
    pub fn new(stops: &[String], text: StopText) -> Self {
        let automata = stops.iter().filter(|s| !s.is_empty()).map(|s| Automaton::new(s)).collect();
        Self { automata, held: String::new(), include: text == StopText::Include, dropped: 0 }
    }

    /// Nothing to look for.
    pub fn is_idle(&self) -> bool {
        self.automata.is_empty()
    }

    /// Text that is held back.
    pub fn held(&self) -> &str {
        &self.held
    }

    /// After a match: bytes of all text taken so far that do not show.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Takes more text, appends to `out` what can be shown.
    pub fn push(&mut self, text: &str, out: &mut String) -> Stopped {
        if self.automata.is_empty() {
            out.push_str(text);
            return Stopped::No;
        }
        for (at, byte) in text.bytes().enumerate() {
            let hit = self.step(byte);
            if let Some(index) = hit {
                let end = at + 1;
                self.held.push_str(&text[..end]);
                let shown = self.held.len() - if self.include { 0 } else { self.automata[index].stop.len() };
                out.push_str(&self.held[..shown]);
                self.dropped = self.held.len() - shown + text.len() - end;
                self.held.clear();
                return Stopped::At(index);
            }
        }
        self.held.push_str(text);
        let keep = self.automata.iter().map(|a| a.matched).max().unwrap_or(0);
        let shown = self.held.len() - keep;
        out.push_str(&self.held[..shown]);
        self.held.drain(..shown);
        Stopped::No
    }

    /// Takes text in which nothing may stop (before `min_tokens`); a match cannot begin in it either.
    pub fn pass(&mut self, text: &str, out: &mut String) {
        self.automata.iter_mut().for_each(|a| a.matched = 0);
        out.push_str(&self.held);
        self.held.clear();
        out.push_str(text);
    }

    /// The end of the text: nothing is held any longer.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// One byte for every automaton; the longest stop string that ends here.
    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut hit: Option<usize> = None;
        for index in 0..self.automata.len() {
            if self.automata[index].step(byte) {
                let longer =
                    hit.is_none_or(|h| self.automata[h].stop.len() < self.automata[index].stop.len());
                if longer {
                    hit = Some(index);
                }
            }
        }
        hit
    }
}

/// Knuth–Morris–Pratt for one stop string.
#[derive(Debug)]
struct Automaton {
    stop: Vec<u8>,
    /// `fallback[k]`: length of the longest proper border of the first `k + 1` bytes.
    fallback: Vec<usize>,
    matched: usize,
}

impl Automaton {
    fn new(stop: &str) -> Self {
        let stop = stop.as_bytes().to_vec();
        let mut fallback = vec![0; stop.len()];
        let mut border = 0;
        for at in 1..stop.len() {
            while border > 0 && stop[at] != stop[border] {
                border = fallback[border - 1];
            }
            border += usize::from(stop[at] == stop[border]);
            fallback[at] = border;
        }
        Self { stop, fallback, matched: 0 }
    }

    /// True if the stop string ends with this byte.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.stop[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        if self.matched < self.stop.len() {
            return false;
        }
        self.matched = self.fallback[self.matched - 1];
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: the earliest end wins, then the longest.
    fn model(stops: &[String], text: &str, include: bool) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let ending = stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
            let hit = ending
                .filter(|(_, s)| text.as_bytes()[..end].ends_with(s.as_bytes()))
                .max_by(|(i, a), (j, b)| a.len().cmp(&b.len()).then(j.cmp(i)));
            if let Some((_, stop)) = hit {
                let shown = if include { end } else { end - stop.len() };
                return (text[..shown].to_owned(), Some(end));
            }
        }
        (text.to_owned(), None)
    }

    fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut out = Vec::new();
        let mut rest = chars.as_slice();
        for cut in cuts.iter().cycle().take(chars.len() + 1) {
            let n = (*cut).min(rest.len());
            out.push(rest[..n].iter().collect());
            rest = &rest[n..];
        }
        out.push(rest.iter().collect());
        out
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_stops_where_the_whole_does(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            cuts in prop::collection::vec(0usize..4, 1..6),
            include: bool,
        ) {
            let mode = if include { StopText::Include } else { StopText::Exclude };
            let mut matcher = StopMatcher::new(&stops, mode);
            let (want, end) = model(&stops, &text, include);
            let mut shown = String::new();
            let mut hit = false;
            for piece in pieces(&text, &cuts) {
                if matcher.push(&piece, &mut shown) != Stopped::No {
                    hit = true;
                    break;
                }
                prop_assert!(want.starts_with(&shown), "{shown:?} shown, {want:?} wanted");
            }
            if !hit {
                matcher.finish(&mut shown);
            }
            prop_assert_eq!(hit, end.is_some());
            prop_assert_eq!(shown, want);
        }

        #[test]
        fn holds_back_only_what_may_become_a_stop_string(text in "[ab]{0,16}", stop in "[ab]{1,5}") {
            let mut matcher = StopMatcher::new(std::slice::from_ref(&stop), StopText::Exclude);
            let mut shown = String::new();
            if matcher.push(&text, &mut shown) == Stopped::No {
                let longest = (0..stop.len()).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0);
                prop_assert_eq!(matcher.held(), &stop[..longest]);
            }
        }
    }

    #[test]
    fn text_before_min_tokens_neither_stops_nor_starts_a_match() {
        let mut matcher = StopMatcher::new(&["END".into()], StopText::Exclude);
        let mut shown = String::new();
        matcher.pass("END and EN", &mut shown);
        assert_eq!(matcher.push("D, END", &mut shown), Stopped::At(0));
        assert_eq!(shown, "END and END, ");
    }
}
