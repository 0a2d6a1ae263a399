//! What a run is bounded by.

use clap::{Args, ValueEnum};
use little_raft::ReplicaID;

/// Replicas that a cluster has at most, those that join it included.
pub(crate) const MOST: usize = 5;

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
#[derive(Clone, Debug, Args)]
pub struct Bounds {
    /// Replicas in the first configuration.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=MOST as i64))]
    pub servers: u8,
    /// What the network may do.
    #[arg(long, value_enum, default_value_t = Network::Lossy)]
    pub network: Network,
    /// Timeouts, be it elections or heartbeats.
    #[arg(long, default_value_t = 1)]
    pub timeouts: u8,
    /// Further timeouts, of leaders only: heartbeats.
    #[arg(long, default_value_t = 0)]
    pub heartbeats: u8,
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
    /// Transfers of leadership that a user asks for, each to any other voter.
    #[arg(long, default_value_t = 0)]
    pub transfers: u8,
    /// Entries applied between two snapshots, and kept behind each; 0 for no snapshots.
    #[arg(long, default_value_t = 0)]
    pub snapshot_delta: u8,
    /// The voters of another configuration, like 0,1,3, to which a user asks to change once. Those
    /// that are not in the first join the cluster.
    #[arg(long, value_delimiter = ',', value_parser = replica)]
    pub change_to: Vec<ReplicaID>,
}

impl Bounds {
    /// All replicas, those included that only join by the change of the configuration.
    pub(crate) fn replicas(&self) -> usize {
        let joining = self.change_to.iter().map(|id| id + 1).max().unwrap_or(0);
        joining.max(self.servers.into())
    }
}

fn replica(text: &str) -> Result<ReplicaID, String> {
    let id = text.parse().map_err(|error| format!("{error}: give the number of a replica"))?;
    if id < MOST { Ok(id) } else { Err(format!("give numbers below {MOST}")) }
}
