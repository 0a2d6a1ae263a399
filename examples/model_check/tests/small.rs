//! Exhausts small bounds on every network, and shows that what judges them can fail.

use model_check::laws::{committed_is_durable, leaders_are_complete, logs_match};
use model_check::{Action, Bounds, Entry, ModelChecked, Network, State, Transition};
use stateright::{Checker, Model};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const SMALL: Bounds = Bounds {
    servers: 3,
    network: Network::Lossy,
    timeouts: 1,
    drops: 0,
    duplicates: 0,
    crashes: 0,
    proposals: 0,
};

fn exhaust(bounds: Bounds) -> usize {
    let checker = ModelChecked { bounds }.checker().threads(2).spawn_dfs().join();
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

/// States with the same fingerprint must lead to states with the same fingerprints: otherwise the
/// checker would take two states for one, and never see what only the second leads to.
fn fingerprints_tell_all(bounds: Bounds, limit: usize) {
    let model = ModelChecked { bounds };
    let mut known: HashMap<u64, BTreeSet<u64>> = HashMap::new();
    let (mut pending, mut met_again) = (model.init_states(), 0);
    while let Some(state) = pending.pop().filter(|_| known.len() < limit) {
        let successors = model.next_states(&state);
        let leads_to = successors.iter().map(State::fingerprint).collect();
        match known.get(&state.fingerprint()) {
            Some(before) => {
                assert_eq!(*before, leads_to, "not told from another: {state:#?}");
                met_again += 1;
            }
            None => {
                known.insert(state.fingerprint(), leads_to);
                pending.extend(successors);
            }
        }
    }
    assert!(met_again > known.len(), "{met_again} of {}", known.len());
}

#[test]
fn fingerprints_tell_all_about_crashes() {
    fingerprints_tell_all(Bounds { crashes: 1, proposals: 1, ..SMALL }, 1_500);
}

#[test]
fn fingerprints_tell_all_about_heartbeats() {
    fingerprints_tell_all(Bounds { timeouts: 4, proposals: 1, ..SMALL }, 1_500);
}

#[test]
fn fingerprints_tell_all_about_order() {
    let network = Network::Ordered;
    fingerprints_tell_all(Bounds { network, timeouts: 3, drops: 1, crashes: 1, ..SMALL }, 1_500);
}

#[test]
fn fingerprints_tell_all_about_votes_among_five() {
    fingerprints_tell_all(Bounds { servers: 5, timeouts: 2, ..SMALL }, 200);
}

/// One replica leads, and all hold and know its first entry.
fn settled() -> State {
    let model = ModelChecked { bounds: SMALL };
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
    let other = Entry { term: 1, transition: Transition::Proposal(1) };
    Arc::make_mut(&mut state.nodes[1]).log[0] = other;
    assert!(!logs_match(&state));
}

#[test]
fn names_do_not_matter_and_logs_do() {
    let model = ModelChecked { bounds: SMALL };
    let initial = model.init_states().remove(0);
    let after = |id| model.next_state(&initial, Action::Timeout(id, None)).unwrap();
    assert_eq!(after(0).fingerprint(), after(2).fingerprint());
    let (one, mut other) = (settled(), settled());
    Arc::make_mut(&mut other.nodes[1]).log.clear();
    assert_ne!(one.fingerprint(), other.fingerprint());
}
