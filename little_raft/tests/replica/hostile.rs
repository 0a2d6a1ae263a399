//! What nobody should say: messages that no replica sends, and arguments that make no sense.

use crate::support::*;
use crossbeam_channel::unbounded;
use little_raft::{
    Body, Change, Config, LogId, Membership, Message, Raft, Replica, Snapshot, USER,
};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const HUGE: [usize; 6] = [0, 1, 2, usize::MAX / 2 - 1, usize::MAX / 2, usize::MAX];

/// Bodies with every combination of small and huge numbers in them.
fn forged_bodies() -> Vec<Body<Write, Vec<usize>>> {
    let mut bodies = vec![Body::TimeoutNow, Body::Vote { pre: true, granted: true }];
    bodies.push(Body::Vote { pre: false, granted: true });
    for index in HUGE {
        let context = index as u64;
        bodies.push(Body::ReadIndex { context });
        bodies.push(Body::ReadIndexResponse { context, index });
        bodies.push(Body::TransferLeadership(index));
        for round in [Duration::ZERO, Duration::MAX] {
            bodies.push(Body::Appended { result: Ok(index), round });
        }
        for term in HUGE {
            bodies.extend(forged_about(LogId { term, index }));
        }
    }
    bodies
}

/// Bodies about one position in the log.
fn forged_about(last: LogId) -> Vec<Body<Write, Vec<usize>>> {
    let mut bodies = Vec::new();
    let LogId { term, index } = last;
    for (pre, transfer) in [(true, false), (false, false), (false, true)] {
        bodies.push(Body::RequestVote { pre, transfer, last });
    }
    for round in [Duration::ZERO, Duration::MAX] {
        bodies.push(Body::Appended { result: Err(last), round });
        for voters in [vec![], vec![1, 2, 3], vec![7]] {
            let membership =
                Membership { voters: voters.into_iter().collect(), ..Membership::default() };
            let snapshot = Snapshot {
                last_included_index: index,
                last_included_term: term,
                data: vec![NOOP, 1, 2],
            };
            bodies.push(Body::InstallSnapshot { snapshot, membership: membership.into(), round });
        }
    }
    let nothing = Membership::default();
    let configuration = |first, transitions: Vec<Write>| {
        let membership = Some(Arc::new(nothing.clone()));
        little_raft::Run { first, term, transitions: Arc::new(transitions), membership }
    };
    for first in HUGE {
        let next = first.wrapping_add(1);
        for runs in [
            vec![run(first, term, &[8])],
            vec![run(first, term, &[])],
            vec![run(first, term, &[8]), run(next, 0, &[9])],
            vec![run(first, term, &[8]), run(first, term, &[9])],
            vec![configuration(first, vec![])],
            vec![configuration(first, vec![Write(8)])],
        ] {
            bodies.push(append((term, index), runs, index));
        }
    }
    bodies
}

/// Every forged message of this term, from strangers, from the replica itself and from peers.
fn forged_letters(term: usize, from_ids: &[usize]) -> Vec<Letter> {
    let from = |from_id| {
        let letter = move |body| Message { from_id, term, body };
        forged_bodies().into_iter().map(letter)
    };
    from_ids.iter().copied().flat_map(from).collect()
}

/// Sends one letter per turn and waits until the replica has dealt with all.
fn suffer(node: &Node, letters: Vec<Letter>) {
    let count = letters.len();
    for chunk in letters.chunks(count / 50 + 1) {
        chunk.iter().for_each(|letter| node.receive(letter.clone()));
        node.settle();
    }
}

#[test]
fn a_follower_survives_forged_messages_and_keeps_what_is_committed() {
    for term in [1, 4, 5, usize::MAX / 2 - 1, usize::MAX / 2, usize::MAX] {
        let node = Node::start(&Net::new(3), 1, &[2, 3], NEVER, |replica| replica);
        node.hear(2, 4, append((0, 0), vec![run(1, 4, &[NOOP, 7])], 2));
        node.until("two entries", || node.book().written == [NOOP, 7]);
        suffer(&node, forged_letters(term, &[0, 1, 2, 3, 99, usize::MAX]));
        let book = node.book();
        let restored = book.events.iter().any(|event| matches!(event, Event::Restore(_)));
        assert!(restored || book.written.starts_with(&[NOOP, 7]), "{:?}", book.written);
    }
}

