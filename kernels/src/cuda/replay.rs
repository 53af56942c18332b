//! Which steps are recorded: decode steps whose rows all want logits, one recording per bucket of rows.
//!
//! A recorded step is launched for its whole bucket; kernels look up how many rows are live. The first step of
//! a bucket runs as it comes (library algorithms are chosen), the second is recorded.

use super::driver::GraphId;

/// Steps with more rows gain little from a recording: their kernels outlast the launches.
pub(super) const ROWS_MAX: usize = 512;

/// Rows that a recording is made for: the next bucket.
pub(super) fn bucket(rows: usize) -> usize {
    match rows {
        0..=2 => rows,
        3..=4 => 4,
        5..=64 => rows.next_multiple_of(8),
        65..=256 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(64),
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    Seen,
    Recorded(GraphId),
    /// The device refused it.
    Refused,
}

/// What to do with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    Run,
    Record,
    Replay(GraphId),
}

/// Recordings by bucket.
#[derive(Debug)]
pub(super) struct Recordings {
    /// By bucket, without and with a merge of attention states.
    states: Vec<[State; 2]>,
    present: Option<(usize, bool)>,
}

impl Recordings {
    pub fn new() -> Self {
        Self { states: vec![[State::New; 2]; ROWS_MAX + 1], present: None }
    }

    /// For a step that may be recorded, with `rows` rows; `merges`: whether attention has states to merge,
    /// which is a launch a layer more.
    pub fn course(&mut self, rows: usize, merges: bool) -> Course {
        let bucket = bucket(rows);
        let Some(states) = self.states.get_mut(bucket) else { return Course::Run };
        let state = &mut states[usize::from(merges)];
        match *state {
            State::New => {
                *state = State::Seen;
                Course::Run
            }
            State::Seen => {
                self.present = Some((bucket, merges));
                Course::Record
            }
            State::Recorded(graph) => Course::Replay(graph),
            State::Refused => Course::Run,
        }
    }

    /// Rows to launch for while a recording is made.
    pub fn present(&self) -> Option<usize> {
        self.present.map(|(bucket, _)| bucket)
    }

    /// Forgets a recording that failed halfway; true if there was one.
    pub fn abandon(&mut self) -> bool {
        let was = self.present.is_some();
        if was {
            self.keep(None);
        }
        was
    }

    /// Ends the recording.
    pub fn keep(&mut self, graph: Option<GraphId>) {
        let (bucket, merges) = self.present.take().expect("a recording was begun");
        self.states[bucket][usize::from(merges)] = graph.map_or(State::Refused, State::Recorded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_rows_and_little_more() {
        for rows in 1..=ROWS_MAX {
            let bucket = bucket(rows);
            assert!(bucket >= rows && bucket <= ROWS_MAX, "{rows} in {bucket}");
            assert!(bucket - rows < rows.max(8), "{rows} in {bucket}");
            assert_eq!(super::bucket(bucket), bucket);
        }
    }

    #[test]
    fn the_second_step_of_a_bucket_is_recorded_and_the_third_replayed() {
        let mut recordings = Recordings::new();
        assert_eq!(recordings.course(5, false), Course::Run);
        assert_eq!(recordings.course(7, false), Course::Record);
        assert_eq!(recordings.present(), Some(8));
        recordings.keep(Some(GraphId(3)));
        assert_eq!(recordings.course(8, false), Course::Replay(GraphId(3)));
        assert_eq!(recordings.course(9, false), Course::Run, "another bucket");
        assert_eq!(recordings.course(8, true), Course::Run, "other launches");
        assert_eq!(recordings.course(ROWS_MAX + 1, false), Course::Run);
    }

    #[test]
    fn an_abandoned_recording_is_not_tried_again() {
        let mut recordings = Recordings::new();
        recordings.course(1, false);
        assert!(!recordings.abandon());
        recordings.course(1, false);
        assert!(recordings.abandon() && !recordings.abandon());
        assert_eq!(recordings.course(1, false), Course::Run);
    }

    #[test]
    fn a_refused_recording_is_not_tried_again() {
        let mut recordings = Recordings::new();
        recordings.course(1, false);
        recordings.course(1, false);
        recordings.keep(None);
        assert_eq!(recordings.course(1, false), Course::Run);
        assert_eq!(recordings.course(1, false), Course::Run);
    }
}
