//! What makes two states the same.
//!
//! Left out are time, and the names of the replicas. Of time only this matters: the order of the
//! rounds of one leadership, how many heartbeats ago each began, and whether a replica still
//! believes in its leader. No replica is special but for its part in a change of the configuration,
//! so a state is as good as any in which the replicas have exchanged their names: the least of the
//! hashes under all namings stands for them all.
//!
//! What is needed again and again is hashed once, under each naming: a replica, a message, the
//! history. Only the rounds are left, which mean nothing but among others.

use crate::bounds::{Bounds, MOST};
use crate::node::{Message, Node, Transition, age};
use crate::state::{History, Packet, State};
use foldhash::quality::{FixedState, FoldHasher};
use little_raft::{Body, ReplicaID, Round, Run, Term};
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Write};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

/// A hasher that is the same in every run.
pub(crate) fn hasher() -> FoldHasher {
    FixedState::with_seed(2026).build_hasher()
}

fn mix(values: impl Hash) -> u64 {
    let mut hasher = hasher();
    values.hash(&mut hasher);
    hasher.finish()
}

/// A hash of all there is to say about something, time and names included.
pub(crate) fn exact(it: &impl Debug) -> u64 {
    struct Writer(FoldHasher);
    impl Write for Writer {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut writer = Writer(hasher());
    // A hasher takes everything.
    let _ = write!(writer, "{it:?}");
    writer.0.finish()
}

/// Other names for all replicas.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    /// The name of each.
    pub(crate) names: Vec<ReplicaID>,
    /// Who has each name.
    ids: Vec<ReplicaID>,
}

/// All namings that give a replica the name of one that is to play the same part: it votes from the
/// beginning or not, and in the configuration to change to or not.
#[derive(Debug)]
pub(crate) struct Namings {
    all: Vec<Naming>,
    /// Who plays the same part.
    parts: Vec<Vec<ReplicaID>>,
}

impl Namings {
    pub(crate) fn new(bounds: &Bounds) -> Namings {
        let part = |id: ReplicaID| (id < bounds.servers.into(), bounds.change_to.contains(&id));
        let mut parts = BTreeMap::<_, Vec<_>>::new();
        let mut all = vec![vec![]];
        for last in 0..bounds.replicas() {
            parts.entry(part(last)).or_default().push(last);
            let longer = |shorter: &Vec<_>, place| {
                let mut naming = shorter.clone();
                naming.insert(place, last);
                naming
            };
            let places = |it| (0..=last).map(move |place| longer(it, place));
            all = all.iter().flat_map(places).collect();
        }
        all.retain(|names| names.iter().enumerate().all(|(id, name)| part(id) == part(*name)));
        let inverse = |names: &[ReplicaID]| {
            let mut ids = vec![0; names.len()];
            names.iter().enumerate().for_each(|(id, name)| ids[*name] = id);
            ids
        };
        let all = all.into_iter().map(|names| Naming { ids: inverse(&names), names });
        Namings { all: all.collect(), parts: parts.into_values().collect() }
    }

    /// Whether the names are in the order of the keys, among those that play one part.
    fn sorts(&self, naming: &Naming, key: impl Fn(ReplicaID) -> u64) -> bool {
        let key = |name: &ReplicaID| key(naming.ids[*name]);
        self.parts.iter().all(|part| part.iter().map(key).is_sorted())
    }
}

impl Naming {
    /// What a map says of each replica, in the order of their names.
    pub(crate) fn in_order<'a, V>(
        &'a self, map: &'a BTreeMap<ReplicaID, V>,
    ) -> impl Iterator<Item = (ReplicaID, &'a V)> {
        self.ids.iter().filter_map(|id| map.get(id).map(|it| (*id, it)))
    }

    /// A set of replicas.
    pub(crate) fn name_set(&self, set: u8) -> u8 {
        let members = (0..MOST).filter(|id| set & 1 << id != 0);
        members.fold(0, |set, id| set | 1 << self.names[id])
    }

    pub(crate) fn transition(&self, transition: Transition) -> Transition {
        match transition {
            Transition::Noop(id) => Transition::Noop(self.names[id]),
            proposal => proposal,
        }
    }
}

/// What names replicas, and can be hashed as if they had other names.
pub(crate) trait Name {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher);
}

/// The hash under each naming.
pub(crate) fn hashes(it: &impl Name, namings: &Namings) -> Box<[u64]> {
    let hash = |naming: &Naming| {
        let mut hasher = hasher();
        it.hash_named(naming, &mut hasher);
        hasher.finish()
    };
    namings.all.iter().map(hash).collect()
}

