//! Transitions: what becomes of them, and who is told.

use crate::support::*;
use little_raft::TransitionAbandonedReason::*;
use little_raft::TransitionState::*;
use little_raft::{Body, LogId, Membership, Message, Role, Snapshot};
use little_raft_sim::MemoryStorage;
use std::time::Duration;

#[test]
fn a_transition_is_queued_and_then_applied() {
    let node = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica);
    node.until("leadership", || node.leads());
    node.write(7);
    node.until("the write", || node.book().written == [NOOP, 7]);
    node.settle();
    assert_eq!(node.book().states(7), [Queued, Committed, Applied]);
    check_events(&node.book().events);
}

#[test]
fn the_noop_is_registered_like_any_other_transition() {
    let node = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica);
    node.until("the no-op", || node.book().states(NOOP) == [Queued, Committed, Applied]);
    check_events(&node.book().events);
}

#[test]
fn a_follower_abandons_what_it_is_asked_as_not_leader() {
    let node = Node::start(&Net::new(3), 1, &[2, 3], NEVER, |replica| replica);
    node.write(7);
    node.until("an answer", || !node.book().states(7).is_empty());
    node.settle();
    assert_eq!(node.book().states(7), [Abandoned(NotLeader)]);
    assert!(node.book().written.is_empty());
}

#[test]
fn a_leader_that_hands_over_abandons_as_not_leader_until_it_gives_up() {
    let (node, mut puppet) = lead(|replica| replica);
    puppet.holds = 1;
    node.write(7);
    node.until("the queue", || node.book().states(7) == [Queued]);
    node.receive(Message::transfer_leadership(2));
    node.settle();
    node.write(8);
    node.until("a refusal", || node.book().states(8) == [Abandoned(NotLeader)]);
    // The puppet never catches up, and after an election timeout the leader gives up.
    let mut next = 9;
    node.until("transitions to be taken again", || {
        puppet.play();
        next += usize::from(!node.book().states(next).is_empty());
        node.write(next);
        node.book().states(next - 1).contains(&Queued)
    });
    puppet.holds = usize::MAX;
    node.until("the first write", || {
        puppet.play();
        node.book().states(7) == [Queued, Committed, Applied]
    });
}

/// A leader of term 1 whose write 7 is at index 2, where no other replica has it.
fn lead_with_an_uncommitted_write(configure: impl FnOnce(Shell) -> Shell) -> (Node, Puppet) {
    let (node, mut puppet) = lead(configure);
    puppet.holds = 1;
    node.write(7);
    node.until("the queue", || node.book().states(7) == [Queued]);
    puppet.play();
    (node, puppet)
}

#[test]
fn what_another_leader_overwrites_is_abandoned_as_conflict_with_leader() {
    let (node, _puppet) = lead_with_an_uncommitted_write(|replica| replica);
    node.hear(2, 9, append((1, 1), vec![run(2, 9, &[8])], 2));
    node.until("the other write", || node.book().written == [NOOP, 8]);
    node.settle();
    assert_eq!(node.book().states(7), [Queued, Abandoned(ConflictWithLeader)]);
    assert_eq!(node.book().states(8), [Committed, Applied]);
    check_events(&node.book().events);
}

#[test]
fn a_lost_leadership_alone_ends_no_transition() {
    let (node, _puppet) = lead_with_an_uncommitted_write(|replica| replica);
    // The new leader has not committed anything in its place: it may still come back.
    node.hear(2, 9, append((1, 1), vec![run(2, 9, &[8])], 1));
    node.until("another leader", || node.status().is_some_and(|it| it.leader == Some(2)));
    node.settle();
    assert_eq!(node.book().states(7), [Queued]);
    // It does, by way of a leader that has it.
    node.hear(3, 10, append((1, 1), vec![run(2, 1, &[7]), run(3, 10, &[NOOP])], 3));
    node.until("the write", || node.book().written == [NOOP, 7, NOOP]);
    assert_eq!(node.book().states(7), [Queued, Committed, Applied]);
}

#[test]
fn what_a_snapshot_covers_is_abandoned_as_outcome_unknown() {
    let (node, _puppet) = lead_with_an_uncommitted_write(|replica| replica);
    let snapshot =
        Snapshot { last_included_index: 9, last_included_term: 9, data: vec![NOOP, 8, 9] };
    let membership = Membership { voters: [1, 2, 3].into(), ..Membership::default() };
    let round = Duration::ZERO;
    node.hear(2, 9, Body::InstallSnapshot { snapshot, membership: membership.into(), round });
    node.until("the snapshot", || node.book().written == [NOOP, 8, 9]);
    node.settle();
    assert_eq!(node.book().states(7), [Queued, Abandoned(OutcomeUnknown)]);
    assert!(node.book().events.contains(&Event::Restore(vec![NOOP, 8, 9])));
}

