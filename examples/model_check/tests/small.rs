//! Exhausts small bounds on every network, and shows that what judges them can fail.

use little_raft::Role;
use model_check::laws::{committed_is_durable, leaders_are_complete, logs_match};
use model_check::{Action, Bounds, Content, ModelChecked, Network, State, Transition};
use stateright::{Checker, Model};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const SMALL: Bounds = Bounds {
    servers: 3,
    network: Network::Lossy,
    timeouts: 1,
    heartbeats: 0,
    drops: 0,
    duplicates: 0,
    crashes: 0,
    proposals: 0,
    transfers: 0,
    snapshot_delta: 0,
    change_to: Vec::new(),
};

fn exhaust(bounds: Bounds) -> usize {
    let checker = ModelChecked::new(bounds).checker().threads(2).spawn_dfs().join();
    assert!(checker.is_done());
    checker.assert_properties();
    checker.unique_state_count()
}

#[test]
fn a_crash_and_recovery() {
    assert!(exhaust(Bounds { crashes: 1, ..SMALL }) > 1_000);
}

#[test]
fn a_loss() {
    assert!(exhaust(Bounds { drops: 1, ..SMALL }) > 500);
}

#[test]
fn a_crash_on_an_ordered_network() {
    let network = Network::Ordered;
    assert!(exhaust(Bounds { network, crashes: 1, proposals: 1, ..SMALL }) > 2_000);
}

#[test]
fn a_duplicate() {
    let network = Network::Duplicating;
    assert!(exhaust(Bounds { network, duplicates: 1, ..SMALL }) > 2_000);
}

#[test]
fn two_rivals_of_two() {
    assert!(
        exhaust(Bounds { servers: 2, timeouts: 2, crashes: 1, proposals: 1, ..SMALL }) > 10_000
    );
}

#[test]
fn a_transfer_with_a_crash() {
    let network = Network::Ordered;
    assert!(exhaust(Bounds { network, transfers: 1, crashes: 1, ..SMALL }) > 1_000);
}

#[test]
fn a_snapshot_after_a_loss_or_a_crash() {
    let bounds = Bounds { network: Network::Ordered, snapshot_delta: 1, proposals: 1, ..SMALL };
    assert!(exhaust(Bounds { drops: 1, ..bounds.clone() }) > 500);
    assert!(exhaust(Bounds { crashes: 1, ..bounds }) > 2_000);
}

#[test]
fn a_change_of_the_configuration() {
    let bounds = Bounds { network: Network::Ordered, heartbeats: 1, ..SMALL };
    assert!(exhaust(Bounds { change_to: vec![0, 1], ..bounds.clone() }) > 1_000);
    assert!(exhaust(Bounds { change_to: vec![0, 1, 3], ..bounds }) > 5_000);
}

/// States with the same fingerprint must lead to states with the same fingerprints, and be judged
/// alike: otherwise the checker would take two states for one, and never see what only the second
/// leads to. Which states are looked at is drawn by chance. `MODEL_CHECK_STATES` says how many times
/// as many.
fn fingerprints_tell_all(bounds: Bounds, limit: usize) {
    let times = std::env::var("MODEL_CHECK_STATES").ok().and_then(|it| it.parse().ok());
    let (limit, model) = (limit * times.unwrap_or(1), ModelChecked::new(bounds));
    let (properties, mut random) = (model.properties(), Xorshift(2026));
    let mut known: HashMap<u64, (BTreeSet<u64>, Vec<bool>)> = HashMap::new();
    let (mut pending, mut met_again) = (model.init_states(), 0);
    while !pending.is_empty() && known.len() < limit {
        // The last keeps close to one path, any other leads far away from it.
        let place =
            if random.below(8) > 0 { pending.len() - 1 } else { random.below(pending.len()) };
        let state = pending.swap_remove(place);
        let successors = model.next_states(&state);
        let leads_to = successors.iter().map(State::fingerprint).collect();
        let judged = properties.iter().map(|it| (it.condition)(&model, &state)).collect();
        match known.entry(state.fingerprint()) {
            Entry::Occupied(before) => {
                assert_eq!(*before.get(), (leads_to, judged), "not told from another: {state:#?}");
                met_again += 1;
            }
            Entry::Vacant(new) => {
                new.insert((leads_to, judged));
                pending.extend(successors);
            }
        }
    }
    assert!(met_again > known.len() / 8, "{met_again} of {}", known.len());
}

/// Numbers that look like chance, the same in each run.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % limit
    }
}

#[test]
fn fingerprints_tell_all_about_crashes() {
    fingerprints_tell_all(Bounds { crashes: 1, proposals: 1, ..SMALL }, 3_000);
}

#[test]
fn fingerprints_tell_all_about_heartbeats() {
    fingerprints_tell_all(Bounds { timeouts: 4, proposals: 1, drops: 1, ..SMALL }, 3_000);
}

#[test]
fn fingerprints_tell_all_about_order() {
    let network = Network::Ordered;
    fingerprints_tell_all(Bounds { network, timeouts: 3, drops: 1, crashes: 1, ..SMALL }, 3_000);
}