pub(crate) fn of(state: &State) -> u64 {
    let rounds: Vec<_> = (0..state.nodes.len()).map(|id| Rounds::of(state, id)).collect();
    let place = |packet: &Packet| packet.round.map(|(id, term, it)| rounds[id].place(term, it));
    let earlier = |at: usize, packet: &Packet| {
        let same = |it: &&Arc<Packet>| (it.from, it.to) == (packet.from, packet.to);
        state.ordered.then(|| state.network[..at].iter().filter(same).count())
    };
    let packets = state.network.iter().enumerate();
    let packets: Vec<_> = packets.map(|(at, it)| (place(it), earlier(at, it))).collect();
    // Replicas that differ in what has no names are sorted by that, which leaves few namings.
    let key = |id: ReplicaID| state.nodes[id].nameless;
    let namings = state.namings.all.iter().enumerate();
    let sorted = namings.filter(|(_, naming)| state.namings.sorts(naming, key));
    let hash_under = |(at, naming): (usize, &Naming)| {
        let mut hasher = hasher();
        (state.left, state.history.hashes[at]).hash(&mut hasher);
        for &id in &naming.ids {
            hasher.write_u64(state.nodes[id].hashes[at]);
            rounds[id].hash_named(naming, &mut hasher);
        }
        let hash = |(packet, places): (&Arc<Packet>, _)| mix((packet.hashes[at], places));
        let network = state.network.iter().zip(&packets).map(hash);
        // The order in which they were sent is told, if it matters.
        network.fold(0, u64::wrapping_add).hash(&mut hasher);
        hasher.finish()
    };
    sorted.map(hash_under).min().unwrap_or_default()
}

/// All rounds of one leadership that are to be seen, in order.
struct Rounds<'a> {
    node: &'a Node,
    term: Term,
    all: Vec<Round>,
}

impl Rounds<'_> {
    fn of(state: &State, id: ReplicaID) -> Rounds<'_> {
        let node = &state.nodes[id];
        let Some(status) = node.leads() else { return Rounds { node, term: 0, all: Vec::new() } };
        let peers = status.peers.values().flat_map(|it| [it.since, it.heard]);
        let packets = state.network.iter().filter_map(|it| it.round);
        let own = packets.filter(|(leader, term, _)| (*leader, *term) == (id, status.term));
        let current = node.life.iter().map(|it| it.round);
        let mut all: Vec<_> = peers.chain(own.map(|it| it.2)).chain(current).collect();
        all.sort_unstable();
        all.dedup();
        Rounds { node, term: status.term, all }
    }

    /// The place of a round among all; 0 if its leadership is over, for then nobody asks.
    fn place(&self, term: Term, round: Round) -> usize {
        let leads = term == self.term;
        if leads { 1 + self.all.partition_point(|it| *it < round) } else { 0 }
    }
}

impl Name for Rounds<'_> {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        let (Some(status), Some(life)) = (self.node.leads(), &self.node.life) else { return };
        for (_, peer) in naming.in_order(&status.peers) {
            [peer.since, peer.heard].map(|it| self.place(status.term, it)).hash(to);
        }
        self.place(status.term, life.round).hash(to);
        self.all.iter().for_each(|it| age(status.now, *it).hash(to));
    }
}

/// The leadership to which a message belongs, and its round.
pub(crate) fn round(
    from: ReplicaID, to: ReplicaID, message: &Message,
) -> Option<(ReplicaID, Term, Round)> {
    let Message { term, body, .. } = message;
    match body {
        Body::AppendEntries { round, .. } | Body::InstallSnapshot { round, .. } => {
            Some((from, *term, *round))
        }
        Body::Appended { round, .. } => Some((to, *term, *round)),
        _ => None,
    }
}

/// All but the round.
impl Name for Packet {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        (naming.names[self.from], naming.names[self.to]).hash(to);
        let Message { term, body, .. } = &self.message;
        (term, std::mem::discriminant(body)).hash(to);
        match body {
            Body::RequestVote { pre, transfer, last } => (pre, transfer, last).hash(to),
            Body::Vote { pre, granted } => (pre, granted).hash(to),
            Body::AppendEntries { prev, runs, commit, .. } => {
                (prev, commit, runs.len()).hash(to);
                runs.iter().for_each(|run| run.hash_named(naming, to));
            }
            Body::InstallSnapshot { snapshot, membership, .. } => {
                snapshot.last().hash(to);
                snapshot.data.iter().for_each(|it| naming.transition(*it).hash(to));
                membership.hash_named(naming, to);
            }
            Body::Appended { result, .. } => result.hash(to),
            Body::TimeoutNow => {}
            other => unreachable!("no replica has a reason to send this here: {other:?}"),
        }
    }
}

impl Name for Run<Transition> {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        (self.first, self.term, self.transitions.len()).hash(to);
        self.transitions.iter().for_each(|it| naming.transition(*it).hash(to));
        self.membership.iter().for_each(|it| it.hash_named(naming, to));
    }
}

impl Name for History {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        self.broken.hash(to);
        for (term, leader) in &self.leaders {
            (term, naming.names[*leader]).hash(to);
        }
        for (entry, term) in &self.committed {
            entry.hash_named(naming, to);
            term.hash(to);
        }
    }
}
