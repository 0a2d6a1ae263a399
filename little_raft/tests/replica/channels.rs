//! The two channels: what comes through them are tokens that wake, not counts.

use crate::support::*;
use crossbeam_channel::{bounded, unbounded};
use little_raft::{Body, Message};
use std::sync::{Arc, Mutex, atomic::Ordering::SeqCst};
use std::thread;
use std::time::Instant;

#[test]
fn one_token_is_enough_for_any_number_of_transitions() {
    let node = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica);
    node.until("leadership", || node.leads());
    node.book().pending.extend((1..=1000).map(Write));
    node.ring();
    node.until("all writes", || node.book().written.len() == 1001);
    assert_eq!(node.book().polls, 1);
}

#[test]
fn one_token_is_enough_for_any_number_of_messages() {
    let node = Node::start(&Net::new(3), 1, &[2, 3], NEVER, |replica| replica);
    // The network's channels have room for one token, and are filled with `try_send`.
    for id in 1..=1000 {
        node.hear(2, 1, append((usize::from(id > 1), id - 1), vec![run(id, 1, &[id])], id));
    }
    node.until("all writes", || node.book().written == (1..=1000).collect::<Vec<_>>());
}

#[test]
fn a_thousand_tokens_do_not_cost_a_thousand_turns() {
    let (net, began) = (Net::new(3), Instant::now());
    let (wire, book) = (Wire::new(1, &net), Book::default());
    let shared = wire.shared.clone();
    let (wire, book) = (Arc::new(Mutex::new(wire)), Arc::new(Mutex::new(book)));
    let (messages, recv_msg) = unbounded();
    let (transitions, recv_transition) = unbounded();
    for _ in 0..1000 {
        messages.send(()).unwrap();
        transitions.send(()).unwrap();
    }
    let mut replica = shell(1, &[2, 3], &wire, &book, NEVER);
    let thread = thread::spawn(move || replica.start(recv_msg, recv_transition));
    eventually("all tokens to be taken", || {
        let taken = messages.is_empty() && transitions.is_empty();
        taken && book.lock().unwrap().polls > 0
    });
    let turns = shared.turns.load(SeqCst);
    shared.halt.store(true, SeqCst);
    thread.join().unwrap().unwrap();
    let heartbeats = began.elapsed().as_millis() / HEARTBEAT.as_millis();
    assert!(turns as u128 <= 5 + 3 * heartbeats, "{turns} turns in {heartbeats} heartbeats");
    assert!(book.lock().unwrap().polls <= 2 && wire.lock().unwrap().receives <= 2);
}

#[test]
fn nothing_is_polled_without_a_token() {
    let node = Node::start(&Net::new(3), 1, &[2, 3], NEVER, |replica| replica);
    node.until("twenty heartbeats", || node.wire().statuses.len() > 20);
    assert_eq!((node.book().polls, node.wire().receives), (0, 0));
    node.write(7);
    node.until("the poll", || node.book().polls == 1);
    assert_eq!(node.wire().receives, 0);
}

/// Runs a cluster of one whose channels lose their other end as asked, for twenty heartbeats.
fn run_disconnected(keep_messages: bool, keep_transitions: bool) {
    let net = Net::new(1);
    let (wire, book) = (Wire::new(1, &net), Book::default());
    let shared = wire.shared.clone();
    let (wire, book) = (Arc::new(Mutex::new(wire)), Arc::new(Mutex::new(book)));
    let (messages, recv_msg) = bounded(1);
    let (transitions, recv_transition) = bounded(1);
    let messages = Some(messages).filter(|_| keep_messages);
    let transitions = Some(transitions).filter(|_| keep_transitions);
    let mut replica = shell(1, &[], &wire, &book, SOON);
    let thread = thread::spawn(move || replica.start(recv_msg, recv_transition));
    eventually("a leader for twenty heartbeats", || wire.lock().unwrap().statuses.len() > 20);
    let (turns, statuses) = (shared.turns.load(SeqCst), wire.lock().unwrap().statuses.len());
    assert!(turns <= 4 * statuses + 10, "{turns} turns for {statuses} statuses: it spins");
    assert_eq!(book.lock().unwrap().written, [NOOP], "it runs on by its timer");
    if let Some(transitions) = &transitions {
        book.lock().unwrap().pending.push(Write(7));
        transitions.try_send(()).unwrap();
        eventually("a write", || book.lock().unwrap().written == [NOOP, 7]);
    }
    if let Some(messages) = &messages {
        let last = little_raft::LogId::default();
        let body = Body::RequestVote { pre: true, transfer: false, last };
        net.deliver(1, Message { from_id: 1, term: 1, body });
        messages.try_send(()).unwrap();
        eventually("a message", || wire.lock().unwrap().receives == 1);
    }
    shared.halt.store(true, SeqCst);
    thread.join().unwrap().unwrap();
    drop((messages, transitions));
}

#[test]
fn a_disconnected_channel_wakes_nobody_and_the_replica_runs_on() {
    for (keep_messages, keep_transitions) in [(false, false), (true, false), (false, true)] {
        run_disconnected(keep_messages, keep_transitions);
    }
}

#[test]
fn tokens_that_were_sent_before_a_channel_was_disconnected_still_count() {
    let net = Net::new(1);
    let book = Book { pending: vec![Write(7)], ..Book::default() };
    let (wire, book) = (Wire::new(1, &net), Arc::new(Mutex::new(book)));
    let (shared, wire) = (wire.shared.clone(), Arc::new(Mutex::new(wire)));
    let (transitions, recv_transition) = bounded(1);
    transitions.send(()).unwrap();
    drop(transitions);
    let mut replica = shell(1, &[], &wire, &book, SOON);
    let recv_msg = net.bell(1);
    let thread = thread::spawn(move || replica.start(recv_msg, recv_transition));
    eventually("the last token", || book.lock().unwrap().polls == 1);
    shared.halt.store(true, SeqCst);
    thread.join().unwrap().unwrap();
}
