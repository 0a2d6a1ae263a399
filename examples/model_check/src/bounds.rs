//! What a run is bounded by.

use clap::{Args, ValueEnum};

/// What the network may do to messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Delivers in any order or never, and loses as many messages as `--drops` says.
    #[default]
    Lossy,
    /// Delivers what one replica sends to another in order, and loses as many as `--drops` says.
    Ordered,
    /// Like lossy, and delivers as many messages twice as `--duplicates` says.
    Duplicating,
}

/// How much of everything may happen on one path. All counts together make the number of states
/// finite, so that a run without a depth visits all there are.
#[derive(Clone, Copy, Debug, Args)]
pub struct Bounds {
    /// Replicas in the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub servers: u8,
    /// What the network may do.
    #[arg(long, value_enum, default_value_t = Network::Lossy)]
    pub network: Network,
    /// Election and heartbeat timeouts.
    #[arg(long, default_value_t = 1)]
    pub timeouts: u8,
    /// Messages that are lost.
    #[arg(long, default_value_t = 0)]
    pub drops: u8,
    /// Messages that arrive twice, on a duplicating network.
    #[arg(long, default_value_t = 1)]
    pub duplicates: u8,
    /// Crashes, each with the loss of everything that is not saved.
    #[arg(long, default_value_t = 1)]
    pub crashes: u8,
    /// Transitions that a user proposes.
    #[arg(long, default_value_t = 1)]
    pub proposals: u8,
}
