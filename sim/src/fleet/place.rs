//! One process and the place where it runs: alive, stopped or dead, which of how many it is, and what has come
//! for it while it was stopped.

use super::message::Letter;

/// Most letters that wait for a stopped process; a real one's socket buffers are smaller.
pub const INBOX_MAX: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    Running,
    /// As by SIGSTOP.
    Stopped,
    Dead,
}

/// A place where processes of one kind follow one another.
pub struct Place<P> {
    pub process: Option<P>,
    /// Counts the processes of this place.
    pub epoch: u32,
    pub life: Life,
    pub inbox: Vec<Letter>,
}

impl<P> Place<P> {
    pub fn new(process: P) -> Self {
        Self { process: Some(process), epoch: 0, life: Life::Running, inbox: Vec::new() }
    }

    /// The process, if it is there and not stopped.
    pub fn running(&mut self) -> Option<&mut P> {
        if self.life == Life::Running { self.process.as_mut() } else { None }
    }

    pub fn is_alive(&self) -> bool {
        self.life != Life::Dead
    }

    /// Ends the process; what had come for it is lost. Gives back what it was.
    pub fn kill(&mut self) -> Option<P> {
        self.life = Life::Dead;
        self.inbox.clear();
        self.process.take()
    }

    /// The next process of this place.
    pub fn start(&mut self, process: P) {
        self.process = Some(process);
        self.epoch += 1;
        self.life = Life::Running;
    }
}
