//! Pure protocols: replicas that take messages and commands and give messages back, without a
//! thread, a channel or a clock of their own. A system that implements [`Node`] is measured in
//! threads and in one thread by the same code as the others.

use crate::client::Measurement;
use crate::command::{Command, State};
use crate::scenario::{Place, Setup};
use crate::{one_thread, threads};

pub const REPLICAS: usize = 3;

/// One replica. The replica with id 0 must be the one that comes to lead.
pub trait Node: Send + 'static {
    type Command: Command;
    type Message: Send + 'static;

    /// Whether commands can be proposed here.
    fn leads(&self) -> bool;

    /// Time passes. In threads about every 10 ms; in one thread only until replica 0 leads.
    fn tick(&mut self);

    /// At the leader. What has to be sent for it may wait for the next [`Node::turn`].
    fn propose(&mut self, commands: Vec<Self::Command>);

    fn receive(&mut self, message: Self::Message);

    /// After whatever came in at once: put out what is to be sent, with the receiver's id, and
    /// apply what is decided.
    fn turn(&mut self, state: &mut State, outgoing: &mut Vec<(usize, Self::Message)>);
}

/// Measures three nodes in the place that the scenario names.
pub fn measure<N: Node>(setup: &Setup, nodes: [N; REPLICAS]) -> Result<Measurement, String> {
    match setup.scenario.place {
        Place::AllInOne => one_thread::measure(setup, nodes),
        Place::WithLeader | Place::OnItsOwn => threads::measure(setup, nodes),
    }
}
