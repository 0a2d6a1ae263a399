//! `register_status` and `register_leader`: when, and what.

use crate::support::*;
use little_raft::{Message, Role, Status};

/// What a status says that must be told at once.
fn news(status: &Status) -> (usize, Role, Option<usize>, usize) {
    (status.term, status.role, status.leader, status.membership.members().len())
}

#[test]
fn status_is_told_once_per_heartbeat_although_nothing_happens() {
    let node = Node::start(&Net::new(3), 1, &[2, 3], NEVER, |replica| replica);
    node.until("twenty statuses", || node.wire().statuses.len() >= 20);
    let wire = node.wire();
    for pair in wire.statuses.windows(2) {
        let apart = pair[1].now - pair[0].now;
        assert!(apart >= HEARTBEAT, "told again after {apart:?} without news");
    }
    // Neither does it take many turns to say so.
    let (turns, statuses) = (node.turns(), wire.statuses.len());
    assert!(turns <= 4 * statuses + 10, "{turns} turns for {statuses} statuses");
}

#[test]
fn status_is_told_on_every_change_of_role_term_and_leader() {
    let net = Net::new(3);
    let (node, mut puppet) =
        (Node::start(&net, 1, &[2, 3], SOON, |replica| replica), Puppet::new(2, &net));
    let told = |term, role, leader| {
        move |status: &Status| (status.term, status.role, status.leader) == (term, role, leader)
    };
    node.until("a pre-candidate", || {
        node.wire().statuses.iter().any(told(0, Role::PreCandidate, None))
    });
    node.until("a leader", || {
        puppet.play();
        node.leads()
    });
    let term = node.status().unwrap().term;
    node.hear(3, term + 5, append((0, 0), vec![], 0));
    let follows = told(term + 5, Role::Follower, Some(3));
    node.until("a follower of 3", || node.status().is_some_and(|it| follows(&it)));
    let wire = node.wire();
    let candidate = told(term, Role::Candidate, None);
    assert!(wire.statuses.iter().any(candidate), "it was a candidate for a while");
    for pair in wire.statuses.windows(2) {
        let (apart, is_news) = (pair[1].now - pair[0].now, news(&pair[0]) != news(&pair[1]));
        assert!(is_news || apart >= HEARTBEAT, "told again after {apart:?} without news");
    }
}

#[test]
fn leaders_are_registered_when_they_change_and_only_then() {
    let net = Net::new(3);
    let node = Node::start(&net, 1, &[2, 3], NEVER, |replica| replica);
    for (leader, term) in [(2, 3), (2, 3), (3, 4), (3, 4), (3, 7)] {
        node.hear(leader, term, append((0, 0), vec![], 0));
        node.until("the leader", || {
            node.status().is_some_and(|it| (it.leader, it.term) == (Some(leader), term))
        });
    }
    let mut leaders = node.wire().leaders.clone();
    leaders.retain(Option::is_some);
    assert_eq!(leaders, [Some(2), Some(3)]);
}

#[test]
fn losing_sight_of_the_leader_is_registered() {
    let net = Net::new(3);
    let node = Node::start(&net, 1, &[2, 3], SOON, |replica| replica);
    node.hear(2, 3, append((0, 0), vec![], 0));
    node.until("the leader to come and go", || {
        matches!(node.wire().leaders[..], [Some(2), None, ..])
    });
}

#[test]
fn a_change_of_the_configuration_is_told_at_once() {
    let (node, mut puppet) = lead(|replica| replica);
    node.receive(Message::change_membership(vec![1, 2], vec![]));
    node.until("the new configuration", || {
        puppet.play();
        node.status()
            .is_some_and(|it| it.membership.voters.len() == 2 && it.membership.outgoing.is_empty())
    });
    let wire = node.wire();
    assert!(
        wire.statuses.iter().any(|it| !it.membership.outgoing.is_empty()),
        "told while it was joint"
    );
    for pair in wire.statuses.windows(2) {
        let same = news(&pair[0]) == news(&pair[1]) && pair[0].membership == pair[1].membership;
        assert!(!same || pair[1].now - pair[0].now >= HEARTBEAT);
    }
}

#[test]
fn a_leaders_status_says_how_far_each_peer_is_and_when_it_was_heard() {
    let (node, mut puppet) = lead(|replica| replica);
    node.write(7);
    node.until("the status after a write", || {
        puppet.play();
        node.status().is_some_and(|it| (it.commit, it.applied, it.last_index) == (2, 2, 2))
    });
    let status = node.status().unwrap();
    assert_eq!((status.id, status.leader, status.first_index), (1, Some(1), 1));
    let (heard, silent) = (&status.peers[&2], &status.peers[&3]);
    assert_eq!((heard.matched, heard.next), (2, 3));
    assert_eq!((heard.probing, heard.installing), (false, None));
    assert_eq!(silent.matched, 0);
    assert!(silent.heard < heard.heard && heard.heard <= status.now);
}

#[test]
fn a_snapshot_is_no_news() {
    let node = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica.with_snapshots(1));
    node.until("leadership", || node.leads());
    for id in 1..=50 {
        node.write(id);
        node.until("the write", || node.book().written.contains(&id));
    }
    let wire = node.wire();
    for pair in wire.statuses.windows(2) {
        let (apart, is_news) = (pair[1].now - pair[0].now, news(&pair[0]) != news(&pair[1]));
        assert!(is_news || apart >= HEARTBEAT, "told again after {apart:?} without news");
    }
}
