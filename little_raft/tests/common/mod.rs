//! What the threaded tests and those that own the schedule replicate.

use little_raft::{Message, StateMachineTransition};

/// The id of every no-op.
pub(crate) const NOOP: usize = 0;

pub(crate) type Letter = Message<Write, Vec<usize>>;

/// A transition: write a number down.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Write(pub(crate) usize);

impl StateMachineTransition for Write {
    type TransitionID = usize;

    fn get_id(&self) -> usize {
        self.0
    }
}
