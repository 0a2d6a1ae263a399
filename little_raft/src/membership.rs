//! Who votes, and what a quorum is.

use crate::*;

/// A configuration of the cluster: who votes, and who only follows.
///
/// While it is *joint* (§6), on the way from the `outgoing` voters to the new ones, every decision
/// needs a majority of both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Membership {
    /// The replicas whose votes and acknowledgements count.
    pub voters: BTreeSet<ReplicaID>,
    /// The former voters, which count as a second half until the change is complete. Empty unless
    /// the configuration is joint.
    pub outgoing: BTreeSet<ReplicaID>,
    /// The replicas that receive the log but never count.
    pub learners: BTreeSet<ReplicaID>,
}

impl Membership {
    /// Everybody who receives the log.
    pub fn members(&self) -> BTreeSet<ReplicaID> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }

    /// The greatest value that a majority has reached; while joint, that both majorities have.
    ///
    /// The only majority arithmetic there is. Of an index it is the commit rule, of a vote the
    /// election, of a round what is known about one's own leadership.
    pub fn quorum<V: Ord + Copy + Default>(&self, value: impl Fn(ReplicaID) -> V) -> V {
        let reached_in = |half: &BTreeSet<ReplicaID>| {
            let mut values: Vec<V> = half.iter().map(|&id| value(id)).collect();
            values.sort_unstable();
            // Of five sorted values the third is reached by three. No voters reach nothing.
            values.len().checked_sub(1).map_or(V::default(), |end| values[end / 2])
        };
        let (reached, joint) = (reached_in(&self.voters), !self.outgoing.is_empty());
        if joint { reached.min(reached_in(&self.outgoing)) } else { reached }
    }
}
