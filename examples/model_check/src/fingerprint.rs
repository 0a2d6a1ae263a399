//! What makes two states the same.
//!
//! Left out are time, and the names of the replicas. Of time only this matters: the order of the
//! rounds of one leadership, how many heartbeats ago a peer answered, and whether a replica
//! still believes in its leader. No replica is special, so a state is as good as any in which the
//! replicas have exchanged their names: the least of the hashes under all namings stands for them
//! all.

use crate::node::{HEARTBEAT, Life, Node, Transition};
use crate::{Entry, Packet, State};
use little_raft::{Body, Message, ReplicaID, Round, Run, Status, Term};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

/// All namings of clusters of every size: the new name of each replica.
static NAMINGS: LazyLock<Vec<Vec<Vec<ReplicaID>>>> = LazyLock::new(|| {
    let mut namings = vec![vec![vec![]]];
    for last in 0..5 {
        let insert = |naming: &Vec<_>, place: usize| {
            let mut longer = naming.clone();
            longer.insert(place, last);
            longer
        };
        let shorter: &Vec<Vec<_>> = &namings[last];
        let all = shorter.iter().flat_map(|it| (0..=last).map(move |place| insert(it, place)));
        let all = all.collect();
        namings.push(all);
    }
    namings
});

pub(crate) fn of(state: &State) -> u64 {
    let view = View { state, rounds: rounds(state) };
    let keys: Vec<u64> = state.nodes.iter().map(|node| nameless(node)).collect();
    // Replicas that differ in what has no names are sorted by that, which leaves few namings.
    let sorts = |names: &&Vec<ReplicaID>| {
        let mut sorted = vec![0; keys.len()];
        names.iter().zip(&keys).for_each(|(&name, key)| sorted[name] = *key);
        sorted.is_sorted()
    };
    let namings = NAMINGS[state.nodes.len()].iter().filter(sorts);
    namings.map(|names| view.hash_under(names)).min().unwrap_or_default()
}

/// A hash of what a replica is, without anything that names another.
fn nameless(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    let life = node.life.as_ref().map(|it| (it.status.role, it.status.commit, it.shuns));
    (node.disk.term, node.log.len(), life, node.restarted).hash(&mut hasher);
    hasher.finish()
}

/// All rounds of each leadership that are to be seen, in order.
fn rounds(state: &State) -> Vec<Vec<Round>> {
    let of = |id: ReplicaID| {
        let Some(status) = state.nodes[id].leads() else { return Vec::new() };
        let peers = status.peers.values().flat_map(|it| [it.since, it.heard]);
        let packets = state.network.iter().filter_map(|it| round(it));
        let own = |(leader, term, _): &(_, _, _)| (*leader, *term) == (id, status.term);
        let mut rounds: Vec<_> = peers.chain(packets.filter(own).map(|it| it.2)).collect();
        rounds.sort_unstable();
        rounds.dedup();
        rounds
    };
    (0..state.nodes.len()).map(of).collect()
}

/// The leadership to which a message belongs, and its round.
fn round(packet: &Packet) -> Option<(ReplicaID, Term, Round)> {
    match &packet.message {
        Message::Protocol { term, body: Body::AppendEntries { round, .. }, .. } => {
            Some((packet.from, *term, *round))
        }
        Message::Protocol { term, body: Body::Appended { round, .. }, .. } => {
            Some((packet.to, *term, *round))
        }
        _ => None,
    }
}

struct View<'a> {
    state: &'a State,
    rounds: Vec<Vec<Round>>,
}

