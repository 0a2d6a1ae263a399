//! Linearizable reads.

use crate::support::*;
use little_raft::{Body, ReadState, ReadState::*};
use std::time::Duration;

#[test]
fn a_leader_answers_after_a_quorum_has_confirmed_it_and_not_before() {
    let (node, mut puppet) = lead(|replica| replica);
    // Everything that was underway has been answered: what the puppet gets next was sent later.
    puppet.play();
    node.settle();
    puppet.play();
    node.settle();
    node.net.collect(2);
    node.ask(1);
    node.until("the question to be polled", || node.book().questions.is_empty());
    node.settle();
    assert_eq!(node.book().answers(1), []);
    node.until("the answer", || {
        puppet.play();
        !node.book().answers(1).is_empty()
    });
    node.settle();
    assert_eq!(node.book().answers(1), [(Ready, 1)]);
}

#[test]
fn a_follower_forwards_the_question_and_answers_from_its_own_state_once_that_is_fresh() {
    let net = Net::new(3);
    let (node, mut leader) =
        (Node::start(&net, 1, &[2, 3], NEVER, |replica| replica), Puppet::new(2, &net));
    node.hear(2, 4, append((0, 0), vec![run(1, 4, &[NOOP, 7])], 1));
    node.until("the first entry", || node.book().written == [NOOP]);
    node.ask(1);
    let mut context = None;
    node.until("the question at the leader", || {
        leader.play();
        context = leader.bodies().find_map(|body| match body {
            Body::ReadIndex { context } => Some(*context),
            _ => None,
        });
        context.is_some()
    });
    node.hear(2, 4, Body::ReadIndexResponse { context: context.unwrap(), index: 2 });
    node.settle();
    assert_eq!(node.book().answers(1), [], "index 2 is not committed here yet");
    node.hear(2, 4, append((4, 2), vec![], 2));
    node.until("the answer", || !node.book().answers(1).is_empty());
    assert_eq!(node.book().answers(1), [(Ready, 2)]);
}

#[test]
fn without_a_leader_a_read_is_abandoned() {
    let node = Node::start(&Net::new(3), 1, &[2, 3], SOON, |replica| replica);
    node.ask(1);
    node.until("the answer", || !node.book().answers(1).is_empty());
    node.settle();
    assert_eq!(node.book().answers(1), [(Abandoned, 0)]);
}

#[test]
fn a_read_that_the_leader_does_not_confirm_is_abandoned() {
    let net = Net::new(3);
    let node = Node::start(&net, 1, &[2, 3], SOON, |replica| replica);
    node.hear(2, 4, append((0, 0), vec![], 0));
    node.until("a leader", || node.status().is_some_and(|it| it.leader == Some(2)));
    node.ask(1);
    node.until("the answer", || !node.book().answers(1).is_empty());
    assert_eq!(node.book().answers(1), [(Abandoned, 0)]);

    let (node, mut puppet) = lead(|replica| replica);
    node.settle();
    puppet.play();
    node.ask(2);
    node.until("a leader without a quorum to abandon", || !node.book().answers(2).is_empty());
    assert_eq!(node.book().answers(2), [(Abandoned, 1)]);
}

/// Whatever was acknowledged before a read was asked, the state that answers it has.
fn reads_are_fresh_everywhere(configure: fn(usize, Shell) -> Shell) {
    let group = Group::start(3, configure);
    let mut answered = 0;
    for id in 1..=20 {
        group.write(id);
        let acknowledged = group.leader().book().written.len().min(id);
        group.nodes.iter().for_each(|node| node.ask(id));
        for node in &group.nodes {
            node.until("the answer", || !node.book().answers(id).is_empty());
            let book = node.book();
            let [(state, written)] = book.answers(id)[..] else { panic!("answered twice") };
            if state == ReadState::Ready {
                answered += 1;
                assert!(written >= acknowledged && book.written[..written].contains(&id));
            }
        }
    }
    assert!(answered > 0, "no read was answered");
}

#[test]
fn reads_are_fresh_at_the_leader_and_at_followers() {
    reads_are_fresh_everywhere(|_, replica| replica);
}

#[test]
fn lease_reads_are_fresh_at_the_leader_and_at_followers() {
    reads_are_fresh_everywhere(|_, replica| replica.with_lease_reads(Duration::from_millis(50)));
}

#[test]
fn a_leader_that_was_cut_off_answers_no_read_although_it_believes_to_lead() {
    let group = Group::start(3, |_, replica| replica);
    group.write(1);
    let old = group.leader().id;
    let others: Vec<_> = (1..=3).filter(|id| *id != old).collect();
    for other in &others {
        group.net.weather().cut.extend([(old, *other), (*other, old)]);
    }
    // It may still lead, or know already that it does not; in no case may it say "ready".
    for id in 100..110 {
        group.node(old).ask(id);
    }
    eventually("another leader", || others.iter().any(|id| group.node(*id).leads()));
    group.node(old).until("all answers", || {
        (100..110).all(|id| !group.node(old).book().answers(id).is_empty())
    });
    for id in 100..110 {
        let answers = group.node(old).book().answers(id);
        assert!(matches!(answers[..], [(Abandoned, _)]), "{answers:?}");
    }
}
