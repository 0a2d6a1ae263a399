//! Model checking of the [`little_raft::Raft`] that ships: no model of it, the code itself.
//!
//! A state of the cluster is what its replicas are, what is on their disks, and which messages are
//! underway; an action is one input of one replica, or a fault. `stateright` visits every state
//! that any order of actions leads to, within the [`Bounds`], and judges each by the [`laws`].
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod bounds;
mod fingerprint;
pub mod laws;
mod model;
mod node;
mod probe;
mod state;
mod turn;

pub use bounds::{Bounds, Network};
pub use model::{Action, ModelChecked};
pub use node::{Content, Cut, Entry, Life, Node, Transition};
pub use state::{History, Left, Packet, State};