#[test]
fn a_leader_survives_forged_messages_and_goes_on() {
    for term in [0, 1] {
        let (node, mut puppet) = lead(|replica| replica);
        // No other voter: the silent replica 3 is the one that is impersonated.
        for chunk in forged_letters(term, &[0, 1, 3, 99, usize::MAX]).chunks(500) {
            chunk.iter().for_each(|letter| node.receive(letter.clone()));
            puppet.play();
            node.settle();
        }
        puppet.play();
        assert!(node.book().written.starts_with(&[NOOP]));
        // It may have been voted out of office or asked to hand over, but it runs.
        node.until("another status", || {
            puppet.play();
            let told = node.wire().statuses.len();
            node.settle();
            node.wire().statuses.len() > told
        });
    }
}

#[test]
fn forged_requests_are_refused() {
    let (node, mut puppet) = lead(|replica| replica);
    let before = node.status().unwrap().membership;
    for learners in [vec![], vec![1, 2, 3]] {
        node.receive(Message::change_membership(vec![], learners));
    }
    for to_id in [99, usize::MAX] {
        node.receive(Message::transfer_leadership(to_id));
    }
    node.settle();
    node.write(7);
    node.until("a write", || {
        puppet.play();
        node.book().written == [NOOP, 7]
    });
    assert_eq!(node.status().unwrap().membership, before);
}

/// How a replica with these arguments ends; `None` if it runs.
fn start_with_arguments(
    peers: &[usize], heartbeat: Duration, election: (Duration, Duration),
    configure: impl FnOnce(Shell) -> Shell,
) -> Option<std::io::Error> {
    let net = Net::new(1);
    let wire = Arc::new(Mutex::new(Wire::new(1, &net)));
    let shared = wire.lock().unwrap().shared.clone();
    shared.halt.store(true, std::sync::atomic::Ordering::SeqCst);
    let (noop, book) = (Write(NOOP), Arc::new(Mutex::new(Book::default())));
    let replica = Replica::new(1, peers.to_vec(), wire, book, noop, heartbeat, election);
    let (_bell, heard) = unbounded();
    net.deliver(1, Message::transfer_leadership(1));
    configure(replica).start(net.bell(1), heard).err()
}

#[test]
fn arguments_that_make_no_sense_are_a_clear_error() {
    let ms = Duration::from_millis;
    let range = (ms(100), ms(200));
    let cases = [
        ("peer_ids", [1, 2], ms(50), range),
        ("heartbeat", [2, 3], ms(0), range),
        ("election timeout", [2, 3], ms(100), range),
        ("election timeout", [2, 3], ms(150), range),
        ("election timeout", [2, 3], ms(50), (ms(50), ms(200))),
        ("election_timeout", [2, 3], ms(50), (ms(200), ms(100))),
        ("election timeout", [2, 3], ms(50), (ms(0), ms(0))),
    ];
    for (names, peers, heartbeat, election) in cases {
        let error = start_with_arguments(&peers, heartbeat, election, |replica| replica);
        let error = error.unwrap_or_else(|| panic!("{heartbeat:?}, {election:?} must not start"));
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(names), "{error}: does not name the {names}");
    }
    let drift = |replica: Shell| replica.with_lease_reads(ms(100));
    let error = start_with_arguments(&[2, 3], ms(50), range, drift).expect("no lease is left");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("drift"), "{error}");

    let user = Config {
        id: USER,
        heartbeat_timeout: ms(50),
        election_timeout_range: range,
        ..Config::default()
    };
    let raft = Raft::<Write>::new(user, Write(NOOP), Change::default(), Duration::ZERO);
    let error = raft.expect_err("a replica that speaks like a user");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("USER"), "{error}");
}

#[test]
fn the_longest_times_there_are_do_no_harm() {
    let second = Duration::from_secs(1);
    for (heartbeat, election) in [
        (second, (second * 2, second * 2)),
        (second, (second * 2, Duration::MAX)),
        (second, (Duration::MAX, Duration::MAX)),
        (Duration::MAX - second, (Duration::MAX, Duration::MAX)),
    ] {
        let error = start_with_arguments(&[2, 3], heartbeat, election, |replica| replica);
        assert!(error.is_none(), "{heartbeat:?}, {election:?}: {error:?}");
    }
}
