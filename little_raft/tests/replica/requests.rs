//! Requests about the cluster: they come in where messages come in, at any replica.

use crate::support::*;
use little_raft::{Body, Membership, Message, Status};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Asks until the outcome shows in every status: a request may be lost, and is refused while a
/// leader is new.
fn ask_until(
    group: &Group, at: impl Fn() -> usize, letter: Letter, seen: impl Fn(&Status) -> bool,
) {
    let mut asked_at: Option<Instant> = None;
    eventually("the outcome of a request", || {
        if group.nodes.iter().all(|node| node.status().as_ref().is_some_and(&seen)) {
            return true;
        }
        if asked_at.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
            group.node(at()).receive(letter.clone());
            asked_at = Some(Instant::now());
        }
        false
    });
}

#[test]
fn a_follower_forwards_requests_to_the_leader() {
    let net = Net::new(3);
    let (node, mut leader) =
        (Node::start(&net, 1, &[2, 3], NEVER, |replica| replica), Puppet::new(2, &net));
    node.hear(2, 4, append((0, 0), vec![], 0));
    node.until("a leader", || node.status().is_some_and(|it| it.leader == Some(2)));
    node.receive(Message::transfer_leadership(3));
    node.receive(Message::change_membership(vec![1, 2], vec![3]));
    let transfer = Body::TransferLeadership(3);
    let (voters, learners) = ([1, 2].into(), [3].into());
    let asked = Membership { voters, learners, ..Membership::default() };
    let change = Body::ChangeMembership(asked);
    node.until("both requests", || {
        leader.play();
        leader.bodies().any(|it| *it == transfer) && leader.bodies().any(|it| *it == change)
    });
}

#[test]
fn the_membership_changes_by_a_request_at_a_follower() {
    let group = Group::start_with_joining(3, 1, |_, replica| replica);
    let follower = || group.follower().id;
    let to = |voters: Vec<usize>, learners: Vec<usize>| {
        let letter = Message::change_membership(voters.clone(), learners.clone());
        let (voters, learners) = (BTreeSet::from_iter(voters), BTreeSet::from_iter(learners));
        ask_until(&group, follower, letter, move |status| {
            let it = &status.membership;
            it.voters == voters && it.learners == learners && it.outgoing.is_empty()
        });
    };
    group.write(1);
    to(vec![1, 2, 3], vec![4]);
    group.write(2);
    to(vec![1, 2, 3, 4], vec![]);
    group.write(3);
    group.agree(|written| written.contains(&3));
}

#[test]
fn leadership_is_handed_over_by_a_request_at_a_follower() {
    let group = Group::start(3, |_, replica| replica);
    group.write(1);
    for to_id in [1, 2, 3] {
        let letter = Message::transfer_leadership(to_id);
        let follower = || group.follower().id;
        ask_until(&group, follower, letter, |status| status.leader == Some(to_id));
        group.write(1 + to_id);
    }
    group.agree(|written| [1, 2, 3, 4].iter().all(|id| written.contains(id)));
}
