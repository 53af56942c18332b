//! Added tokens (control tokens and their like), cut out of the text before anything else looks at it.
//!
//! A trie over the few hundred contents, entered only at bytes that begin one: text without `<` costs one
//! search for `<`. The reference builds an Aho-Corasick automaton; the leftmost-longest match is the same.
//! Tokens may take the whitespace beside them (`lstrip`, `rstrip`).

use base::TokenId;

/// One added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    pub id: TokenId,
    pub content: String,
    pub left: Strip,
    pub right: Strip,
}

/// What happens to whitespace beside a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strip {
    Keep,
    Take,
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Token(TokenId),
    /// Bytes from, to.
    Text(usize, usize),
}

/// The tokens to look for.
pub(crate) struct Splitter {
    tokens: Vec<Added>,
    nodes: Vec<Node>,
    /// Bytes that begin a token.
    leads: [bool; 256],
    /// The only such byte, if there is one and it is ASCII.
    lead: Option<char>,
}

#[derive(Default)]
struct Node {
    next: Vec<(u8, u32)>,
    token: Option<u32>,
}

impl Splitter {
    pub fn new(tokens: Vec<Added>) -> Self {
        let mut splitter =
            Self { tokens: Vec::new(), nodes: vec![Node::default()], leads: [false; 256], lead: None };
        for (at, token) in tokens.iter().enumerate() {
            splitter.insert(token.content.as_bytes(), at as u32);
        }
        let mut leads = splitter.nodes[0].next.iter().map(|(byte, _)| *byte);
        if let (Some(only), None) = (leads.next(), leads.next()) {
            splitter.lead = only.is_ascii().then_some(char::from(only));
        }
        splitter.tokens = tokens;
        splitter
    }

    fn insert(&mut self, content: &[u8], token: u32) {
        let Some(first) = content.first() else { return };
        self.leads[*first as usize] = true;
        let mut node = 0;
        for byte in content {
            node = match self.step(node, *byte) {
                Some(next) => next,
                None => {
                    let fresh = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.nodes[node].next.push((*byte, fresh as u32));
                    fresh
                }
            };
        }
        self.nodes[node].token = Some(token);
    }

    fn step(&self, node: usize, byte: u8) -> Option<usize> {
        self.nodes[node].next.iter().find(|(b, _)| *b == byte).map(|(_, next)| *next as usize)
    }

    /// Calls `each` with the parts of `text`, in order.
    pub fn split(&self, text: &str, mut each: impl FnMut(Piece)) {
        let (mut done, mut from) = (0, 0);
        while let Some((start, end, token)) = self.find(text, from) {
            from = end;
            let token = &self.tokens[token as usize];
            let start = match token.left {
                Strip::Keep => start,
                Strip::Take => text[..start].trim_end().len().max(done),
            };
            let end = match token.right {
                Strip::Keep => end,
                Strip::Take => text.len() - text[end..].trim_start().len(),
            };
            if done < start {
                each(Piece::Text(done, start));
            }
            each(Piece::Token(token.id));
            done = end;
        }
        if done < text.len() {
            each(Piece::Text(done, text.len()));
        }
    }

    /// The next match at or after `from`: start, end, index of the token.
    fn find(&self, text: &str, mut from: usize) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        while from < bytes.len() {
            from = match self.lead {
                Some(lead) => from + text[from..].find(lead)?,
                None => from + bytes[from..].iter().position(|byte| self.leads[*byte as usize])?,
            };
            if let Some((end, token)) = self.longest(bytes, from) {
                return Some((from, end, token));
            }
            from += 1;
        }
        None
    }

    fn longest(&self, bytes: &[u8], from: usize) -> Option<(usize, u32)> {
        let (mut node, mut found) = (0, None);
        for (at, byte) in bytes.iter().enumerate().skip(from) {
            let Some(next) = self.step(node, *byte) else { break };
            node = next;
            if let Some(token) = self.nodes[node].token {
                found = Some((at + 1, token));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(content: &str, id: u32, left: Strip, right: Strip) -> Added {
        Added { id, content: content.into(), left, right }
    }

    fn shown(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        splitter.split(text, |piece| {
            out.push(match piece {
                Piece::Token(id) => format!("#{id}"),
                Piece::Text(from, to) => text[from..to].to_owned(),
            })
        });
        out
    }

    #[test]
    fn the_longest_of_the_leftmost_is_taken() {
        let keep = |content, id| added(content, id, Strip::Keep, Strip::Keep);
        let splitter = Splitter::new(vec![keep("<a>", 1), keep("<a><b>", 2), keep("<b", 3)]);
        assert_eq!(shown(&splitter, "x<a><b>y<a><<b"), ["x", "#2", "y", "#1", "<", "#3"]);
        assert!(shown(&splitter, "").is_empty());
    }

    #[test]
    fn tokens_may_take_the_whitespace_beside_them() {
        let splitter = Splitter::new(vec![
            added("<l>", 1, Strip::Take, Strip::Keep),
            added("[r]", 2, Strip::Keep, Strip::Take),
        ]);
        assert_eq!(shown(&splitter, "a \u{a0}<l> b [r] \n<l>"), ["a", "#1", " b ", "#2", "#1"]);
    }
}
