//! The systems measured, one file each. To add one, write its file and name it in [`all`].

pub mod little_raft;
mod little_raft_published;
mod message_chain;
mod omnipaxos;
mod openraft;
mod raft_lite;
mod raw_fan_out;
mod tikv_raft;

use serde::{Deserialize, Serialize};

use crate::client::Measurement;
use crate::scenario::{Scenario, Setup};

/// What a system stands for in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Replicates without agreeing on anything: what no library can be faster than.
    Limit,
    /// Replicates by consensus.
    Library,
}

pub struct System {
    pub name: &'static str,
    pub kind: Kind,
    /// One line for `--list` and the report: what it is and how it is driven.
    pub about: &'static str,
    /// The package whose version the report names, as it stands in `Cargo.lock`.
    pub package: Option<&'static str>,
    pub supports: fn(&Scenario) -> bool,
    /// Runs in a process of its own, so it need not clean up threads or memory.
    pub measure: fn(&Setup) -> Result<Measurement, String>,
}

/// The system that the others are held against as the limit.
pub const REFERENCE: &str = "raw-fan-out";

pub fn all() -> Vec<System> {
    vec![
        raw_fan_out::copied(),
        raw_fan_out::shared(),
        message_chain::system(),
        omnipaxos::batched(),
        omnipaxos::one_by_one(),
        tikv_raft::system(),
        openraft::system(),
        little_raft::system(),
        little_raft::pure_in_threads(),
        little_raft_published::system(),
        raft_lite::system(),
    ]
}

pub fn named(name: &str) -> Option<System> {
    all().into_iter().find(|system| system.name == name)
}

/// Calls a generic function with the command type that a scenario's payload asks for.
macro_rules! with_command {
    ($payload:expr, $function:ident($($argument:expr),*)) => {
        match $payload {
            $crate::scenario::Payload::Fixed16 => {
                $function::<$crate::command::Fixed<16>>($($argument),*)
            }
            $crate::scenario::Payload::Fixed256 => {
                $function::<$crate::command::Fixed<256>>($($argument),*)
            }
            $crate::scenario::Payload::Bytes16 => {
                $function::<$crate::command::Counted<16>>($($argument),*)
            }
            $crate::scenario::Payload::Bytes256 => {
                $function::<$crate::command::Counted<256>>($($argument),*)
            }
        }
    };
}
pub(crate) use with_command;