#[test]
fn what_the_next_leader_commits_is_applied_and_never_abandoned_afterwards() {
    // By compaction, by a snapshot that covers it again, and by neither.
    for (snapshot_delta, install) in [(1, false), (0, true), (0, false)] {
        let (node, _puppet) =
            lead_with_an_uncommitted_write(|replica| replica.with_snapshots(snapshot_delta));
        node.hear(2, 9, append((1, 2), vec![run(3, 9, &[NOOP])], 3));
        node.until("the write", || node.book().written == [NOOP, 7, NOOP]);
        node.hear(2, 9, append((9, 3), vec![run(4, 9, &[8])], 4));
        node.until("the next write", || node.book().written == [NOOP, 7, NOOP, 8]);
        if install {
            let data = vec![NOOP, 7, NOOP, 8, 9];
            let snapshot = Snapshot { last_included_index: 5, last_included_term: 9, data };
            let membership = Membership { voters: [1, 2, 3].into(), ..Membership::default() };
            let round = Duration::ZERO;
            node.hear(
                2,
                9,
                Body::InstallSnapshot { snapshot, membership: membership.into(), round },
            );
            node.until("the snapshot", || node.book().written.len() == 5);
        }
        node.settle();
        let case = format!("snapshot_delta {snapshot_delta}, another snapshot: {install}");
        assert_eq!(node.book().states(7), [Queued, Committed, Applied], "{case}");
    }
}

#[test]
fn what_was_applied_is_not_abandoned_by_a_snapshot_that_comes_right_after() {
    let (node, _puppet) = lead_with_an_uncommitted_write(|replica| replica);
    node.hear(2, 9, append((1, 2), vec![run(3, 9, &[NOOP])], 3));
    node.until("the write", || node.book().written == [NOOP, 7, NOOP]);
    let data = vec![NOOP, 7, NOOP, 8];
    let snapshot = Snapshot { last_included_index: 4, last_included_term: 9, data };
    let membership = Membership { voters: [1, 2, 3].into(), ..Membership::default() };
    node.hear(
        2,
        9,
        Body::InstallSnapshot { snapshot, membership: membership.into(), round: Duration::ZERO },
    );
    node.until("the snapshot", || node.book().written.len() == 4);
    node.settle();
    assert_eq!(node.book().states(7), [Queued, Committed, Applied]);
}

#[test]
fn every_replica_registers_every_transition_in_log_order() {
    let group = Group::start(3, |_, replica| replica);
    (1..=30).for_each(|id| group.write(id));
    let written = group.agree(|written| written.contains(&30));
    let order: Vec<_> = written.iter().copied().filter(|id| *id != NOOP).collect();
    assert_eq!(order, (1..=30).collect::<Vec<_>>());
    for node in &group.nodes {
        let book = node.book();
        check_events(&book.events);
        let applied = book.events.iter().filter_map(|event| match event {
            Event::State(id, Applied) => Some(*id),
            _ => None,
        });
        assert_eq!(applied.collect::<Vec<_>>(), written, "replica {}", node.id);
    }
}

#[test]
fn each_leadership_begins_with_one_noop() {
    let storage = MemoryStorage::default();
    let mut expected = Vec::new();
    for life in 1..=3 {
        let keep = storage.clone();
        let mut node =
            Node::start(&Net::new(1), 1, &[], SOON, |replica| replica.with_storage(keep));
        node.until("leadership", || node.leads());
        node.write(life);
        expected.extend([NOOP, life]);
        node.until("the write", || node.book().written == expected);
        assert_eq!(node.status().map(|it| (it.role, it.term)), Some((Role::Leader, life)));
        node.halt().unwrap();
    }
}

#[test]
fn where_it_was_proposed_a_transition_ends_once_in_spite_of_changing_leaders() {
    let group = Group::start(3, |_, replica| replica.with_snapshots(5));
    for id in 1..=60 {
        if id % 20 == 0 {
            let to_id = group.follower().id;
            group.leader().receive(Message::transfer_leadership(to_id));
        }
        // At a different replica each time, and so often in vain.
        group.node(1 + id % 3).write(id);
    }
    group.write(61);
    group.agree(|written| written.contains(&61));
    for id in 1..=60 {
        let book = group.node(1 + id % 3).book();
        let states = book.states(id);
        let ends = states.iter().filter(|it| matches!(it, Applied | Abandoned(_))).count();
        // A write may be covered by a snapshot that this replica installed; that too is an end.
        assert_eq!(ends, 1, "{id} ends once: {states:?}");
        assert_eq!(states.contains(&Applied), states.contains(&Committed), "{id}: {states:?}");
        let refused = states.contains(&Abandoned(NotLeader));
        assert_eq!(refused, !states.contains(&Queued), "{id}: {states:?}");
        let lost = refused || states.contains(&Abandoned(ConflictWithLeader));
        assert!(!lost || !book.written.contains(&id), "{id} is abandoned, and written");
    }
}

#[test]
fn snapshots_are_taken_right_after_what_they_cover() {
    let node = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica.with_snapshots(2));
    node.until("leadership", || node.leads());
    for id in 1..=5 {
        node.write(id);
        node.until("the write", || node.book().written.contains(&id));
    }
    node.settle();
    let book = node.book();
    let mut applied = 0;
    for event in &book.events {
        match event {
            Event::Apply(_) => applied += 1,
            Event::Create(last) => assert_eq!(*last, LogId { term: 1, index: applied }),
            _ => {}
        }
    }
    let snapshots = book.events.iter().filter(|event| matches!(event, Event::Create(_))).count();
    assert_eq!((applied, snapshots), (6, 3));
}