#[test]
fn fingerprints_tell_all_about_votes_among_five() {
    fingerprints_tell_all(Bounds { servers: 5, timeouts: 2, ..SMALL }, 600);
}

#[test]
fn fingerprints_tell_all_about_snapshots() {
    let bounds = Bounds { timeouts: 1, heartbeats: 4, proposals: 3, drops: 2, ..SMALL };
    fingerprints_tell_all(Bounds { snapshot_delta: 1, crashes: 1, ..bounds }, 3_000);
}

#[test]
fn fingerprints_tell_all_about_transfers() {
    let bounds = Bounds { timeouts: 2, heartbeats: 3, proposals: 1, drops: 2, ..SMALL };
    fingerprints_tell_all(Bounds { transfers: 2, crashes: 1, ..bounds }, 3_000);
}

#[test]
fn fingerprints_tell_all_about_changes() {
    let bounds = Bounds { timeouts: 2, heartbeats: 3, proposals: 1, drops: 1, ..SMALL };
    fingerprints_tell_all(Bounds { change_to: vec![1, 2, 3], crashes: 1, ..bounds }, 3_000);
}

#[test]
fn fingerprints_tell_all_about_everything() {
    let bounds = Bounds { timeouts: 2, heartbeats: 3, proposals: 2, drops: 1, ..SMALL };
    let bounds = Bounds { transfers: 1, snapshot_delta: 1, crashes: 2, ..bounds };
    let change_to = vec![0, 1];
    fingerprints_tell_all(Bounds { network: Network::Ordered, change_to, ..bounds }, 3_000);
}

/// One replica leads, and all hold and know its first entry.
fn settled() -> State {
    let model = ModelChecked::new(SMALL);
    let mut state = model.init_states().remove(0);
    let timeout = Action::Timeout(0, None);
    state = model.next_state(&state, timeout).unwrap();
    while let Some(packet) = state.network.first().cloned() {
        state = model.next_state(&state, Action::Deliver(packet, None)).unwrap();
    }
    assert_eq!(state.history.committed.len(), 1);
    assert!(logs_match(&state) && leaders_are_complete(&state) && committed_is_durable(&state));
    state
}

#[test]
fn a_forgotten_entry_breaks_leader_completeness() {
    let mut state = settled();
    Arc::make_mut(&mut state.history).committed[0].1 = 0;
    assert!(leaders_are_complete(&state));
    Arc::make_mut(&mut state.nodes[0]).log.clear();
    assert!(!leaders_are_complete(&state));
}

#[test]
fn two_forgotten_entries_break_durability() {
    let mut state = settled();
    Arc::make_mut(&mut state.nodes[1]).log.clear();
    assert!(committed_is_durable(&state));
    Arc::make_mut(&mut state.nodes[2]).log.clear();
    assert!(!committed_is_durable(&state));
}

#[test]
fn another_entry_in_the_same_place_breaks_log_matching() {
    let mut state = settled();
    let other =
        model_check::Entry { term: 1, content: Content::Transition(Transition::Proposal(1)) };
    Arc::make_mut(&mut state.nodes[1]).log[0] = other;
    assert!(!logs_match(&state));
}

/// The fingerprints after a timeout of each of three replicas.
fn after_timeouts(bounds: Bounds) -> Vec<u64> {
    let model = ModelChecked::new(bounds);
    let initial = model.init_states().remove(0);
    let after = |id| model.next_state(&initial, Action::Timeout(id, None)).unwrap();
    (0..3).map(|id| after(id).fingerprint()).collect()
}

#[test]
fn names_do_not_matter_but_for_the_part_in_a_change() {
    let alike = after_timeouts(SMALL);
    assert!(alike[0] == alike[1] && alike[1] == alike[2]);
    let parts = after_timeouts(Bounds { change_to: vec![0, 2], ..SMALL });
    assert!(parts[0] == parts[2] && parts[0] != parts[1]);
}

/// A vote that a candidate among five has got is not one that was lost, even if it needs another.
#[test]
fn votes_are_told() {
    let model = ModelChecked::new(Bounds { servers: 5, drops: 1, ..SMALL });
    let initial = model.init_states().remove(0);
    let mut state = model.next_state(&initial, Action::Timeout(0, None)).unwrap();
    for role in [Role::PreCandidate, Role::Candidate] {
        // The first vote for this role does not decide.
        while state.network.last().unwrap().to != 0 || role_of_first(&state) != role {
            let packet = state.network.last().cloned().unwrap();
            state = model.next_state(&state, Action::Deliver(packet, None)).unwrap();
        }
        let packet = state.network.last().cloned().unwrap();
        let told = model.next_state(&state, Action::Deliver(packet.clone(), None)).unwrap();
        let mut lost = model.next_state(&state, Action::Drop(packet.clone())).unwrap();
        lost.left = told.left;
        assert_eq!(role_of_first(&told), role);
        assert_ne!(told.fingerprint(), lost.fingerprint(), "{packet:?} in {state:#?}");
        state = told;
    }
}

fn role_of_first(state: &State) -> Role {
    state.nodes[0].life.as_ref().unwrap().status.role
}