impl View<'_> {
    fn hash_under(&self, names: &[ReplicaID]) -> u64 {
        let (mut hasher, history) = (DefaultHasher::new(), &self.state.history);
        (self.state.left, history.broken).hash(&mut hasher);
        for (term, leader) in &history.leaders {
            (term, names[*leader]).hash(&mut hasher);
        }
        for (entry, term) in &history.committed {
            (named(entry, names), term).hash(&mut hasher);
        }
        let mut nodes: Vec<_> = names.iter().zip(&self.state.nodes).enumerate().collect();
        nodes.sort_unstable_by_key(|(_, (name, _))| **name);
        for (id, (_, node)) in nodes {
            self.hash_node(id, node, names, &mut hasher);
        }
        self.hash_network(names, &mut hasher);
        hasher.finish()
    }

    fn hash_node(&self, id: ReplicaID, node: &Node, names: &[ReplicaID], to: &mut impl Hasher) {
        (node.disk.term, node.disk.voted_for.map(|it| names[it]), node.restarted).hash(to);
        node.log.len().hash(to);
        node.log.iter().for_each(|entry| named(entry, names).hash(to));
        node.life.is_some().hash(to);
        let Some(Life { status, shuns, decisive, .. }) = &node.life else { return };
        (status.role, status.leader.map(|it| names[it]), status.commit, shuns).hash(to);
        let mut decisive: Vec<_> = decisive.iter().map(|it| names[*it]).collect();
        decisive.sort_unstable();
        decisive.hash(to);
        self.hash_peers(id, status, names, to);
    }

    fn hash_peers(
        &self, id: ReplicaID, status: &Status, names: &[ReplicaID], to: &mut impl Hasher,
    ) {
        let mut peers: Vec<_> = status.peers.iter().map(|(it, peer)| (names[*it], peer)).collect();
        peers.sort_unstable_by_key(|(name, _)| *name);
        for (name, peer) in peers {
            let [since, heard] = [peer.since, peer.heard].map(|it| self.place(id, status.term, it));
            let silent = status.now.saturating_sub(peer.since.max(peer.heard));
            let heartbeats = (silent + HEARTBEAT / 2).as_nanos() / HEARTBEAT.as_nanos();
            let activity = std::mem::discriminant(&peer.activity);
            (name, peer.matched, peer.next, activity, since, heard, heartbeats).hash(to);
        }
    }

    /// The place of a round among those of its leadership; 0 if that is over, for then nobody asks.
    fn place(&self, leader: ReplicaID, term: Term, round: Round) -> usize {
        let leads = self.state.nodes[leader].leads().is_some_and(|it| it.term == term);
        if leads { 1 + self.rounds[leader].partition_point(|it| *it < round) } else { 0 }
    }

    fn hash_network(&self, names: &[ReplicaID], to: &mut impl Hasher) {
        let network = &self.state.network;
        let earlier = |place: usize, packet: &Packet| {
            let same = |it: &&std::sync::Arc<Packet>| (it.from, it.to) == (packet.from, packet.to);
            network[..place].iter().filter(same).count()
        };
        let hash = |(place, packet): (usize, &std::sync::Arc<Packet>)| {
            let mut hasher = DefaultHasher::new();
            self.state.ordered.then(|| earlier(place, packet)).hash(&mut hasher);
            (names[packet.from], names[packet.to]).hash(&mut hasher);
            round(packet).map(|(id, term, it)| self.place(id, term, it)).hash(&mut hasher);
            hash_message(&packet.message, names, &mut hasher);
            hasher.finish()
        };
        let mut hashes: Vec<u64> = network.iter().enumerate().map(hash).collect();
        hashes.sort_unstable();
        hashes.hash(to);
    }
}

fn hash_message(message: &Message<Transition>, names: &[ReplicaID], to: &mut impl Hasher) {
    let Message::Protocol { term, body, .. } = message else {
        unreachable!("no user asks for anything here: {message:?}")
    };
    (term, std::mem::discriminant(body)).hash(to);
    match body {
        Body::RequestVote { pre, transfer, last } => (pre, transfer, last).hash(to),
        Body::Vote { pre, granted } => (pre, granted).hash(to),
        Body::AppendEntries { prev, runs, commit, .. } => {
            (prev, commit, runs.len()).hash(to);
            runs.iter().for_each(|run| hash_run(run, names, to));
        }
        Body::Appended { result, .. } => result.hash(to),
        other => unreachable!("no replica has a reason to send this here: {other:?}"),
    }
}

fn hash_run(run: &Run<Transition>, names: &[ReplicaID], to: &mut impl Hasher) {
    (run.first, run.transitions.len()).hash(to);
    for transition in run.transitions.iter() {
        named(&Entry { term: run.term, transition: *transition }, names).hash(to);
    }
}

fn named(entry: &Entry, names: &[ReplicaID]) -> Entry {
    let transition = match entry.transition {
        Transition::Noop(id) => Transition::Noop(names[id]),
        proposal => proposal,
    };
    Entry { transition, ..*entry }
}
